"""A checkpoint or a package is refused for a template that depends on what a message says, unless a reason is given."""

import json
from pathlib import Path

import pytest
from hidden_links import HIDDEN_LINKS
from small_tokenizers import CHATML

from slmpack.checkpoint.open_templates import judge_templates, read_templates
from slmpack.errors import CheckError, SourceError
from slmpack.log.chat_model import ChatTemplate

HIDDEN = HIDDEN_LINKS["a test"]
TAG = "{% if 'python' in m.content %}"
LINE = (
    f"line 2 of the chat template of org/name: {TAG}, which depends on the words of a message; branches by role, "
    "by kind, by emptiness, and by markers such as </think>; take the base model's template, or give a reason: "
    "--waive-template REASON"
)


def write_checkpoint(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json").replace("_jinja", ".jinja")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return folder


def write_package(folder: Path, template: str, with_tools: str | None = None) -> Path:
    stored = {"chat_template": template, "tool_template": with_tools, "special_tokens": {"eos_token": "<|im_end|>"}}
    (folder / "chat_format.json").write_text(json.dumps(stored | {"split_special_tokens": False}))
    return folder


def test_the_refusal_says_what_was_found_where_and_what_to_do(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, chat_template_jinja="{# chat #}\n" + HIDDEN)
    with pytest.raises(SourceError) as caught:
        judge_templates(tmp_path, "org/name", None)
    assert str(caught.value) == LINE


def test_every_template_is_looked_at_wherever_it_stands(tmp_path: Path) -> None:
    settings = write_checkpoint(tmp_path / "settings", tokenizer_config_json=json.dumps({"chat_template": HIDDEN}))
    named = write_checkpoint(
        tmp_path / "named", chat_template_jinja=CHATML, additional_chat_templates__rag_jinja=HIDDEN
    )
    with pytest.raises(SourceError, match=r"^line 1 of the chat template of x: "):
        judge_templates(settings, "x", None)
    with pytest.raises(SourceError, match=r"^line 1 of the chat template rag of x: "):
        judge_templates(named, "x", None)


@pytest.mark.parametrize(("template", "with_tools"), [(HIDDEN, None), (CHATML, HIDDEN)])
def test_a_package_is_judged_by_the_templates_that_it_renders(
    tmp_path: Path, template: str, with_tools: str | None
) -> None:
    write_package(tmp_path, template, with_tools)
    with pytest.raises(CheckError, match="which depends on the words of a message"):
        judge_templates(tmp_path, "name", None, failure=CheckError)


def test_a_reason_counts_where_one_was_needed_and_is_kept_with_what_was_found(tmp_path: Path) -> None:
    report = judge_templates(write_package(tmp_path, HIDDEN), "name", "it is our own")
    assert (report.waiver, report.template) == ("it is our own", HIDDEN)
    assert report.finding == f"line 1 of the chat template of name: {TAG}, which depends on the words of a message"
    report = judge_templates(write_package(tmp_path, CHATML), "name", "it is our own")
    assert (report.waiver, report.finding) == (None, None)


def test_the_bases_template_is_another_one_or_the_same(tmp_path: Path) -> None:
    write_package(tmp_path, CHATML)
    assert not judge_templates(tmp_path, "name", None).differs_from_base
    assert not judge_templates(tmp_path, "name", None, CHATML).differs_from_base
    assert judge_templates(tmp_path, "name", None, CHATML + "x").differs_from_base


def test_special_tokens_count_as_markup_only_if_both_files_say_the_same(tmp_path: Path) -> None:
    settings = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "pad_token": None, "chat_template": "x"}
    write_checkpoint(
        tmp_path,
        tokenizer_config_json=json.dumps(settings),
        special_tokens_map_json=json.dumps({"eos_token": "</s>", "bos_token": "http://evil.example"}),
    )
    assert read_templates(tmp_path).specials == {"eos_token": "</s>"}


ATTACKS = {  # on the sandbox, which renders the template; a request that meets one of those is refused with these words
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "access to attribute '__class__' of 'str' object is unsafe",
    "{{ messages.__init__.__globals__ }}": "access to attribute '__init__' of 'list' object is unsafe",
    "{% for i in range(10**9) %}{{ i }}{% endfor %}": "Range too big",
    "{{ 'x' * 80000000 }}": "makes more than 67108864 characters",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}": "recursion depth",
    "{{ raise_exception('refused by the template') }}": "refused by the template",
    "{% include 'x' %}": "no loader",
    "{% import 'x' as y %}": "no loader",
}


@pytest.mark.parametrize("template", ATTACKS)
def test_an_attack_on_the_sandbox_is_refused_by_name(tmp_path: Path, template: str) -> None:
    rendering = ChatTemplate(write_package(tmp_path, template), 2.0)
    with pytest.raises(Exception, match=ATTACKS[template]):
        rendering.render([{"role": "user", "content": "Hi"}])
