"""Structures of chats: orders of roles, tools and their calls, missing and odd contents, keys that a template knows."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from slmpack.template_words import TemplateWords

Message = dict[str, Any]
Structure = tuple[str, tuple[Message, ...], tuple[Message, ...] | None, bool]

TURNS = 8
MOST_KEYS = 12
_LOOP = {"index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "depth",
         "depth0", "cycle", "changed"}  # fmt: skip
_METHODS = {name for kind in (str, list, dict) for name in dir(kind)} | _LOOP
_USUAL = {"role", "content", "tool_calls", "function", "arguments", "parameters", "properties", "type", "text", "id",
          "description", "required", "enum", "items", "tool_call_id", "image", "return"}  # fmt: skip
_PARTS_KEYS = {"type", "text", "image"}

TOOLS: tuple[Message, ...] = (
    {"type": "function", "function": {
        "name": "find_train", "description": "Find a train's times.",
        "parameters": {"type": "object", "required": ["from"], "properties": {
            "from": {"type": "string", "description": "A town's \"name\""},
            "class": {"type": "string", "enum": ["first", "second"]},
            "stops": {"type": "array", "items": {"type": "string"}, "description": "ünïcode <b>"},
            "when": {"type": "object", "properties": {"hour": {"type": "integer"}}, "description": "Nested."},
            "price": {"type": ["number", "null"], "default": 1.5},
            "kind": {"anyOf": [{"type": "string"}, {"type": "boolean"}]},
        }},
        "return": {"type": "string", "description": "A time."},
    }},
    {"type": "function", "function": {
        "name": "time", "description": "Tell the time.", "parameters": {"type": "object", "properties": {}}}},
)  # fmt: skip
_BARE_TOOLS: tuple[Message, ...] = tuple(tool["function"] for tool in TOOLS)
_TWO = {"from": "Łódź", "stops": ["a", "b"], "class": None, "n": 1}


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def system(content: Any) -> Message:
    return {"role": "system", "content": content}


def structures_of(words: TemplateWords) -> Iterator[Structure]:
    """Yield chats of every structure that a template with these words may tell apart."""
    yield from _turns()
    yield from _orders(words.roles)
    yield from _contents()
    for name, messages in _tool_chats():
        for tools in (TOOLS, None):
            for prompt in (True, False):
                yield f"{name}, {'tools' if tools else 'no tools'}, prompt {prompt}", messages, tools, prompt
        yield f"{name}, bare tools", messages, _BARE_TOOLS, True
    yield from _keys(words)
    if words.keys & _PARTS_KEYS or "image" in words.plain:
        yield from _parts()


def _turns() -> Iterator[Structure]:
    for count in range(1, TURNS + 1):
        turns = tuple(assistant(f"Answer {turn}.") if turn % 2 else user(f"Question {turn}?") for turn in range(count))
        for prompt in (True, False):
            yield f"{count} turns, prompt {prompt}", turns, None, prompt
            yield f"system and {count} turns, prompt {prompt}", (system("Be brief."), *turns), None, prompt
            yield f"{count} turns with tools, prompt {prompt}", turns, TOOLS, prompt
            yield f"system and {count} turns with tools, prompt {prompt}", (system("Be brief."), *turns), TOOLS, prompt


def _orders(roles: tuple[str, ...]) -> Iterator[Structure]:
    hi, hello, brief = user("Hi"), assistant("Hello."), system("Be brief.")
    orders = {
        "two users": (hi, user("Anyone?")), "two users later": (hi, hello, user("And?"), user("Anyone?")),
        "two answers": (hi, hello, assistant("Again.")), "the assistant first": (hello, hi),
        "only an answer": (hello,), "only a system message": (brief,), "no message": (),
        "system in the middle": (hi, hello, brief, hi), "system last": (hi, brief), "two systems": (brief, brief, hi),
        "system, then the assistant": (brief, hello, hi), "system twice": (brief, hi, hello, brief, hi),
    }  # fmt: skip
    for role in dict.fromkeys(["developer", "tool", *roles, "critic"]):
        other = {"role": role, "content": f"From {role}."}
        orders |= {f"{role} first": (other, hi), f"{role} in the middle": (hi, hello, other, hi),
                   f"{role} after a question": (hi, other, hello, hi), f"{role} last": (hi, hello, other)}  # fmt: skip
    for name, messages in orders.items():
        yield name, messages, None, True
        yield f"{name}, with tools", messages, TOOLS, True


def _contents() -> Iterator[Structure]:
    odd = {
        "empty": "", "a space": " ", "a word": "a", "padded": "  a \n b\t\n\n", "line ends": "\n\n",
        "other white space": "\u00a0\u2003a\x1f\x85\u3000", "carriage returns": "\r\na\r",
        "quotes": "\"a\" 'b' \\n \\ {{ x }} {% y %} {# z #}", "markup": "<b>&amp;</b> &lt;",
        "beyond ASCII": "é 你好 😀 \u2028", "long": "word " * 300, "null": None,
    }  # fmt: skip
    for name, text in odd.items():
        yield f"{name} everywhere", (system(text), user(text), assistant(text), user(text)), None, True
        yield f"{name}, no system", (user(text), assistant(text), user(text), assistant(text)), None, False
        yield f"{name} from the user, last", (user("Hi"), assistant("Hello."), user(text)), None, True
        yield f"{name} from the assistant", (user("Hi"), assistant(text), user("And?")), None, True
        yield f"{name} from the assistant, last", (user("Hi"), assistant(text)), None, False
        yield f"{name} from the system", (system(text), user("Hi")), None, True
        yield f"{name} from the system, with tools", (system(text), user("Hi")), TOOLS, True


def _tool_chats() -> Iterator[tuple[str, tuple[Message, ...]]]:
    """Yield chats with calls of tools and their results, by name."""
    hi, then = user("When?"), user("Thanks.")
    for name, arguments in {"dict": _TWO, "JSON text": json.dumps(_TWO), "nothing": {}, "empty text": ""}.items():
        call = _call("abcdefghi", "find_train", arguments)
        for text in (None, "", "Let me look."):
            asked = assistant(text, tool_calls=[call])
            yield (
                f"a call with {name} and {text!r}",
                (hi, asked, _result("abcdefghi", "12:30"), assistant("At 12:30."), then),
            )
    call, second = _call("abcdefghi", "find_train", _TWO), _call("jklmnopqr", "time", {})
    results = (_result("abcdefghi", "12:30"), _result("jklmnopqr", '{"t": "12:00", "ü": [1]}'))
    both = assistant(None, tool_calls=[call, second])
    yield "two calls", (hi, both, *results, assistant("Soon."), then)
    yield "two calls, after a system message", (system("Be brief."), hi, both, *results)
    yield (
        "calls in turn",
        (hi, assistant("", tool_calls=[call]), results[0], assistant("", tool_calls=[second]), results[1]),
    )
    yield "a call last", (hi, assistant(None, tool_calls=[call]))
    yield "a result last", (hi, assistant(None, tool_calls=[call]), results[0])
    yield "a result, then the user", (hi, assistant(None, tool_calls=[call]), results[0], then)
    yield "no call in the list", (hi, assistant("Hello.", tool_calls=[]), then)
    yield "a call without content", (hi, {"role": "assistant", "tool_calls": [call]}, results[0])
    yield (
        "a call without id",
        (hi, assistant(None, tool_calls=[{"type": "function", "function": call["function"]}]), results[0]),
    )
    yield "a bare call", (hi, assistant(None, tool_calls=[call["function"] | {"id": "abcdefghi"}]), results[0])
    yield "a short id", (hi, assistant(None, tool_calls=[_call("1", "time", {})]), _result("1", "12:00"))
    yield (
        "a result of parts",
        (hi, assistant(None, tool_calls=[call]), _result("abcdefghi", [{"type": "text", "text": "12"}])),
    )
    yield "a result as a dict", (hi, assistant(None, tool_calls=[call]), _result("abcdefghi", {"t": 12, "u": ["ü"]}))
    yield "a result without a name", (hi, assistant(None, tool_calls=[call]), {"role": "tool", "content": "12:30"})
    yield (
        "an earlier call",
        (hi, assistant(None, tool_calls=[call]), results[0], assistant("Soon."), then, assistant("Bye.")),
    )


def _call(number: str, name: str, arguments: Any) -> Message:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(number: str, content: Any) -> Message:
    return {"role": "tool", "name": "find_train", "tool_call_id": number, "content": content}


def _keys(words: TemplateWords) -> Iterator[Structure]:
    """Yield chats whose messages have the other keys that the template looks up, such as `reasoning_content`."""
    call = _call("abcdefghi", "find_train", _TWO)
    keys = sorted(key for key in words.keys - _METHODS - _USUAL if key.isidentifier())[:MOST_KEYS]
    for key in keys:
        for value in ("\nSome text.\n", "", True):
            more = {key: value}
            name = f"{key} = {value!r}"
            yield f"{name}, assistant", (user("Hi"), assistant("Hello.", **more), user("And?")), None, True
            yield f"{name}, assistant last", (user("Hi"), assistant("Hello.", **more)), None, False
            yield (
                f"{name}, all",
                tuple(m | more for m in (system("S"), user("Hi"), assistant("", **more), user("B"))),
                None,
                True,
            )
            asked = (user("Hi"), assistant(None, tool_calls=[call], **more), _result("abcdefghi", "12:30"))
            yield f"{name}, a call", asked, TOOLS, True
            yield f"{name}, a call, then an answer", (*asked, assistant("At 12:30.", **more)), TOOLS, False
    for first, second in pairwise(keys):
        yield f"{first} and {second}", (user("Hi"), assistant("Hello.", **{first: "a", second: "b"})), TOOLS, False


def _parts() -> Iterator[Structure]:
    text, image = {"type": "text", "text": " Look. "}, {"type": "image"}
    for name, parts in {"text": [text], "two": [text, text], "an image": [image, text], "none": [], "a string": ["a"],
                        "an unknown kind": [{"type": "smell"}]}.items():  # fmt: skip
        yield f"parts: {name}", (user(parts), assistant([text]), user(parts)), None, True
        yield f"parts: {name}, system", (system([text]), user(parts)), None, True
        yield f"parts: {name}, assistant last", (user(parts), assistant(parts)), TOOLS, False
