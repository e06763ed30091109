"""The wrapper's text: ids, decoded answers and rendered chats are those of transformers, whatever the runtime does."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from small_tokenizers import CHATML, QWEN2, Rules, byte_level, sentencepiece, split, write_package, write_source

from slmpack.checkpoint.texts.sample_texts import CORPUS
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.log.chat_model import MOST_HELD_TOKENS, ChatTemplate, TextStream, TextTokenizer, TokenizerError

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NAMED = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}
ADDED = {"special": False, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
REASONING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}<|im_start|>assistant\n{{ c }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]


def source_of(folder: Path, rules: Rules, template: str = CHATML) -> tuple[Any, Path]:
    """Return transformers' tokenizer and the package's folder."""
    source = write_source(folder / "source", rules, template, NAMED, ("<|im_end|>",), "PreTrainedTokenizerFast")
    package = write_package(folder / "package", source, ("<|im_end|>",))
    return read_tokenizer(source), package


def template_of(folder: Path, template: str) -> ChatTemplate:
    return ChatTemplate(source_of(folder, byte_level(split(QWEN2), specials=SPECIALS), template)[1])


@pytest.fixture(scope="module")
def byte_tokens(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Byte-level merges."""
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    return TextTokenizer(source_of(tmp_path_factory.mktemp("bytes"), rules)[1])


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """SentencePiece's way, with byte fallback."""
    return TextTokenizer(source_of(tmp_path_factory.mktemp("pieces"), sentencepiece(SPECIALS))[1])


# ---------------------------------------------------------------------------------------------- chats


def test_earlier_reasoning_leaves_a_later_turn_as_in_transformers(tmp_path: Path) -> None:
    source, package = source_of(tmp_path, byte_level(split(QWEN2), specials=SPECIALS), REASONING)
    chat = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>" + "let me count. " * 20 + "</think>4"},
        {"role": "user", "content": "and 3+3?"},
    ]
    prompt = ChatTemplate(package).render(chat)
    assert "count" not in prompt
    expected = source.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert TextTokenizer(package).encode(prompt) == expected


def test_reasoning_is_read_by_the_name_that_the_template_has(tmp_path: Path) -> None:
    template = template_of(tmp_path, "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.thinking }}]{% endfor %}")
    assert template.render([{"role": "assistant", "content": "4", "reasoning": "2+2"}]) == "[2+2|2+2]"


@pytest.mark.parametrize(("template", "expected"), [
    ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
    ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
    ("{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n", "Hi\n"),
    ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
    ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hi!"),
    ("{{ bos_token }}{{ eos_token }}{{ unk_token }}", "<|endoftext|><|im_end|>"),
    ("{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}", "2"),
    ("{{ dict(a=1) | tojson }}{{ dict.fromkeys('ab', 0) | tojson }}", '{"a": 1}{"a": 0, "b": 0}'),
    ("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}", "TrueTrueTrue"),
])  # fmt: skip
def test_a_template_has_what_transformers_gives_it(tmp_path: Path, template: str, expected: str) -> None:
    source, package = source_of(tmp_path, byte_level(split(QWEN2), specials=SPECIALS), template)
    assert ChatTemplate(package).render(HI) == expected
    assert source.apply_chat_template(HI, tokenize=False, add_generation_prompt=True) == expected


def test_a_template_writes_the_local_date(tmp_path: Path) -> None:
    before = datetime.now().date()
    rendered = template_of(tmp_path, "{{ strftime_now('%Y-%m-%d') }}").render(HI)
    assert rendered in {each.isoformat() for each in (before, datetime.now().date())}  # midnight may be in between


@pytest.mark.parametrize("template", [
    "{{ raise_exception('no') }}", "{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__ }}", "{% set n = namespace(_a=1) %}", "{{ dict.mro() }}", "{{ range(10**9) }}",
    "{{ namespace.__init__.__globals__ }}",
])  # fmt: skip
def test_a_template_that_reaches_out_of_the_sandbox_or_refuses_gives_no_prompt(tmp_path: Path, template: str) -> None:
    with pytest.raises(Exception, match=r"."):
        template_of(tmp_path, template).render(HI)


def test_no_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="no message"):
        template_of(tmp_path, CHATML).render([])


def test_the_template_for_tools_is_taken_where_there_are_tools(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    source = write_source(tmp_path / "source", rules, CHATML, NAMED, ("<|im_end|>",), "PreTrainedTokenizerFast")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | tojson }}")
    template = ChatTemplate(write_package(tmp_path / "package", source, ("<|im_end|>",)))
    assert template.render(HI).startswith("<|im_start|>user\nHi")
    assert template.render(HI, [{"name": "f"}]) == '[{"name": "f"}]'


# ---------------------------------------------------------------------------------------------- ids


def normalise(rules: Rules) -> None:
    rules["normalizer"] = {"type": "NFC"}


def add_token(**flags: bool) -> Callable[[Rules], None]:
    def change(rules: Rules) -> None:
        token = {**ADDED, "id": max(token["id"] for token in rules["added_tokens"]) + 1, "content": "<t>", **flags}
        rules["added_tokens"].append(token)

    return change


@pytest.mark.parametrize(("change", "text"), [
    (normalise, "e\u0301 cafe\u0301"),
    (add_token(lstrip=True), "a  <t>b"),
    (add_token(rstrip=True), "a<t> \n b"),
    (add_token(single_word=True), "a<t> <t> <t>b"),
    (add_token(normalized=True), "x <t>\u0301 <t>"),
    (lambda rules: None, "".join(map(chr, range(1, 32))) + "\x7f\x85\u200b\ufeff"),
    (lambda rules: None, "def f():\n    a \n\n  b\n \t \r\n c"),
])  # fmt: skip
def test_ids_are_those_of_transformers(tmp_path: Path, change: Callable[[Rules], None], text: str) -> None:
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    change(rules)
    source, package = source_of(tmp_path, rules)
    tokenizer = TextTokenizer(package)
    assert tokenizer.encode(text) == source(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokenizer.encode(text)) == source.decode(source(text)["input_ids"])


def test_long_text_of_sentencepiece_is_read_whole(tmp_path: Path) -> None:
    source, package = source_of(tmp_path, sentencepiece(SPECIALS))
    text = "Donaudampfschifffahrtsgesellschaft" * 40 + "▁▁ _"
    assert TextTokenizer(package).encode(text) == source(text, add_special_tokens=False)["input_ids"]


def test_truncation_and_padding_of_the_file_change_no_prompt(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    rules["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    rules["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!",
    }  # fmt: skip
    source, package = source_of(tmp_path, rules)
    text = "The quick brown fox"
    assert TextTokenizer(package).encode(text) == source(text)["input_ids"]


def test_special_tokens_are_text_where_the_source_splits_them(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    folder = write_source(tmp_path / "source", rules, CHATML, NAMED, ("<|im_end|>",), "PreTrainedTokenizerFast")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "split_special_tokens": True}))
    package = write_package(tmp_path / "package", folder, ("<|im_end|>",))
    expected = read_tokenizer(folder)("<|im_end|>")["input_ids"]
    assert len(expected) > 1
    assert TextTokenizer(package).encode("<|im_end|>") == expected


# ---------------------------------------------------------------------------------------------- streams


def streamed(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer, [])
    return [*map(stream.push, ids), stream.rest()]


@pytest.mark.parametrize("kind", ["byte_tokens", "pieces"])
def test_a_stream_says_what_all_tokens_decoded_at_once_say(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_tokens", "pieces"])
def test_every_cut_of_a_text_is_a_beginning_of_it_and_no_half_character(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    text = "Grüße 👩‍👩‍👧‍👦 你好 \ufffd 🧿!"
    ids = tokenizer.encode(text)
    for count in range(len(ids) + 1):
        said = "".join(streamed(tokenizer, ids[:count]))
        assert text.startswith(said)
    assert said == text


@pytest.mark.parametrize("kind", ["byte_tokens", "pieces"])
def test_a_replacement_character_that_was_written_stays_at_the_end(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    assert "".join(streamed(tokenizer, tokenizer.encode("odd \ufffd"))) == "odd \ufffd"


def test_text_comes_as_soon_as_its_characters_are_whole(byte_tokens: TextTokenizer) -> None:
    assert streamed(byte_tokens, byte_tokens.encode("a b"))[:2] == ["a", " b"]
    smile = byte_tokens.encode("x😀")
    assert [bool(piece) for piece in streamed(byte_tokens, smile)] == [True, *([False] * (len(smile) - 2)), True, False]


@pytest.mark.parametrize("kind", ["byte_tokens", "pieces"])
def test_bytes_that_are_no_text_neither_stop_a_stream_nor_swallow_what_follows(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    (stray,) = tokenizer.encode("🧿")[-1:]
    ids = [*tokenizer.encode("so"), *([stray] * 5 * MOST_HELD_TOKENS), *tokenizer.encode(" it goes on")]
    pieces = streamed(tokenizer, ids)
    assert re.fullmatch("so\ufffd+ +it goes on", "".join(pieces))
    assert max(map(len, pieces)) <= MOST_HELD_TOKENS


def test_a_tokenizer_that_panics_is_an_error_as_any_other(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    strip = {"type": "Strip", "content": ".", "start": 0, "stop": 1}  # tokenizers 0.23 panics where the text is empty
    rules["decoder"] = {"type": "Sequence", "decoders": [rules["decoder"], strip]}
    tokenizer = TextTokenizer(source_of(tmp_path, rules)[1])
    with pytest.raises(TokenizerError, match=r"^the tokenizer cannot decode this: .*; build the package again$"):
        tokenizer.decode([])


def test_special_tokens_have_no_text_and_no_weight_in_what_follows(pieces: TextTokenizer) -> None:
    (end,) = pieces.encode("<|im_end|>")[-1:]
    hello = pieces.encode("hello")
    assert "".join(streamed(pieces, [end, *hello, end, *hello])) == pieces.decode([end, *hello, end, *hello])


@pytest.mark.parametrize("kind", ["byte_tokens", "pieces"])
def test_the_bytes_of_tokens_are_the_text_that_they_stand_for(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    text = "a café, 東京, 🗼 and naïve words"
    spelt = b"".join(tokenizer.bytes_of(token) for token in tokenizer.encode(text))
    assert spelt.decode().strip() == text
