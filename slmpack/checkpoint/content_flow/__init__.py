"""Content flow: what a chat template does with the words of a message, found in its syntax tree without rendering it.

A template can add a link, or leave out the system message, only when a message has a certain word. Comparing two
renderings cannot see that: source and package agree. So a template may do with the text of a message what is listed
here, and nothing else:

    write it, join it with other text, strip white space, change its case, cut it at white space or at a marker
    ask whether it is text, a list or missing, whether it is empty, and of a part of it what kind of part it is
    ask whether a marker (`</think>`, see `markers`) is in it: then write text of messages, markers and white space

Everything else that depends on what the text says is a finding: other tests, its length, a look-up or a repetition by
it, filters and functions that are not listed. What each exception gives an attacker:

    emptiness      words that are written only for a message that is empty, or white space and switches
    a marker       the text of a message with a marker may be cut, and words of the template left out after it; words
                   that only such a message brings about cannot be written, since the marker's branch has none
    a switch       a variable that a switch sets (`/think`, `/no_think`, `/nothink`, `/system_override`) may select
                   words if the template also sets it to the same value without looking at a message: a text with a
                   switch may choose a mode, which is in the template for everybody to read, but which no other chat
                   need ever show
    control names  a marker's branch may write `<any_name>` and the names of roles, so up to 32 letters in one piece
    labels         a marker's branch may write `Picture `, `Video ` and `: `, as vision models number pictures
    parts          a content that is a list may be counted and told apart by the kinds of its parts

Not followed: roles, names and keys of messages, calls of tools and their arguments, tools, documents, and variables
that a caller passes by name. A template may depend on all of those, and on the date.

markers       the texts that may be looked for, and what may be written then
values        what is known of a value of the template, without its text
operations    filters and methods of such values
conditions    comparisons and tests of them
expressions   expressions, from the syntax tree
calls         filters, functions, methods and macros in it
branches      conditions and loops
alike         branches that differ in white space alone
statements    the other statements, repeated until nothing new is known of macros and namespaces
known         what one statement stands under, and what all rounds found
written       where a part of the syntax tree stands in the text
findings      what was found

Door: `findings.finding_in`
"""
