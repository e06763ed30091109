"""Published vocabularies: texts and ids made from them are read alike by both readers, and find planted faults."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from real_vocabularies import VOCABULARIES, real_vocabulary
from small_tokenizers import Rules, vocabulary
from tokenizers import Tokenizer

from slmpack.checkpoint.chat_format import CHAT_FORMAT
from slmpack.checkpoint.texts.tokenizer_texts import MOST_SEQUENCES, MOST_TEXTS, id_sequences, random_texts, texts_of
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.log.chat_model import TextTokenizer
from slmpack.machine.json_file import write_json

TOGETHER = 500
RANDOM_TEXTS = 100_000 // len(VOCABULARIES)  # others for each
SEEDS = {name: seed for seed, name in enumerate(VOCABULARIES)}
pytestmark = [pytest.mark.slow, pytest.mark.release]
EVERY = pytest.mark.parametrize("name", VOCABULARIES)


@EVERY
def test_the_wrapper_reads_a_published_vocabulary_as_transformers_does(
    name: str, workspace: Path, tmp_path: Path
) -> None:
    rules = real_vocabulary(name, workspace)
    write_json(tmp_path / "tokenizer.json", rules)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    source = read_tokenizer(tmp_path)
    no_chats: dict[str, object] = {"chat_template": "", "tool_template": None, "special_tokens": {}}
    write_json(tmp_path / CHAT_FORMAT, no_chats | {"split_special_tokens": False})
    wrapper = TextTokenizer(tmp_path, limit_seconds=None)  # in this thread: another one a text reads it no otherwise
    texts = [
        *texts_of(rules),
        *random_texts(RANDOM_TEXTS, SEEDS[name], [each["content"] for each in rules["added_tokens"]]),
    ]
    expected = source(texts, add_special_tokens=False)["input_ids"]
    assert [text for text, ids in zip(texts, expected, strict=True) if wrapper.encode(text) != ids] == []
    sequences = [list(ids) for ids in id_sequences(rules)]
    decoded = source.batch_decode(sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert [wrapper.decode(ids) for ids in sequences] == decoded


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
        patterns = [step["pattern"] for step in rules["pre_tokenizer"]["pretokenizers"] if step["type"] == "Split"]
        pattern = next(pattern for pattern in patterns if own in pattern["Regex"])
        pattern["Regex"] = pattern["Regex"].replace(own, other)

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
    rules["model"]["merges"] = rules["model"]["merges"][1:]


PLANTED: dict[str, dict[str, Callable[[Rules], None]]] = {
    "deepseek": {
        "lstrip of the last token": flag("lstrip"),
        "rstrip of the last token": flag("rstrip"),
        "single_word of the last special token": flag("single_word", lambda token: bool(token["special"])),
        "digits by twos": expression(r"\p{N}{1,3}", r"\p{N}{1,2}"),
        "one Split less": without("pre_tokenizer", "pretokenizers", 1),
        "line ends without the space before": expression("\\s*[\r\n]+", "[\r\n]+"),
        "marks out of words": expression(r"[\p{L}\p{M}]+", r"\p{L}+"),
        "signs before small letters": expression("[A-Za-z]+|", "[A-Z]+|"),
        "a merge less": without_merge,
    },
    "qwen": {
        "no NFC": without("normalizer"),
        "line ends without the space before": expression(r"\s*[\r\n]+", r"[\r\n]+"),
        "contractions in one case": expression("(?i:", "(?:"),
        "one contraction less": expression("|'ve", ""),
        "the last space": expression(r"\s+(?!\S)|", ""),
        "a merge less": without_merge,
    },
    "tekken": {
        "marks out of words": expression(r"\p{Lo}\p{M}]", r"\p{Lo}]"),
        "a slash after signs": expression(r"[\r\n/]*", r"[\r\n]*"),
        "line ends without the space before": expression(r"\s*[\r\n]+", r"[\r\n]+"),
        "a merge less": without_merge,
    },
    "mistral": {
        "the first space": without("normalizer", "normalizers", 0),
        "no bytes": lambda rules: rules["model"].update(byte_fallback=False),
        "rstrip of the last token": flag("rstrip"),
        "a merge less": without_merge,
    },
}


@EVERY
def test_ids_of_a_published_vocabulary_with_one_rule_changed_are_found(name: str, workspace: Path) -> None:
    own = real_vocabulary(name, workspace)
    texts = texts_of(own)
    tokenizer = Tokenizer.from_str(json.dumps(own))
    expected = [ids_of(tokenizer, part) for part in batched(texts)]
    missed = []
    for planted, change in PLANTED[name].items():
        other = {key: deepcopy(value) for key, value in own.items() if key != "model"} | {"model": dict(own["model"])}
        change(other)
        faulty = Tokenizer.from_str(json.dumps(other))
        # One text is enough, so the others are not read.
        if all(ids_of(faulty, part) == ids for part, ids in zip(batched(texts), expected, strict=True)):
            missed.append(planted)
    assert missed == []


def batched(texts: tuple[str, ...]) -> list[list[str]]:
    return [list(texts[start : start + TOGETHER]) for start in range(0, len(texts), TOGETHER)]


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)]
