"""Chat templates and tokenizers that take all memory or never end, if nothing stops them."""

from typing import Any

GIGANTIC = 4_000_000_000
# Each grows or runs on one user's turn "Hi", by its name in words.
HOSTILE_TEMPLATES = {
    "a constant width": "{{ 'x'|center(4000000000) }}",
    "a width": "{{ messages[0].content|center(4000000000) }}",
    "a width by a method": "{{ messages[0].content.ljust(4000000000) }}",
    "a width by a looked up method": "{{ messages[0].content['rj' ~ 'ust'](4000000000) }}",
    "zeros": "{{ '1'.zfill(4000000000) }}",
    "tabs": "{{ '\\t'.expandtabs(2000000000) }}",
    "a translation": "{% set big = 'y' * 100000 %}{{ ('x' * 1000000).translate({120: big}) }}",
    "bytes of a number": "{{ (1).to_bytes(4000000000, 'big')|length }}",
    "times": "{{ 'x' * 4000000000 }}",
    "times a list": "{{ ([0] * 1000000000)|length }}",
    "times a condition": "{% if 'x' * 4000000000 %}a{% endif %}",
    "percent": "{{ '%4000000000d' % 1 }}",
    "percent and star": "{{ '%*d' % (4000000000, 1) }}",
    "the filter format": "{{ '%4000000000d'|format(1) }}",
    "the method format": "{{ '{:>4000000000}'.format(1) }}",
    "a nested width of format": "{{ '{:>{w}}'.format(1, w=4000000000) }}",
    "format_map": "{{ '{a:>4000000000}'.format_map({'a': 1}) }}",
    "many fields of format": "{% set big = 'x' * 1000000 %}{{ ('{0}' * 10000).format(big)|length }}",
    "indent": "{{ 'a\\nb'|indent(4000000000) }}",
    "indent of JSON": "{{ [1]|tojson(indent=4000000000) }}",
    "a wrap": "{{ ('x' * 100000)|wordwrap(1, wrapstring='y' * 1000000) }}",
    "replace": "{{ ('x' * 1000000)|replace('x', 'y' * 100000)|length }}",
    "replace by a method": "{{ ('x' * 1000000).replace('x', 'y' * 100000)|length }}",
    "replace nothing": "{{ ('x' * 1000000).replace('', 'y' * 100000)|length }}",
    "join": "{% set big = 'x' * 1000000 %}{{ ([big] * 20000)|join|length }}",
    "join by a method": "{{ ('y' * 100000).join('x' * 1000000)|length }}",
    "batch": "{{ [1]|batch(1000000000, 1)|list|length }}",
    "slice": "{{ [1]|slice(1000000000)|list|length }}",
    "a power": "{{ (9 ** (9 ** 9)) % 7 }}",
    "a rounded power": "{{ 1.5|round(2000000000, 'ceil') }}",
    "digits": "{% set ns = namespace(n=2 ** 62) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubled text": "{% set ns = namespace(t='x') %}{% for i in range(40) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "a doubled sum": "{% set ns = namespace(t='x') %}{% for i in range(40) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "a doubled list": "{% set ns = namespace(t=[0]) %}{% for i in range(40) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "a doubled block": (
        "{% set ns = namespace(t='x') %}{% for i in range(40) %}{% set b %}{{ ns.t }}{{ ns.t }}{% endset %}"
        "{% set ns.t = b %}{% endfor %}"
    ),
    "a doubled macro": (
        "{% macro m(t) %}{{ t }}{{ t }}{% endmacro %}{% set ns = namespace(t='x') %}"
        "{% for i in range(40) %}{% set ns.t = m(ns.t) %}{% endfor %}"
    ),
    "a written list of lists": (
        "{% set ns = namespace(t='x') %}{% for i in range(40) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t }}"
    ),
    "JSON of lists of lists": (
        "{% set ns = namespace(t='x') %}{% for i in range(40) %}{% set ns.t = {'a': ns.t, 'b': ns.t} %}{% endfor %}"
        "{{ ns.t|tojson|length }}"
    ),
    "lists of lists compared": (
        "{% set n = namespace(a=['x'], b=['x']) %}{% for i in range(34) %}{% set n.a = [n.a, n.a] %}"
        "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}"
    ),
    "namespaces that hold each other": (
        "{% set ns = namespace(l=[]) %}{% for i in range(40) %}{% set ns.l = ns.l + [namespace(a=0)] %}{% endfor %}"
        "{% for i in range(39) %}{% set s = ns.l[i] %}{% set s.a = [ns.l[i + 1], ns.l[i + 1]] %}{% endfor %}"
        "{{ ns.l[0]|string|length }}"
    ),
    "copies that are held": (
        "{% set ns = namespace(l=[]) %}{% set t = 'x' * 1000000 %}"
        "{% for i in range(100000) %}{% set ns.l = ns.l + [t ~ i] %}{% endfor %}"
    ),
    "slices that are held": (
        "{% set ns = namespace(l=[]) %}{% set t = range(100000)|list %}"
        "{% for i in range(20000) %}{% set ns.l = ns.l + [t[1:]] %}{% endfor %}"
    ),
    "letters that are held": (
        "{% set ns = namespace(l=[]) %}"
        "{% for i in range(20000) %}{% set ns.l = ns.l + [('é' * 100000)|list] %}{% endfor %}"
    ),
    "much output": (
        "{% set t = 'x' * 1000000 %}{% for i in range(100000) %}{{ t }}{{ i }}{% endfor %}"
    ),
    "nested loops": (
        "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}"
        "{% endfor %}{% endfor %}"
    ),
    "loops that skip all": (
        "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}"
    ),
    "a filter in a loop": "{% for a in range(100000) %}{{ range(100000)|map('string')|list|length }}{% endfor %}",
    "sums in a loop": "{% for a in range(100000) %}{% if range(100000)|sum == a %}{% endif %}{% endfor %}",
    "a sum of lists": "{{ ([[0]] * 300000)|sum(start=[])|length }}",
    "a long attribute": "{{ ([messages] * 100000)|sort(attribute='0.role' ~ '.0' * 100000)|length }}",
    "tags in a loop": "{{ ('<!---->' * 4000000)|striptags|length }}",
    "a macro that branches": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "lorem ipsum": "{{ lipsum(n=100000, max=100000)|length }}",
    "a nested tuple hashed": (
        "{% set ns = namespace(t=()) %}{% for i in range(100000) %}{% set ns.t = (ns.t,) %}{% endfor %}"
        "{{ {ns.t: 1}|length }}"
    ),
    "a chain of filters": (
        "{% set ns = namespace(t=[1]) %}{% for i in range(100000) %}{% set ns.t = ns.t|map('string') %}{% endfor %}"
        "{{ ns.t|list|length }}"
    ),
    "a long refusal": "{{ raise_exception('x' * 50000000) }}",
    "a date": "{{ strftime_now('%c' * 10000000)|length }}",
}  # fmt: skip
# Each is refused when it is compiled.
UNCOMPILABLE_TEMPLATES = {
    "nested parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "nested lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "a long sum": "{{ " + "1+" * 20000 + "1 }}",
    "nested loops": "{% for a in messages %}" * 500 + "{% endfor %}" * 500,
    "many conditions": "{% if a %}" + "{% elif a %}" * 6000 + "{% endif %}",
    "negations": "{{ " + "not " * 20000 + "1 }}",
    "much text": "{{ messages }}" * 100_000,
}


def hostile_rules(rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return changes of a byte-level tokenizer.json, each of which takes all memory or never ends."""
    grow = {"type": "Replace", "pattern": {"String": "i"}, "content": "i" * 1000}
    slow = {"type": "Replace", "pattern": {"Regex": "(?:i*i*i*i*)z"}, "content": ""}
    split = {"type": "Split", "pattern": {"Regex": "i*i*i*i*i*z"}, "behavior": "Isolated", "invert": False}
    return {
        "a normaliser that multiplies": {**rules, "normalizer": {"type": "Sequence", "normalizers": [grow] * 6}},
        "a normaliser that puts text at every place": {
            **rules, "normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "i" * 10_000_000},
        },
        "a normaliser that never ends": {**rules, "normalizer": slow},
        "a pre-tokenizer that never ends": {
            **rules, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, rules["pre_tokenizer"]]},
        },
        "a decoder that multiplies": {**rules, "decoder": {"type": "Sequence", "decoders": [grow] * 6}},
        "a post-processor that repeats": {**rules, "post_processor": {
            "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 200_000,
            "pair": [], "special_tokens": {},
        }},
    }  # fmt: skip
