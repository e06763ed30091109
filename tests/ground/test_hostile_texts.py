"""Templates and tokenizers that take all memory or never end: an error within seconds, wherever they are run."""

import json
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile_children import Source, abort, encode_texts_without_end, hoard, stand_still, try_folder
from hostile_texts import HOSTILE_TEMPLATES, UNCOMPILABLE_TEMPLATES, hostile_rules
from jinja2 import TemplateError
from places import HARNESS, PROJECT
from small_tokenizers import CHATML, QWEN2, Rules, byte_level, split, write_source
from transformers.utils.chat_template_utils import _compile_jinja_template

from slmpack.checkpoint.chat_templates import require_templates
from slmpack.errors import SourceError
from slmpack.log.chat_model import (
    MOST_STUCK,
    ChatTemplate,
    TemplateFileError,
    TemplateLimitError,
    TextTokenizer,
    TokenizerError,
)
from slmpack.machine.child import limited, run_in_child

HI = [{"role": "user", "content": "Hi"}]
MEMORY = 700 << 20  # beyond what the tests' own process has


class TooSlow(BaseException):
    """Raised by the clock: no `except Exception` on the way takes it for a refusal."""


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """Bound the memory and time of a test, so that one that fails does not take the machine with it."""

    def end(*_: object) -> None:
        raise TooSlow

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    now = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    before = signal.signal(signal.SIGALRM, end)
    resource.setrlimit(resource.RLIMIT_DATA, (now + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, 900)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.fixture(scope="module")
def rules() -> Rules:
    return byte_level(split(QWEN2), specials=("<|endoftext|>", "<|im_end|>"))


def write_chat_format(folder: Path, template: str) -> None:
    settings: Rules = {
        "chat_template": template,
        "tool_template": None,
        "special_tokens": {},
        "split_special_tokens": False,
    }
    (folder / "chat_format.json").write_text(json.dumps(settings))


def template_of(folder: Path, text: str, limit_seconds: float = 10.0) -> ChatTemplate:
    write_chat_format(folder, text)
    return ChatTemplate(folder, limit_seconds)


def tokenizer_of(folder: Path, rules: Rules, limit_seconds: float = 30.0) -> TextTokenizer:
    write_chat_format(folder, "")
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    return TextTokenizer(folder, limit_seconds)


def backtracking(rules: Rules) -> Rules:
    """Return rules that take seconds for `SLOW_TEXT`, and hours for ten times as much."""
    steps = [split("i*i*[a-h]"), rules["pre_tokenizer"]]
    return {**rules, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


# ---------------------------------------------------------------------------------------------- the wrapper's template


@pytest.mark.parametrize("name", HOSTILE_TEMPLATES)
def test_a_rendering_that_would_take_all_memory_or_never_end_is_an_error(tmp_path: Path, name: str) -> None:
    template = template_of(tmp_path, HOSTILE_TEMPLATES[name], limit_seconds=0.5)
    if name == "namespaces that hold each other":  # a namespace says nothing of what it holds
        assert template.render(HI) == str(len("<Namespace>"))
        return
    with pytest.raises((TemplateLimitError, TemplateError)) as caught:
        template.render(HI)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_a_thread_renders_the_next_chat_after_one_that_had_no_end(tmp_path: Path) -> None:
    loops = "{% for a in range(1000) %}{% for b in range(99999 if messages[0].content == 'x' else 0) %}{% endfor %}"
    template = template_of(tmp_path, loops + "{% endfor %}ok", limit_seconds=1.0)
    with pytest.raises(
        TemplateLimitError, match=r"^the chat template .*; .* is expected; shorten the chat, or correct"
    ):
        template.render([{"role": "user", "content": "x"}])
    assert template.render(HI) == "ok"


@pytest.mark.parametrize("name", UNCOMPILABLE_TEMPLATES)
def test_a_template_that_is_too_large_or_too_deep_is_not_compiled(tmp_path: Path, name: str) -> None:
    with pytest.raises(TemplateFileError, match=r"^the chat template in chat_format\.json .* is expected; build"):
        template_of(tmp_path, UNCOMPILABLE_TEMPLATES[name])
    (tmp_path / "chat_template.jinja").write_text(UNCOMPILABLE_TEMPLATES[name])
    with pytest.raises(SourceError, match=r"^the chat template in .*chat_template\.jinja (does not compile|has 1,4)"):
        require_templates(tmp_path)


ORDINARY = (
    "{{ 'ab'|center(10) }}|{{ 'a'.ljust(5) }}|{{ '7'.zfill(3) }}|{{ '%5d%%|%-4s|%s' % (1, 'a', [1, 'b']) }}",
    "{{ '{:>5}|{a[b]}|{!r}'.format('x', 'y', a={'b': 2}) }}|{{ '{a}'.format_map({'a': 1}) }}|{{ '%s'|format(1) }}",
    "{{ 'a\nb'|indent }}|{{ 'a\nb'|indent(2, true) }}|{{ 'aXbX'|replace('X', '--') }}|{{ 'aXbX'.replace('X', '', 1) }}",
    "{{ messages|map(attribute='content')|join(', ') }}|{{ '-'.join(['a', 'b']) }}|{{ [1]|join }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ (messages + [{'a': 1}])[1:]|tojson(indent=2) }}|{{ messages|tojson }}",
    "{{ [3, 1, 2]|sort|first }}|{{ [[1], [2]]|sum(start=[]) }}",
    "{{ 'b a'.split()|reverse|list }}|{{ range(5)|batch(2)|list }}",
    "{% set ns = namespace(t='', l=[]) %}{% for m in messages if m.role %}"
    "{% set ns.t = ns.t ~ loop.index ~ m.content %}"
    "{% set ns.l = ns.l + [m] %}{% endfor %}{{ ns.t }}{{ ns.l }}{{ ns.l[::-1]|length }}",
    "{% macro f(x, n=2) %}{{ x * n }}{% endmacro %}{{ f('ab') }}{{ f(*['x', 3]) }}{{ 2 ** 9 }}{{ 7 % 4 }}{{ -7 // 2 }}",
    "{{ (1, 'a') }}{{ {'a': [1, none]} }}{{ dict(a=1) }}{{ 1.5|round }}{{ 1234.567|round(2) }}{{ '12'|int + 1 }}",
    "{{ messages[0]['content'].upper() }}{{ messages|map('length')|list }}{{ 'x' ~ none ~ 1 ~ [2] }}{{ missing }}",
    "{% set b %}{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}{{ b|trim }}{% filter upper %}abc{% endfilter %}",
    "{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{{ loop.last }}{% endfor %}{{ 'é' in 'café' }}",
    "{% autoescape true %}{{ '<a>' ~ '&' }}{% endautoescape %}{{ 'a b'|title }}{{ 'a<b'|e }}{{ 'x y z'|truncate(3) }}",
    "{{ [1, 2, 2]|unique|list }}{{ [1, 2]|max }}{{ 'abc'|list }}{{ 'abc'[::-1] }}{{ 'abc'[1] }}{{ [1, 2][-1] }}",
)  # fmt: skip


@pytest.mark.parametrize("template", ORDINARY)
def test_what_may_grow_is_computed_as_transformers_does(tmp_path: Path, template: str) -> None:
    expected = _compile_jinja_template(template).render(messages=HI, tools=None, documents=None)
    assert template_of(tmp_path, template).render(HI) == expected


# ---------------------------------------------------------------------------------------------- the wrapper's tokenizer


@pytest.mark.parametrize("name", [
    "a normaliser that multiplies", "a normaliser that puts text at every place", "a normaliser that never ends",
    "a pre-tokenizer that never ends", "a post-processor that repeats",
])  # fmt: skip
def test_a_text_that_the_rules_make_too_much_of_is_an_error(tmp_path: Path, rules: Rules, name: str) -> None:
    tokenizer = tokenizer_of(tmp_path, hostile_rules(rules)[name])
    with pytest.raises(TokenizerError, match=r"tokenizer.*; .* expected; .*build the package again$"):
        tokenizer.encode("i" * 6000 + "! a z", add_special_tokens=True)


def test_ids_that_the_rules_make_too_much_of_are_an_error(tmp_path: Path, rules: Rules) -> None:
    tokenizer = tokenizer_of(tmp_path, hostile_rules(rules)["a decoder that multiplies"])
    with pytest.raises(TokenizerError, match=r"^tokenizer\.json has rules that make up to"):
        tokenizer.decode(tokenizer.encode("iiii"))


@pytest.mark.usefixtures("importable")
def test_a_text_that_the_tokenizer_does_not_end_with_is_an_error_and_others_are_answered(
    tmp_path: Path, rules: Rules
) -> None:
    ids = str(tokenizer_of(tmp_path, rules).encode("Hi"))
    tokenizer_of(tmp_path, backtracking(rules))
    told, _ = run_in_child(
        encode_texts_without_end, Source(folder=tmp_path), log=tmp_path / "log", limit_seconds=600,
        failure=SourceError, doing="the trial",
    )  # fmt: skip
    first, answered, second, refused = told.lines
    assert MOST_STUCK == 2
    assert {first, second} == {first}
    assert first.startswith("tokenizer.json does not end with a text within 3 s; token ids")
    assert answered == ids
    assert refused.startswith("tokenizer.json has 2 texts that it does not end with")


def test_a_tokenizer_on_which_the_library_panics_is_an_error(tmp_path: Path, rules: Rules) -> None:
    panics = {**rules, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    with pytest.raises(TokenizerError, match=r"^the tokenizer cannot load this: .*; .* is expected; build"):
        tokenizer_of(tmp_path, panics)


# ---------------------------------------------------------------------------------------------- children


def in_child(function: Callable[[Source], Source], folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        run_in_child(
            function, Source(folder=folder), log=folder / "log", limit_seconds=600, failure=SourceError,
            doing="the trial",
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HARNESS}:{PROJECT}")


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(("function", "found"), [
    (hoard, "the template needed more than 0.2 GB of memory (in the trial); one that ends soon and takes little"),
    (stand_still, "the tokenizer did not end within 0.5 s (in the trial); one that ends soon and takes little"),
    (abort, "the tokenizer needed more than 4.0 GB of memory, or crashed what reads it (in the trial); one that"),
])  # fmt: skip
def test_a_child_that_breaks_a_limit_ends_and_the_error_names_the_file(
    tmp_path: Path, rules: Rules, function: Callable[[Source], Source], found: str
) -> None:
    tokenizer_of(tmp_path, backtracking(rules))
    assert in_child(function, tmp_path).startswith(found)


def test_nothing_is_limited_in_a_process_that_is_no_child() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited("a template", seconds=0.01, size_bytes=1):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(("template", "change", "message"), [
    (HOSTILE_TEMPLATES["a width"], {}, r"^the chat template in \S+chat_template\.jinja needed more than 1\.0 GB"),
    (CHATML, {"pre_tokenizer": split("i*i*i*i*[a-h]")}, r"tokenizer\.json fails on 'i+' \(.*; a fast tokenizer; fetch"),
    (CHATML, {"model": {"type": "BPE", "vocab": {"é": 0, "a": 1, "aé": 2}, "merges": [["a", "é"]],
                        "continuing_subword_prefix": "x"}}, r"tokenizer\.json needed more than 1\.0 GB.* or crashed"),
])  # fmt: skip
def test_a_checkpoint_with_hostile_texts_is_refused_before_anything_is_built(
    tmp_path: Path, rules: Rules, template: str, change: Rules, message: str
) -> None:
    named = {"eos_token": "<|im_end|>"}
    source = write_source(tmp_path / "source", {**rules, **change}, template, named, (), "PreTrainedTokenizerFast")
    require_templates(source)  # compiles it, and computes nothing
    assert re.search(message, in_child(try_folder, source))
