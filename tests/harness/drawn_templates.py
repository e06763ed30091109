"""Chat templates drawn by chance, of the pieces that hidden links are made of.

Strategies are deferred, since Hypothesis writes each of them out with all that is in it.
"""

import same_examples  # noqa: F401 - for the tests that draw from these
from hypothesis import strategies as st

LINK = "http://evil.example"
START = (
    "{% set ns = namespace(f=false, c='', n=0) %}{% set c = '' %}{% set x = '' %}{% set w = '' %}"
    "{% macro f(a) %}{% if a is string %}{{ a }}{% endif %}{% endmacro %}"
    "{% macro g(a) %}{% if '</think>' in a %}{{ a.split('</think>')[-1] }}{% else %}{{ a }}{% endif %}{% endmacro %}"
    "{% macro h() %}{{ caller() }}{% if ns.f %}{{ caller() }}{% endif %}{% endmacro %}"
    "{% for m in messages %}"
)
END = "{% endfor %}{% if ns.f %}" + LINK + "{% endif %}{{ x }}"

_texts = st.deferred(
    lambda: st.recursive(
        st.sampled_from(["m.content", "m['content']", "c", "ns.c", "w", "x", "messages[0].content", "''", "m.role"]),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from([
                "|lower", ".strip()", ".split()[0]", "[0]", "[:6]", "|trim", ".split('</think>')[-1]", "|string",
                ".split('<think>')[0]", ".replace('</think>', '')", "|list", "|first", "|default('')", ".split('\\n')",
                "[1]", "[3:]", "|last", "|reverse|list", "|select|list", ".get('type')", ".text", ".type",
            ])).map("".join),
            st.tuples(st.sampled_from(["f(", "g(", "(", "[", "(x ~ "]), inner).map(
                lambda pair: pair[0] + pair[1] + ("]" if pair[0] == "[" else ")")
            ),
            st.tuples(inner, inner).map(lambda pair: f"({pair[0]} ~ {pair[1]})"),
            st.tuples(inner, inner).map(lambda pair: f"({pair[0]} or {pair[1]})"),
        ),
        max_leaves=3,
)
)  # fmt: skip
_conditions = st.deferred(
    lambda: st.recursive(
        st.one_of(
            st.tuples(_texts, st.sampled_from([
                "{}", "'python' in {}", "'</think>' in {}", "{} == 'python'", "{}|length > 7", "{} is string",
                "{} is defined", "{}|length > 0", "'image' in {}", "{}.startswith('<think>')", "{} == ''",
                "{} is mapping", "{} != x", "{}[2] is defined", "{}.type == 'text'", "{} in ['', none]",
            ])).map(lambda pair: pair[1].format(pair[0])),
            st.sampled_from(["m.role == 'user'", "ns.f", "loop.first", "loop.index > 2", "loop.last", "true",
                             "m == messages[-1]", "ns.n > 2", "ns.n", "w.type == 'text'",
                             "loop.nextitem", "c", "x", "f", "ns.c"]),
        ),
        lambda inner: st.one_of(
            inner.map(lambda text: f"not ({text})"),
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: "({} {} {})".format(*parts)),
        ),
        max_leaves=2,
)
)  # fmt: skip
_leaves = st.deferred(
    lambda: st.one_of(
        st.sampled_from([LINK, "<think>", "\n", "{% break %}", "{% set x = '" + LINK + "' %}", "{{ x }}",
                         "{% set ns.n = ns.n + 1 %}", "{% set ns.f = true %}", "{% set ns.c = ns.c ~ 'a' %}"]),
        _texts.map(lambda text: "{{ " + text + " }}"),
        _texts.map(lambda text: "{% set c = " + text + " %}"),
        _texts.map(lambda text: "{% set ns.c = " + text + " %}"),
        _conditions.map(lambda text: "{% set ns.f = " + text + " %}"),
        _conditions.map(lambda text: "{{ '" + LINK + "' if " + text + " }}"),
        _conditions.map(lambda text: "{{ (" + text + ") and '" + LINK + "' }}"),
        _conditions.map(lambda text: "{{ '" + LINK + "' * (" + text + ") }}"),
)
)  # fmt: skip
_statements = st.deferred(
    lambda: st.recursive(
        _leaves,
        lambda inner: st.one_of(
            st.tuples(_conditions, inner, inner).map(
                lambda parts: "{{% if {} %}}{}{{% else %}}{}{{% endif %}}".format(*parts)
            ),
            st.tuples(_conditions, inner).map(lambda parts: "{{% if {} %}}{}{{% endif %}}".format(*parts)),
            st.tuples(_texts, inner).map(lambda parts: "{{% for w in {} %}}{}{{% endfor %}}".format(*parts)),
            st.tuples(inner, inner).map("".join),
            inner.map(lambda text: "{% set x %}" + text + "{% endset %}"),
            inner.map(lambda text: "{% call h() %}" + text + "{% endcall %}"),
            inner.map(lambda text: "{% filter trim %}" + text + "{% endfilter %}"),
            st.tuples(_texts, inner).map(lambda parts: "{{% with c = {} %}}{}{{% endwith %}}".format(*parts)),
            st.tuples(_conditions, inner).map(
                lambda parts: "{{% for w in messages if {} %}}{}{{% endfor %}}".format(*parts).replace("m.", "w.")
            ),
        ),
        max_leaves=6,
    )
)
TEMPLATES = st.lists(_statements, min_size=1, max_size=4).map(lambda parts: START + "".join(parts) + END)
