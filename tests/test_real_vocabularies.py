"""Published vocabularies: texts and ids made from them read the same by both readers, and find planted differences."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from real_vocabularies import VOCABULARIES, real_vocabulary
from small_tokenizers import Rules, vocabulary
from tokenizers import Tokenizer

from slmpack.json_file import write_json
from slmpack.tokenizer_pair import read_tokenizer
from slmpack.tokenizer_texts import MOST_SEQUENCES, MOST_TEXTS, id_sequences, random_texts, texts_of

RANDOM_TEXTS = 100_000
pytestmark = pytest.mark.slow
EVERY = pytest.mark.parametrize("name", VOCABULARIES)


class OtherReader:
    """What is held against transformers: `tokenizers` on the file itself."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [each.ids for each in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, sequences: list[list[int]]) -> list[str]:
        return list(self._tokenizer.decode_batch(sequences, skip_special_tokens=True))


@EVERY
def test_both_readers_of_a_published_vocabulary_give_the_same(name: str, workspace: Path, tmp_path: Path) -> None:
    rules = real_vocabulary(name, workspace)
    write_json(tmp_path / "tokenizer.json", rules)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    source, other = read_tokenizer(tmp_path), OtherReader(tmp_path)
    texts = [*texts_of(rules), *random_texts(RANDOM_TEXTS, 20, [each["content"] for each in rules["added_tokens"]])]
    expected = source(texts, add_special_tokens=False)["input_ids"]
    assert [text for text, a, b in zip(texts, other.encode(texts), expected, strict=True) if a != b] == []
    sequences = [list(ids) for ids in id_sequences(rules)]
    decoded = source.batch_decode(sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert other.decode(sequences) == decoded


@EVERY
def test_texts_and_ids_of_a_published_vocabulary_are_bounded(name: str, workspace: Path) -> None:
    rules = real_vocabulary(name, workspace)
    texts, sequences = texts_of(rules), id_sequences(rules)
    assert len(texts) <= MOST_TEXTS
    assert len(sequences) <= MOST_SEQUENCES
    assert {each for ids in sequences for each in ids} == set(vocabulary(rules).values())
    written = "\0".join(texts)
    assert [token["content"] for token in rules["added_tokens"] if token["content"] not in written] == []


def flag(name: str, of: Callable[[dict[str, Any]], bool] = lambda token: True) -> Callable[[Rules], None]:
    def change(rules: Rules) -> None:
        token = [token for token in rules["added_tokens"] if of(token)][-1]
        token[name] = not token[name]

    return change


def expression(own: str, other: str) -> Callable[[Rules], None]:
    def change(rules: Rules) -> None:
        steps = [
            step for step in rules["pre_tokenizer"]["pretokenizers"] if own in step.get("pattern", {}).get("Regex", "")
        ]
        steps[0]["pattern"]["Regex"] = steps[0]["pattern"]["Regex"].replace(own, other)

    return change


def without(step: str, *path: Any) -> Callable[[Rules], None]:
    def change(rules: Rules) -> None:
        place: Any = rules[step]
        for key in path[:-1]:
            place = place[key]
        if path:
            place.pop(path[-1])
        else:
            rules[step] = None

    return change


def without_merge(rules: Rules) -> None:
    del rules["model"]["merges"][0]


PLANTED: list[tuple[str, str, Callable[[Rules], None]]] = [
    ("deepseek", "lstrip of the last token", flag("lstrip")),
    ("deepseek", "rstrip of the last token", flag("rstrip")),
    ("deepseek", "single_word of the last special token", flag("single_word", lambda token: bool(token["special"]))),
    ("deepseek", "digits", expression(r"\p{N}{1,3}", r"\p{N}{1,2}")),
    ("deepseek", "one Split less", without("pre_tokenizer", "pretokenizers", 1)),
    ("deepseek", "line ends", expression(r"\s*[\r\n]+", r"[\r\n]+")),
    ("deepseek", "marks in words", expression(r"[\p{L}\p{M}]+", r"\p{L}+")),
    ("deepseek", "signs and letters", expression("[A-Za-z]+|", "[A-Z]+|")),
    ("deepseek", "a merge less", without_merge),
    ("qwen", "NFC", without("normalizer")),
    ("qwen", "digits", expression(r"\p{N}|", r"\p{N}{1,3}|")),
    ("qwen", "line ends", expression(r"\s*[\r\n]+", r"\s*[\n]+")),
    ("qwen", "the case of contractions", expression("(?i:", "(?:")),
    ("qwen", "a contraction", expression("|'ve", "")),
    ("qwen", "the last space", expression(r"\s+(?!\S)|", "")),
    ("tekken", "capitals", expression(r"\p{Lu}\p{Lt}\p{Lm}", r"\p{Lu}\p{Lm}")),
    ("tekken", "a slash after signs", expression(r"[\r\n/]*", r"[\r\n]*")),
    ("tekken", "line ends", expression(r"\s*[\r\n]+", r"[\r\n]+")),
    ("mistral", "the first space", without("normalizer", "normalizers", 0)),
    ("mistral", "bytes", lambda rules: rules["model"].update(byte_fallback=False)),
    ("mistral", "a merge less", without_merge),
    ("mistral", "rstrip", flag("rstrip")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "planted", "change"), PLANTED, ids=[f"{each[0]}: {each[1]}" for each in PLANTED])
def test_ids_of_a_published_vocabulary_with_one_rule_changed_are_found(
    name: str, planted: str, change: Callable[[Rules], None], workspace: Path
) -> None:
    own = real_vocabulary(name, workspace)
    other = deepcopy(own)
    change(other)
    texts = list(texts_of(own))
    found, expected = (
        [each.ids for each in Tokenizer.from_str(json.dumps(rules)).encode_batch(texts, add_special_tokens=False)]
        for rules in (other, own)
    )
    differences = [text for text, a, b in zip(texts, found, expected, strict=True) if a != b]
    print(f"{name}, {planted}: {len(differences)} texts, such as {differences[:2]}")
    assert len(differences) > 0
