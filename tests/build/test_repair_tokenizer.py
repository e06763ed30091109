"""Repair: what the runtime would read wrongly is spelt so that it reads it right, and nothing else is touched."""

import json
import re
from pathlib import Path
from typing import Any

from small_tokenizers import CHATML, QWEN2, byte_level, sentencepiece, split, write_package, write_source

from slmpack.build.repair_tokenizer import repair_tokenizer
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.prove.parity.check import ParityRequest, parity_of
from slmpack.prove.parity.pair import Pair
from slmpack.prove.parity.runtime_reading import compare_runtime

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NAMED = {"eos_token": "<|im_end|>"}
DIGITS = {"type": "Digits", "individual_digits": True}
HYBRID_STEPS = [
    {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
]  # fmt: skip
TRIMMED_CHAT = (
    "{% for m in messages %}\n  {% if m['role'] == 'user' %}\n<|im_start|>user\n{{ m['content'] }}<|im_end|>\n"
    "  {% else %}\n{# any other #}\n<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n  {% endif %}\n"
    "{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}\n"
)


def folders(
    tmp_path: Path, rules: dict[str, Any], template: str = CHATML, kind: str = "PreTrainedTokenizerFast"
) -> tuple[Path, Path]:
    source = write_source(tmp_path / "source", rules, template, NAMED, ("<|im_end|>",), kind)
    return write_package(tmp_path / "package", source, ("<|im_end|>",)), source


def repair(package: Path, source: Path) -> tuple[str, ...]:
    return repair_tokenizer(package, source, read_tokenizer(source))


def read_otherwise(package: Path, source: Path) -> tuple[int, int]:
    """Return how many texts and how many chats the runtime by itself reads otherwise than the wrapper."""
    texts, chats = re.findall(r"(\d+) of \d+ (?:texts|chats) otherwise", compare_runtime(Pair(package, source)).found)
    return int(texts), int(chats)


def test_leaves_alone_what_the_runtime_reads_right(tmp_path: Path) -> None:
    package, source = folders(tmp_path, byte_level(split(QWEN2), specials=SPECIALS))
    before = {path.name: path.read_bytes() for path in package.iterdir()}
    assert repair(package, source) == ()
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


def test_a_decoder_left_by_a_gguf_conversion_becomes_byte_level(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    rules["decoder"] = {"type": "Sequence", "decoders": [*HYBRID_STEPS, rules["decoder"]]}
    package, source = folders(tmp_path, rules)
    texts, _ = read_otherwise(package, source)
    assert texts > 1000
    assert repair(package, source) == (
        "tokenizer.json decodes by ByteLevel alone, which the runtime knows, with the same result",
    )
    assert read_otherwise(package, source)[0] < texts / 20
    assert repair(package, source) == ()


def test_digits_and_byte_level_words_become_split(tmp_path: Path) -> None:
    rules = byte_level(DIGITS, specials=SPECIALS, own_expression=True)
    package, source = folders(tmp_path, rules)
    texts, _ = read_otherwise(package, source)
    assert repair(package, source) == (
        "tokenizer.json splits words by Split alone, which the runtime knows, with the same result",
    )
    assert read_otherwise(package, source)[0] < texts / 10


def test_the_checkpoints_own_file_comes_back_where_the_builder_changed_it(tmp_path: Path) -> None:
    package, source = folders(tmp_path, sentencepiece(SPECIALS), kind="LlamaTokenizer")
    changed = json.loads((package / "tokenizer.json").read_text())["pre_tokenizer"]
    assert changed is not None  # the class put it there
    told = repair(package, source)
    assert told[0].startswith("tokenizer.json is the checkpoint's own")
    assert told[1].startswith("tokenizer_config.json names PreTrainedTokenizerFast, not LlamaTokenizer")
    assert (package / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    parity_of(ParityRequest(package=package, snapshot=source))  # raises where a text differs


def test_a_change_that_would_change_the_ids_is_not_made(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    replaced = {"type": "Replace", "pattern": {"String": "Ġ"}, "content": "_"}
    rules["decoder"] = {"type": "Sequence", "decoders": [replaced, rules["decoder"]]}
    package, source = folders(tmp_path, rules)
    before = (package / "tokenizer.json").read_bytes()
    assert repair(package, source) == ()
    assert (package / "tokenizer.json").read_bytes() == before


def test_white_space_that_transformers_trims_is_taken_out_of_the_template(tmp_path: Path) -> None:
    package, source = folders(tmp_path, byte_level(split(QWEN2), specials=SPECIALS), TRIMMED_CHAT)
    _, chats = read_otherwise(package, source)
    assert repair(package, source) == (
        "the chat template has the white space taken out that transformers trims and the runtime does not",
    )
    assert read_otherwise(package, source)[1] < chats / 2
