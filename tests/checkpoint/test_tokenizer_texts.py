"""Texts and ids from a tokenizer.json: they hold what they must, and find a tokenizer that differs in one rule."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from small_tokenizers import LLAMA3, QWEN2, Rules, byte_level, sentencepiece, split, vocabulary
from tokenizers import Tokenizer

from slmpack.checkpoint.texts.tokenizer_edges import expressions_of
from slmpack.checkpoint.texts.tokenizer_texts import (
    MOST_SEQUENCES,
    MOST_TEXTS,
    byte_letters,
    id_sequences,
    random_texts,
    texts_of,
)
from slmpack.checkpoint.texts.unicode_texts import BLOCKS, LONG_BYTES, class_texts

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def with_added(rules: Rules, *tokens: dict[str, Any]) -> Rules:
    """Append added tokens, whose flags are given where they are not the usual ones."""
    first = max(vocabulary(rules).values()) + 1
    more = [{"id": first + index, **FLAGS, **token} for index, token in enumerate(tokens)]
    return rules | {"added_tokens": [*rules["added_tokens"], *more]}


@cache
def llama3() -> Rules:
    return byte_level(split(LLAMA3), specials=ADDED)


@cache
def qwen() -> Rules:
    rules = byte_level(split(QWEN2), specials=ADDED) | {"normalizer": {"type": "NFC"}}
    return with_added(
        rules,
        {"content": "<left>", "lstrip": True},
        {"content": "<right>", "rstrip": True},
        {"content": "qzqz", "single_word": True, "special": False},
        {"content": "<é>", "normalized": True, "special": False},
        {"content": "  ", "special": False},
    )


@cache
def phi3() -> Rules:
    return sentencepiece(ADDED)


def bert() -> Rules:
    """Return rules of whole words after BERT's steps, with every letter of the texts as a word of its own."""
    words = ["[UNK]", "a", "e", "x", "it", "##s", "##a", "!", "1", "##1", "\u4e00", "##b", "b", "s", "t", "'"]
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, "vocab": {word: index for index, word in enumerate(words)}}  # fmt: skip
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                  "lowercase": True}  # fmt: skip
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None, "decoder": None,
            "model": model}  # fmt: skip


KINDS: dict[str, Callable[[], Rules]] = {"llama3": llama3, "qwen": qwen, "phi3": phi3, "bert": bert}
EVERY = pytest.mark.parametrize("kind", KINDS)


def read(rules: Rules) -> Any:
    return Tokenizer.from_str(json.dumps(rules))


def ids_of(rules: Rules, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in read(rules).encode_batch(list(texts), add_special_tokens=False)]


# ---------------------------------------------------------------------------------------------- what they hold


@EVERY
def test_texts_are_bounded_different_and_the_same_each_time(kind: str) -> None:
    texts = texts_of(KINDS[kind]())
    assert 4_000 < len(texts) <= MOST_TEXTS
    assert len(set(texts)) == len(texts)
    assert texts == texts_of(KINDS[kind]())


@EVERY
def test_no_text_has_what_the_wrapper_refuses(kind: str) -> None:
    for text in (*texts_of(KINDS[kind]()), *random_texts(2_000, 3, ADDED)):
        assert "\0" not in text
        text.encode()  # half a surrogate pair raises


def test_every_byte_that_text_can_hold_is_in_some_text() -> None:
    never = {0x00, 0xC0, 0xC1, *range(0xF5, 0x100)}
    written = {byte for text in texts_of(llama3()) for byte in text.encode()}
    assert written == set(range(256)) - never


def test_every_character_of_a_byte_and_every_control_is_alone_and_in_a_word() -> None:
    texts = set(texts_of(llama3()))
    for code in range(1, 0x100):
        assert {chr(code), f"a{chr(code)}b"} <= texts


def test_unusual_characters_are_alone_and_in_a_word() -> None:
    texts = set(texts_of(llama3()))
    for character in "\ufffe\uffff\ufdd0\ufeff\ufe0f\u200b\u200d\u200e\u202e\u2066\u00ad\u2028\ufffd\U000e0001":
        assert {character, f"a{character}b"} <= texts


def test_added_tokens_are_at_every_place() -> None:
    texts = set(texts_of(qwen()))
    for token in (*ADDED, "<left>", "<right>", "qzqz", "<é>", "  "):
        for place in ("{}", "{}x", "x{}", "x{}y", "x {} y", "x\n{}\ny", "x\t{}\ty", "{}{}", "{} {}", "1{}2", "{}."):
            assert place.replace("{}", token) in texts


def test_thousands_of_added_tokens_stay_within_the_bound_and_each_is_in_some_text() -> None:
    many = with_added(llama3(), *({"content": f"<|reserved_{index}|>"} for index in range(9_000)))
    many = with_added(many, {"content": "<alone of its kind>", "lstrip": True, "rstrip": True})
    texts = texts_of(many)
    assert len(texts) <= MOST_TEXTS
    written = "\0".join(texts)
    assert [token["content"] for token in many["added_tokens"] if token["content"] not in written] == []
    assert {"<alone of its kind>", "x \n <alone of its kind> \n y"} <= set(texts)


def test_classes_of_characters_follow_each_other_in_every_order_of_three() -> None:
    written = "\0".join(class_texts())
    for first in "A你7!' \n":
        for second in "A你7!' \n":
            for third in "A你7!' \n":
                assert first + second + third in written


def test_long_words_without_a_break_have_each_size() -> None:
    lengths = {len(text.encode()) for text in texts_of(llama3()) if text.isalpha() and len(text) > 20}
    assert set(LONG_BYTES) <= lengths


def test_expressions_are_found_at_any_depth_and_their_words_are_texts() -> None:
    rules = {"model": {"vocab": {}}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"foo|\p{N}|§")]}}
    assert expressions_of(rules) == (r"foo|\p{N}|§",)
    assert {"xfooy", "FOO", "x§y", "Foo"} <= set(texts_of(rules))


def test_random_texts_repeat_with_their_seed_and_reach_every_block() -> None:
    texts = list(random_texts(20_000, 7, ADDED))
    assert texts == list(random_texts(20_000, 7, ADDED))
    assert texts != list(random_texts(20_000, 8, ADDED))
    codes = {ord(character) for text in texts for character in text}
    assert [name for name, (first, last) in BLOCKS.items() if codes.isdisjoint(range(first, last + 1))] == []
    assert all(any(token in text for text in texts) for token in ADDED)
    assert max(map(len, texts)) < 200


# ---------------------------------------------------------------------------------------------- ids


@EVERY
def test_every_id_is_in_some_sequence(kind: str) -> None:
    rules = KINDS[kind]()
    sequences = id_sequences(rules, seed=1)
    assert {each for ids in sequences for each in ids} == set(vocabulary(rules).values())
    assert len(set(sequences)) == len(sequences) <= MOST_SEQUENCES
    assert sequences == id_sequences(rules, seed=1)
    assert sequences != id_sequences(rules, seed=2)


def test_bytes_form_characters_and_do_not_with_special_tokens_between() -> None:
    rules = qwen()
    tokenizer = read(rules)
    decoded = {ids: tokenizer.decode(list(ids), skip_special_tokens=True) for ids in id_sequences(rules)}
    letters = byte_letters()
    lead, trail = (vocabulary(rules)[letters[byte]] for byte in "é".encode())
    start = vocabulary(rules)["<|endoftext|>"]
    assert decoded[lead, trail] == "é"
    assert {(lead,), (trail, lead), (lead, start, trail), (lead, trail, start), (start, lead, trail)} <= set(decoded)
    assert decoded[(lead,)] == "\ufffd"


def test_the_letters_of_bytes_are_those_of_the_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_letters().values()) == set(ByteLevel.alphabet())
    assert ByteLevel(add_prefix_space=False).pre_tokenize_str(" é\x01")[0][0] == "".join(
        byte_letters()[byte] for byte in " é".encode()
    )


def test_a_vocabulary_of_scores_has_sequences() -> None:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["<0x41>", -2.0], ["<0xC3>", -3.0]]}
    assert {0, 1, 2, 3} <= {each for ids in id_sequences({"model": model, "added_tokens": []}) for each in ids}


# ---------------------------------------------------------------------------------------------- planted differences


def token_flag(content: str, flag: str) -> Callable[[Rules], None]:
    def change(rules: Rules) -> None:
        token = next(token for token in rules["added_tokens"] if token["content"] == content)
        token[flag] = not token[flag]

    return change


def expression(own: str, other: str) -> Callable[[Rules], None]:
    def change(rules: Rules) -> None:
        pattern = rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        assert own in pattern["Regex"]
        pattern["Regex"] = pattern["Regex"].replace(own, other)

    return change


def step(name: str, value: Any) -> Callable[[Rules], None]:
    return lambda rules: rules.update({name: value})


def within(*path: Any, value: Any) -> Callable[[Rules], None]:
    def change(rules: Rules) -> None:
        place: Any = rules
        for key in path[:-1]:
            place = place[key]
        assert place[path[-1]] != value
        place[path[-1]] = value

    return change


def steps(*normalizers: Rules) -> Callable[[Rules], None]:
    return step("normalizer", {"type": "Sequence", "normalizers": list(normalizers)})


SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
NFC = {"type": "NFC"}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
PLANTED: dict[str, tuple[str, Callable[[Rules], None]]] = {
    "lstrip lost": ("qwen", token_flag("<left>", "lstrip")),
    "rstrip lost": ("qwen", token_flag("<right>", "rstrip")),
    "single_word lost": ("qwen", token_flag("qzqz", "single_word")),
    "normalized lost": ("qwen", token_flag("<é>", "normalized")),
    "lstrip gained": ("llama3", token_flag("<|im_end|>", "lstrip")),
    "rstrip lost in SentencePiece": ("phi3", token_flag("<|im_end|>", "rstrip")),
    "single_word gained": ("phi3", token_flag("<|im_end|>", "single_word")),
    "no NFC": ("qwen", step("normalizer", None)),
    "NFKC for NFC": ("qwen", step("normalizer", {"type": "NFKC"})),
    "NFD for NFC": ("qwen", step("normalizer", {"type": "NFD"})),
    "lower case": ("qwen", steps(NFC, {"type": "Lowercase"})),
    "no accents": ("qwen", steps(NFC, {"type": "StripAccents"})),
    "stripped": ("qwen", steps(NFC, STRIP)),
    "nothing put first": ("phi3", steps(SPACE)),
    "spaces stay": ("phi3", steps(PREPEND)),
    "only the first space": ("phi3", steps({"type": "Replace", "pattern": {"Regex": "^ "}, "content": "▁"}, PREPEND)),
    "line ends with no space before": ("qwen", expression(r"\s*[\r\n]+", r"[\r\n]+")),
    "line ends of one kind": ("llama3", expression(r"\s*[\r\n]+", r"\s*[\n]+")),
    "one line end at a time": ("llama3", expression(r"\s*[\r\n]+", r"[^\S\r\n]*[\r\n]")),
    "the last space is not left for a word": ("llama3", expression(r"\s+(?!\S)|", "")),
    "digits by twos": ("llama3", expression(r"\p{N}{1,3}", r"\p{N}{1,2}")),
    "digits by fours": ("llama3", expression(r"\p{N}{1,3}", r"\p{N}{1,4}")),
    "decimal digits only": ("llama3", expression(r"|\p{N}{1,3}", r"|\p{Nd}{1,3}")),
    "contractions in one case": ("llama3", expression("(?i:", "(?:")),
    "one contraction less": ("llama3", expression("|'ll", "")),
    "no sign before a word": ("llama3", expression(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{L}+")),
    "a space only before a word": ("llama3", expression(r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?\p{L}+")),
    "marks in words": ("llama3", expression(r"?\p{L}+", r"?[\p{L}\p{M}]+")),
    "letters of ASCII": ("llama3", expression(r"?\p{L}+", r"?[A-Za-z]+")),
    "no space before signs": ("llama3", expression(r" ?[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{N}]+")),
    "no line end after signs": ("llama3", expression(r"]+[\r\n]*", "]+")),
    "a space put first": ("llama3", within("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", value=True)),
    "two expressions": ("llama3", within("pre_tokenizer", "pretokenizers", 1, "use_regex", value=True)),
    "split and removed": ("llama3", within("pre_tokenizer", "pretokenizers", 0, "behavior", value="Removed")),
    "split and joined": ("llama3", within("pre_tokenizer", "pretokenizers", 0, "behavior", value="Contiguous")),
    "no bytes for what is unknown": ("phi3", within("model", "byte_fallback", value=False)),
    "no control characters taken away": ("bert", within("normalizer", "clean_text", value=False)),
    "no spaces around ideographs": ("bert", within("normalizer", "handle_chinese_chars", value=False)),
    "accents stay": ("bert", within("normalizer", "strip_accents", value=False)),
    "capitals stay": ("bert", within("normalizer", "lowercase", value=False)),
    "cut at white space only": ("bert", within("pre_tokenizer", "type", value="WhitespaceSplit")),
    "words of other signs": ("bert", within("pre_tokenizer", "type", value="Whitespace")),
    "longer words": ("bert", within("model", "max_input_chars_per_word", value=50)),
}


def cuts_of(rules: Rules, texts: Sequence[str]) -> list[list[str]]:
    """Return the words that a text is cut into, before merges: those of a small vocabulary cross few edges."""
    tokenizer = read(rules)
    return [[word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] for text in texts]


@pytest.mark.parametrize("planted", PLANTED)
def test_a_tokenizer_that_differs_in_one_rule_is_found(planted: str) -> None:
    kind, change = PLANTED[planted]
    own = KINDS[kind]()
    other = deepcopy(own)
    change(other)
    texts = texts_of(own)
    if "pre_tokenizer" in planted_in(own, other):
        assert cuts_of(own, texts) != cuts_of(other, texts)
    else:
        assert ids_of(own, texts) != ids_of(other, texts)


def planted_in(own: Rules, other: Rules) -> list[str]:
    return [key for key in own if own[key] != other[key]]


def test_texts_in_no_normal_form_are_there_for_every_form() -> None:
    texts = texts_of(llama3())
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert sum(unicodedata.normalize(form, text) != text for text in texts) > 20


DECODERS: dict[str, tuple[str, Callable[[Rules], None]]] = {
    "the first space stays": ("phi3", lambda rules: rules["decoder"]["decoders"].pop()),
    "no bytes": ("phi3", lambda rules: rules["decoder"]["decoders"].pop(1)),
    "the sign for a space stays": ("phi3", lambda rules: rules["decoder"]["decoders"].pop(0)),
    "bytes as they are written": ("llama3", step("decoder", None)),
    "not special": ("llama3", token_flag("<|im_end|>", "special")),
    "one letter for another": ("bert", step("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True})),
}


@pytest.mark.parametrize("planted", DECODERS)
def test_a_decoder_that_differs_in_one_rule_is_found(planted: str) -> None:
    kind, change = DECODERS[planted]
    own = KINDS[kind]()
    other = deepcopy(own)
    change(other)
    sequences = [list(ids) for ids in id_sequences(own)]
    assert read(other).decode_batch(sequences) != read(own).decode_batch(sequences)
