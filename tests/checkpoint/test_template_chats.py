"""Chats from a template: they take every branch, hold all that it tests for, and find a renderer that differs."""

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from published_templates import PUBLISHED, SPECIALS, TEMPLATES, unreached

from slmpack.checkpoint.chat_format import CHAT_FORMAT
from slmpack.checkpoint.texts.template_branches import Branch, BranchMeter, rendering_environment
from slmpack.checkpoint.texts.template_chats import MOST_CHATS, TemplateChat, chats_of
from slmpack.checkpoint.texts.template_words import words_of
from slmpack.log.chat_model import ChatTemplate
from slmpack.machine.json_file import write_json

Prompts = list[str | None]
EVERY = pytest.mark.parametrize("name", TEMPLATES)


@cache
def chats_for(name: str) -> tuple[TemplateChat, ...]:
    return chats_of(TEMPLATES[name], SPECIALS)


@cache
def prompts_for(name: str) -> Prompts:
    return by_the_wrapper(TEMPLATES[name], chats_for(name))


# ---------------------------------------------------------------------------------------------- renderers


def by_transformers(template: str, chats: tuple[TemplateChat, ...]) -> Prompts:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>")), **SPECIALS)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = template

    def render(chat: TemplateChat) -> str:
        tools: Any = None if chat.tools is None else list(chat.tools)
        return str(
            tokenizer.apply_chat_template(
                list(chat.messages), tools, tokenize=False, add_generation_prompt=chat.add_generation_prompt
            )
        )

    return [refused_or(render, chat) for chat in chats]


def by_the_wrapper(template: str, chats: tuple[TemplateChat, ...]) -> Prompts:
    """Render as a package does that is loaded."""
    chat_format: dict[str, Any] = {
        "chat_template": template, "tool_template": None, "special_tokens": SPECIALS, "split_special_tokens": False,
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / CHAT_FORMAT, chat_format)
        wrapper = ChatTemplate(Path(folder))

    def render(chat: TemplateChat) -> str:
        tools: Any = None if chat.tools is None else list(chat.tools)
        return wrapper.render(list(chat.messages), tools, add_generation_prompt=chat.add_generation_prompt)

    return [refused_or(render, chat) for chat in chats]


def in_environment(environment: Any, template: str, chats: tuple[TemplateChat, ...]) -> Prompts:
    compiled = environment.from_string(template)

    def render(chat: TemplateChat) -> str:
        tools = None if chat.tools is None else list(chat.tools)
        more = {"add_generation_prompt": chat.add_generation_prompt, "tools": tools, "documents": None, **SPECIALS}
        return str(compiled.render(messages=[alias(message) for message in chat.messages], **more))

    return [refused_or(render, chat) for chat in chats]


def alias(message: dict[str, Any]) -> dict[str, Any]:
    """Pass reasoning under its names, as transformers does: `_alias_reasoning_fields`."""
    names = ("reasoning_content", "thinking", "reasoning")
    found = next((message[name] for name in names if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def refused_or(render: Any, chat: TemplateChat) -> str | None:
    try:
        text: str = render(chat)
    except Exception:  # a template may raise what it likes
        return None
    return text


@EVERY
def test_transformers_and_another_renderer_give_the_same_prompts(name: str) -> None:
    chats, found = chats_for(name), prompts_for(name)
    expected = by_transformers(TEMPLATES[name], chats)
    assert [(c.name, f, e) for c, f, e in zip(chats, found, expected, strict=True) if f != e] == []
    assert sum(prompt is not None for prompt in expected) > len(chats) / 2


# ---------------------------------------------------------------------------------------------- what they reach


def test_there_are_as_many_templates_as_families_that_people_use() -> None:
    assert len(PUBLISHED) >= 22
    written = "\n".join(PUBLISHED.values())
    for construct in (
        "{%- generation", "{%- break", "{%- continue", "tojson(indent=", "| items", "selectattr(", "map(", "is mapping",
        "is string", "is iterable", ".lstrip('\\n')", ".rstrip()", ".split()", "[::-1]", "loop.previtem", "'-' * 8",
        "macro", "namespace(", "strftime_now(", "raise_exception(",
    ):  # fmt: skip
        assert construct in written


@EVERY
def test_every_branch_of_a_published_template_is_taken(name: str) -> None:
    meter = BranchMeter(TEMPLATES[name], SPECIALS)
    taken: set[Branch] = set()
    for chat in chats_for(name):
        taken |= meter.render(list(chat.messages), chat.tools, chat.add_generation_prompt).passed
    left = Counter((branch.line, branch.kind) for branch in meter.branches if branch not in taken)
    assert left == unreached(name)


def test_a_branch_that_no_chat_takes_is_listed_as_left() -> None:
    template = (
        "{% if messages[0].role == 'user' and shade is defined %}x{% endif %}{% for m in messages %}y{% endfor %}"
    )
    meter = BranchMeter(template, {})
    passed = set().union(*(meter.render([*chat.messages], chat.tools, True).passed for chat in chats_of(template, {})))
    left = [branch.kind for branch in meter.branches if branch not in passed]
    assert left == ["if", "no loop"]


@EVERY
def test_chats_are_many_bounded_and_different(name: str) -> None:
    chats = chats_for(name)
    assert 100 < len(chats) <= MOST_CHATS
    assert len({repr(chat) for chat in chats}) == len(chats)


@pytest.mark.parametrize("name", ["phi-3-mini", "qwen3"])
def test_a_template_has_the_same_chats_each_time(name: str) -> None:
    chats_of(TEMPLATES["chatml"], SPECIALS)
    assert chats_of(TEMPLATES[name], SPECIALS) == chats_for(name)


def test_a_template_that_loops_for_long_has_its_chats_soon() -> None:
    endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% if a %}x{% endif %}{% endfor %}{% endfor %}"
    assert 100 < len(chats_of(endless, {})) <= MOST_CHATS


@EVERY
def test_every_text_of_a_template_is_in_some_question_and_in_some_answer(name: str) -> None:
    meter, words = BranchMeter(TEMPLATES[name], SPECIALS), words_of(TEMPLATES[name])
    for role in ("user", "assistant"):
        contents = [m.get("content") for chat in chats_for(name) for m in chat.messages if m["role"] == role]
        written = "\0".join(text for text in contents if isinstance(text, str))
        left = [text for text in (*words.telling, *words.plain) if text not in written]
        answers = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}] for text in left]
        assert [chat for chat in answers if role == "user" or meter.render(chat, None, False).text is not None] == []


def test_strings_are_decoded_as_jinja_does() -> None:
    words = words_of(r"""{{ "a\n<b>" ~ '\u00e9<c>' }}<d>{% if 'x"y|' in m['content'] %}{% endif %}""")
    assert {"a\n<b>", "é<c>", "<b>", "<c>", "<d>", 'x"y|'} <= {*words.telling, *words.plain}


def test_roles_and_keys_are_those_that_a_template_compares_and_looks_up() -> None:
    words = words_of(
        "{% set ns = namespace(found=1) %}{% set ns.found = 2 %}{% if messages[0]['role'] in ['judge', 'clerk'] %}"
        "{{ m.reasoning_content }}{{ 'cites' in m }}{% endif %}{% if m.role == 'ipython' %}{{ ns.found }}{% endif %}"
    )
    assert words.roles == ("judge", "clerk", "ipython")
    assert {"role", "reasoning_content", "cites"} <= words.keys
    assert "found" not in words.keys


# ---------------------------------------------------------------------------------------------- planted differences

PLANTED = {
    "reasoning in earlier answers stays": ("qwen3", "{%- if '</think>' in content %}", "{%- if false %}"),
    "reasoning of R1 stays": ("deepseek-r1-distill", "{% if '</think>' in content %}", "{% if false %}"),
    "the text after the first end of thought": ("deepseek-r1-distill", "split('</think>')[-1]", "split('</think>')[1]"),
    "line ends stay after thoughts": ("qwen3", "split('</think>')[-1].lstrip('\\n')", "split('</think>')[-1]"),
    "spaces go, too": ("qwen3", "split('</think>')[-1].lstrip('\\n')", "split('</think>')[-1].lstrip()"),
    "more than one thought": ("qwen3", "split('<think>')[-1]", "split('<think>')[1]"),
    "one kind of answer": ("qwen3", "loop.last or (not loop.last and reasoning_content)", "loop.last"),
    "a key of messages is not looked at": ("qwen3", "message.reasoning_content is string", "false"),
    "a tool's answer counts as a question": ("qwen3", "message.content.startswith('<tool_response>')", "false"),
    "the end of a tool's answer is not looked at": ("qwen3", "message.content.endswith('</tool_response>')", "true"),
    "arguments as text are written as JSON": ("qwen3", "tool_call.arguments is string", "false"),
    "messages forwards": ("qwen3", "messages[::-1]", "messages"),
    "white space of ASCII only is trimmed": ("llama-2", "content.strip()", "content.strip(' \\t\\n\\r')"),
    "one kind of white space": ("vicuna", "message['content'].strip()", "message['content'].strip(' ')"),
    "the second message": ("llama-3.1", "messages[0]['role'] == 'system'", "messages[1]['role'] == 'system'"),
    "an indentation of two": ("llama-3.1", "tojson(indent=4)", "tojson(indent=2)"),
    "ASCII only in JSON": ("qwen2.5", "{{- tool | tojson }}", "{{- tool | tojson(ensure_ascii=true) }}"),
    "keys in order": ("mistral-nemo", "sort_keys=true", "sort_keys=false"),
    "the model's prompt is always there": ("phi-3-mini", "{% if add_generation_prompt %}", "{% if true %}"),
    "an empty system message": ("phi-3.5", " and message['content']", ""),
    "a mode in the system message": ("smollm3", '"/no_think" in system_message', "false"),
    "a mode that the system message takes away": ("smollm3", '"/system_override" in custom_instructions', "false"),
    "a channel in an answer": ("gpt-oss", '"<|channel|>analysis<|message|>" in message.content or', ""),
    "no pictures": ("gemma-3", "item['type'] == 'image'", "false"),
    "loop controls": ("internlm2", "{%- break %}", ""),
    "content that is a control token": ("internlm2", "message.content == '<|end|>'", "false"),
    "the item before": ("hermes-tools", 'loop.previtem.role != "tool"', "true"),
    "a nested macro": ("command-r-tools", "{{- python_type(name, false) }}", "{{- name }}"),
    "line ends within text": ("indented", "message.content.split() | join(' ')", "message.content"),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_a_template_that_differs_in_one_place_is_found(planted: str) -> None:
    name, own, other = PLANTED[planted]
    assert own in TEMPLATES[name]
    found = by_the_wrapper(TEMPLATES[name].replace(own, other), chats_for(name))
    assert [a == b for a, b in zip(found, prompts_for(name), strict=True)].count(False) > 0


def other_environment(change: str) -> Any:
    environment: Any = rendering_environment()
    if change == "untrimmed blocks":
        environment.trim_blocks = environment.lstrip_blocks = False
    elif change == "HTML's letters escaped in JSON":
        environment.filters["tojson"] = ImmutableSandboxedEnvironment().filters["tojson"]
    elif change == "everything escaped":
        environment.autoescape = True
    elif change == "trim of ASCII":
        environment.filters["trim"] = lambda text: text.strip(" \t\n\r\x0b\x0c")
    elif change == "no refusal":
        environment.globals["raise_exception"] = lambda message: ""
    return environment


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("untrimmed blocks", "zephyr"), ("untrimmed blocks", "indented"), ("HTML's letters escaped in JSON", "qwen3"),
        ("everything escaped", "chatml"), ("trim of ASCII", "gemma-2"), ("trim of ASCII", "llama-3.1"),
        ("no refusal", "mistral-v1"), ("no refusal", "gemma-2"),
    ],
)  # fmt: skip
def test_a_renderer_that_is_set_up_otherwise_is_found(change: str, name: str) -> None:
    chats = chats_for(name)
    expected = in_environment(rendering_environment(), TEMPLATES[name], chats)
    found = in_environment(other_environment(change), TEMPLATES[name], chats)
    assert [a == b for a, b in zip(found, expected, strict=True)].count(False) > 0


def test_a_template_that_cannot_be_compiled_has_no_chats() -> None:
    with pytest.raises(TemplateError):
        chats_of("{% if %}", {})
