"""A chat template may write what a message says, and not decide by it: hidden links are found without rendering."""

from typing import Any

import pytest
from drawn_templates import LINK, TEMPLATES
from hidden_links import HIDDEN_LINKS, OTHER_TEMPLATES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Template, TemplateError
from published_templates import SPECIALS
from published_templates import TEMPLATES as PUBLISHED

from slmpack.checkpoint.chat_templates import template_environment
from slmpack.checkpoint.content_flow.branches import OTHER_TEMPLATE, RECURSIVE
from slmpack.checkpoint.content_flow.findings import Finding, finding_in
from slmpack.checkpoint.content_flow.operations import MIXES, READS, SELECTS
from slmpack.checkpoint.content_flow.statements import SAME_NAME

# Of our own invention, not of a published model: it puts a text into a dict of its own, and looks what it is there.
TOO_CLEVER = "indented"
LOOPS = "{% for m in messages %}HERE{% endfor %}"
HONEST = {
    "parts of several kinds": (
        "{% set n = namespace(images=0) %}{% for m in messages %}{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for part in m.content %}{% if part.type == 'image' or 'image_url' in part %}"
        "{% set n.images = n.images + 1 %}Picture {{ n.images }}: <|image_pad|>"
        "{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
        "{% if n.images > 1 %}Compare the pictures.{% endif %}"
    ),
    "visible text by a macro": (
        "{% macro text(content) %}{% if content is string %}{{ content }}{% elif content is iterable %}"
        "{% for item in content %}{% if item is mapping and item.type == 'text' %}{{ item.text }}"
        "{% elif item is string %}{{ item }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
        "{% for m in messages %}{{ text(m.content) }}"
        "{{ '/nothink' if not enable_thinking and not text(m.content).endswith('/nothink') else '' }}{% endfor %}"
    ),
    "a switch in any message": (
        "{% set ns = namespace(thinks=true) %}{% for m in messages %}{% if '/think' in m.content %}"
        "{% set ns.thinks = true %}{% elif '/no_think' in m.content %}{% set ns.thinks = false %}{% endif %}"
        "{{ m.content.replace('/think', '').replace('/no_think', '').strip() }}{% endfor %}"
        "{% if ns.thinks is false %}<think></think>{% else %}<think>\n{% endif %}"
    ),
    "a mode that a caller has, too": (
        "{% set mode = '/think' if enable_thinking else '/no_think' %}{% if messages[0].role == 'system' %}"
        "{% if '/no_think' in messages[0].content %}{% set mode = '/no_think' %}{% endif %}{% endif %}"
        "{% if mode == '/think' %}Think before you answer.{% endif %}"
    ),
    "a default for an empty text": LOOPS.replace("HERE", "{{ m.content if m.content|trim else 'Nothing was said.' }}"),
    "a length that is none": LOOPS.replace("HERE", "{% if m.content|length == 0 %}Nothing was said.{% endif %}"),
    "words that a marker takes away": LOOPS.replace(
        "HERE", "{% if '/system_override' not in m.content %}Hi{% endif %}"
    ),
    "a turn's end": LOOPS.replace("HERE", "{{ m.content.split('</think>')[-1].lstrip('\n') + eos_token }}"),
    "the last question": LOOPS.replace(
        "HERE", "{% if m == (messages|selectattr('role', 'in', ['user'])|last) %}Q{% endif %}"
    ),
    "pictures by number in a macro": (
        "{% set n = namespace(images=0) %}{% macro shown(content) %}{% if content is string %}{{ content }}"
        "{% else %}{% for part in content %}{% if 'image' in part or part.type == 'image' %}"
        "{% set n.images = n.images + 1 %}{{ 'Picture ' ~ n.images ~ ': ' }}<|image_pad|>"
        "{% elif 'text' in part %}{{ part.text }}{% else %}{{ raise_exception('No such part.') }}{% endif %}"
        "{% endfor %}{% endif %}{% endmacro %}{% for m in messages %}{% set text = shown(m.content)|trim %}"
        "{% if text %}{{ 'Says: ' + text.split('</think>')[-1] }}{% endif %}{% endfor %}"
    ),
    "two parts in the order of their kinds": LOOPS.replace(
        "HERE",
        "{% if m.content is string %}{{ m.content }}{% elif m.content|length > 0 %}{% if m['content']|length == 2 %}"
        "{% set parts = m.content|sort(attribute='type') %}{% else %}{% set parts = m.content %}{% endif %}"
        "{% for part in parts %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% if not loop.last %}, and {% endif %}{% endfor %}{% endif %}",
    ),
    "a content that is one part": LOOPS.replace(
        "HERE", "{% if m.content is mapping and 'text' in m.content %}Says: {{ m.content.text }}{% endif %}"
    ),
    "a kind that is got": LOOPS.replace(
        "HERE", "{% set ns = namespace(s='') %}{% for part in m.content %}{% if part.get('type') == 'text' %}"
        "{% set ns.s = ns.s + part.get('text') %}{% endif %}{% endfor %}{% if ns.s %}Says: {{ ns.s }}{% endif %}",
    ),
    "thoughts in a channel": LOOPS.replace(
        "HERE",
        "{% for piece in m.content.split('<channel|>') %}{% if '<|channel>' in piece %}"
        "{{ piece.split('<|channel>')[0] }}{% else %}{{ piece }}{% endif %}{% endfor %}",
    ),
    "the end of a turn in the text": LOOPS.replace(
        "HERE", "{{ m.content }}{% if not m.content.endswith('</assistant>') %}{{ '\n</assistant>' }}{% endif %}"
    ),
    "a list as JSON": LOOPS.replace(
        "HERE", "{% set text = m.content or '' %}{{ text if text is string else text|tojson(ensure_ascii=False) }}"
    ),
    "white space by a marker": LOOPS.replace(
        "HERE",
        "{% set text = m.content.split('</think>')[-1] %}{% for call in m.tool_calls %}{% if text|trim %}"
        "{{ '\n\nCalls ' + call.name }}{% else %}{{ 'Calls ' + call.name }}{% endif %}{% endfor %}",
    ),
    "calls": LOOPS.replace(
        "HERE", "{% for call in m.tool_calls %}{% if call.function.name == 'python' %}Run it.{% endif %}{% endfor %}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*sorted(PUBLISHED.keys() - {TOO_CLEVER}), *HONEST])
def test_what_published_templates_do_is_no_finding(name: str) -> None:
    assert finding_in((PUBLISHED | HONEST)[name], SPECIALS) is None


def test_a_text_in_a_dict_of_the_templates_own_is_a_finding_that_asks_for_a_waiver() -> None:
    finding = finding_in(PUBLISHED[TOO_CLEVER], SPECIALS)
    assert finding is not None
    assert (finding.line, finding.tag) == (5, "{{ message.content.split() | join(' ') if depth else message.content }}")


@pytest.mark.parametrize("name", HIDDEN_LINKS)
def test_a_link_that_depends_on_what_a_message_says_is_found(name: str) -> None:
    template_environment().from_string(HIDDEN_LINKS[name])  # nothing but its meaning is wrong with it
    finding = finding_in(HIDDEN_LINKS[name], SPECIALS)
    assert finding is not None
    assert finding.reason in {READS, SELECTS, MIXES, RECURSIVE, SAME_NAME}


@pytest.mark.parametrize("template", OTHER_TEMPLATES)
def test_another_template_is_not_taken_in(template: str) -> None:
    assert finding_in(template, {}) == Finding(line=1, tag=template, reason=OTHER_TEMPLATE)


def test_a_finding_has_the_condition_as_written_and_its_line() -> None:
    text = "{{ bos_token }}\n{%- for m in messages %}\n  {%- if m.role == 'user' and\n 'python' in m.content %}x"
    assert finding_in(text + "{% endif %}{% endfor %}", SPECIALS) == Finding(
        line=4,
        tag="{%- if m.role == 'user' and 'python' in m.content %}",
        reason=READS,
    )


def test_a_long_tag_is_cut_around_what_was_found() -> None:
    finding = finding_in(
        "{{ 'a' ~ " + "'b' ~ " * 500 + "('x' in messages[0].content) ~ " + "'c' ~ " * 500 + "'d' }}", {}
    )
    assert finding is not None
    assert "'x' in messages[0].content" in finding.tag
    assert len(finding.tag) < 180


def test_a_special_token_with_words_in_it_is_words() -> None:
    text = "{% for m in messages %}{% if '</think>' in m.content %}{{ eos_token }}{% endif %}{% endfor %}"
    assert finding_in(text, {"eos_token": "<|im_end|>"}) is None
    for specials in ({"eos_token": f"<|im_end|> {LINK}"}, {}):
        assert finding_in(text, specials) is not None


# No luck, and no clock: a template that is found by chance belongs into a test of its own.
THE_SAME_EVERY_TIME: dict[str, Any] = {
    "deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck),
}  # fmt: skip
TANGLED_TEMPLATES = {
    "a chain of macros": "{{ m0(messages) }}"
    + "".join(f"{{% macro m{n}(a) %}}{{{{ m{n + 1}(a) }}}}{{% endmacro %}}" for n in range(3000)),
    "nested conditions": "{% if a %}" * 90 + "x" + "{% endif %}" * 90,
    "nots": "{{ " + "not " * 90 + "messages }}",
    "many statements": "{% set a = 1 %}" * 4000 + "{% if a %}{% endif %}" * 2000,
    "a long list": "{{ [" + "messages, " * 20000 + "] }}",
    "many variables": "".join(f"{{% if a %}}{{% set v{n} = messages %}}{{% endif %}}" for n in range(1000)),
}  # fmt: skip


@pytest.mark.parametrize("name", TANGLED_TEMPLATES)
def test_the_walk_ends_soon_on_any_template(name: str) -> None:
    finding = finding_in(TANGLED_TEMPLATES[name], {})
    assert finding is None or "tangled" in finding.reason or "words" in finding.reason


def shows_link(template: Template, text: str) -> bool | None:
    """Say whether a chat with the text shows the link; None where the template fails on it."""
    chat = [{"role": "system", "content": "Be brief and kind."}, {"role": "user", "content": text}]
    try:
        return LINK in template.render(messages=chat)
    except (TemplateError, TypeError, ValueError, AttributeError):
        return None


@given(TEMPLATES)
@settings(max_examples=150, **THE_SAME_EVERY_TIME)
def test_a_template_without_a_finding_shows_a_link_for_every_text_or_for_none_and_for_no_marker(text: str) -> None:
    try:
        template = template_environment().from_string(text)
    except (TemplateError, SyntaxError):  # a break outside of a loop
        return
    if finding_in(text, {}) is None:
        texts = ("a", "python", "What is python, and how does it work, and why?", "one\ntwo\nthree", "image", "final")
        marked = ("</think>", "<think>a</think> python", "python <think>", "</think>a</think>b")
        shown = {shows_link(template, each) for each in texts} - {None}
        assert len(shown) <= 1
        assert shown != {False} or True not in {shows_link(template, each) for each in marked}


TOKENS = (
    "{% ", " %}", "{{ ", " }}", "if ", "for x in ", "set ", "endif", "endfor", "macro m(a)", "endmacro", "messages",
    "[0]", ".content", "'python' in ", "|length", " > 1", "loop.index", "namespace()", "ns.a", " = ", "(", ")", "~",
    "else", "filter upper", "endfilter", "call m()", "endcall", "generation", "endgeneration", "break", "with ",
    "endwith", "x", " recursive", "*", "**", "{", "}", ":", ",", "- ", "not ", "|map('upper')",
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(TOKENS), max_size=25).map("".join)))
@settings(max_examples=400, **THE_SAME_EVERY_TIME)
def test_any_template_that_compiles_has_a_finding_or_none(text: str) -> None:
    try:
        template_environment().from_string(text)
    except Exception:  # it is refused before
        return
    finding = finding_in(text, {})
    assert finding is None or finding.line >= 1
