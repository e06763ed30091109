"""Texts and ids made from a tokenizer.json, where two readers of it can differ.

    added tokens    each alone; of each combination of flags, and of a sample, at every place where a flag counts
    characters      every byte, control, invisible and unusual one; every order of the classes that words are cut by
    rules           what its normaliser changes, its expressions name, its decoder puts back
    ids             every one within others; bytes that form characters and that do not, special tokens among them

All are the same each time. `random_texts` of `unicode_texts` draws more.
"""

import random
import unicodedata
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from slmpack.checkpoint.texts.tokenizer_edges import edge_texts
from slmpack.checkpoint.texts.unicode_texts import NONCHARACTERS, character_texts, class_texts, long_texts, random_texts

__all__ = ["MOST_TEXTS", "id_sequences", "random_texts", "texts_of"]

Rules = dict[str, Any]
MOST_TEXTS = 16_000
MOST_ALONE = 2_000  # added tokens that have texts of their own; the others share texts
MOST_PLACED = 48  # added tokens tried at all places
MOST_SEQUENCES = 12_000
_TOGETHER = 24
_IDS_TOGETHER = 16
_FLAGGED = "x {0} y{0}z"  # each flag but `normalized` and `special` changes its ids
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_PLACES = (
    "{0}",
    "{0}x",
    "x{0}",
    "x{0}y",
    "1{0}2",
    "_{0}_",
    "-{0}-",
    "é{0}é",
    "你{0}好",
    "\u0301{0}\u0301",
    "{0}.",
    " {0}",
    "{0} ",
    " {0} ",
    "x {0} y",
    "x  {0}  y",
    "x\t{0}\ty",
    "x\n{0}\ny",
    "x \n {0} \n y",
    "x\r\n{0}\r\ny",
    "x\u00a0{0}\u00a0y",
    "x\u3000{0}\u3000y",
    "x\u200b{0}\u200by",
    "x\u2581{0}\u2581y",
    "{0}{0}",
    "x{0}{0}y",
    "{0} {0}",
    "{0}\n{0}",
    "  {0}  {0}\t",
    "The {0} end.",
    "({0})",
    '"{0}"',
    "x\x04{0}\x04y",
    "x\x1c{0}\x1cy",
    "x\x85{0}\x85y",
)


def texts_of(rules: Rules) -> tuple[str, ...]:
    """Make the texts for a parsed tokenizer.json; at most `MOST_TEXTS`, none twice."""
    texts = (*_added_texts(rules), *edge_texts(rules), *class_texts(), *character_texts(), *long_texts())
    return tuple(islice(dict.fromkeys(("", *texts)), MOST_TEXTS))


# ---------------------------------------------------------------------------------------------- added tokens


def _added_texts(rules: Rules) -> Iterator[str]:
    added = [token for token in rules.get("added_tokens", []) if _is_text(token["content"])]
    contents = [str(token["content"]) for token in added]
    flagged = [_FLAGGED.replace("{0}", content) for content in contents]
    yield from (*contents[:MOST_ALONE], *flagged[:MOST_ALONE])
    for start in range(MOST_ALONE, len(flagged), _TOGETHER):
        yield " ".join(flagged[start : start + _TOGETHER])
    placed = _sample(added)
    for content in placed:
        yield from (place.replace("{0}", content) for place in _PLACES)
        yield from (f"x {form} y{form}" for form in _near(content))
    for first, second in pairwise(placed):
        yield from (first + second, f"{first} {second}", f"x{first}\n{second} {first}y")


def _sample(added: list[Rules]) -> list[str]:
    """Choose tokens: the first of each combination of flags, then some at equal distances."""
    kinds: dict[tuple[Any, ...], str] = {}
    for token in added:
        shape = (token["content"].isalnum(), token["content"].isspace(), token["content"].isascii())
        kinds.setdefault((*(token.get(flag) for flag in _FLAGS), shape), token["content"])
    step = max(1, len(added) // MOST_PLACED)
    chosen = dict.fromkeys([*kinds.values(), *(token["content"] for token in added[::step])])
    return list(chosen)[: max(MOST_PLACED, len(kinds))]


def _near(content: str) -> Iterator[str]:
    """Yield what is nearly a token: in other case or form, with a space or a sign in it, cut short."""
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in content)
    forms = (unicodedata.normalize(form, content) for form in ("NFC", "NFD", "NFKC", "NFKD"))
    cases = (content.upper(), content.lower(), content.title(), content.swapcase())
    yield from dict.fromkeys((*cases, *forms, wide, content.replace(" ", "\u2581")))
    start, end = content[: len(content) // 2], content[len(content) // 2 :]
    yield from (content[:-1], content[1:], f"{start} {end}", f"{start}\u200b{end}", f"{start}\u0301{end}")


def _is_text(content: str) -> bool:
    return bool(content) and "\0" not in content and not any("\ud800" <= letter <= "\udfff" for letter in content)


# ---------------------------------------------------------------------------------------------- ids


def id_sequences(rules: Rules, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Make id sequences to decode; at most `MOST_SEQUENCES`, and every id in at least one where there are so many.

    Args:
        rules: a parsed tokenizer.json.
        seed: of those drawn at random.
    """
    ids, specials, single = _ids(rules)
    word = next(iter(_words(rules, ids)), ids[0])
    fixed: list[tuple[int, ...]] = [(each,) for each in (*specials[:200], *single.values())]
    fixed += [(word, each, word) for each in (*specials[:200], *single.values())]
    fixed += list(_byte_sequences(single, specials[:3], word))
    fixed += [tuple(ids[start : start + _IDS_TOGETHER]) for start in range(0, len(ids), _IDS_TOGETHER)]
    left = max(0, MOST_SEQUENCES - len(fixed))
    fixed += [(each,) for each in ids[:: max(1, 2 * len(ids) // (left + 1))]][: left // 2]
    draw = random.Random(seed)  # noqa: S311 - repeatable ids are the point
    pools = [pool for pool in (ids, ids, list(single.values()), specials) if pool]
    drawn = (tuple(draw.choice(draw.choice(pools)) for _ in range(draw.randint(2, 12))) for _ in range(left // 2))
    return tuple(islice(dict.fromkeys([*fixed, *drawn]), MOST_SEQUENCES))


def _ids(rules: Rules) -> tuple[list[int], list[int], dict[int, int]]:
    """Return all ids, those of added tokens, and each byte's where a token stands for one byte."""
    vocabulary = _vocabulary(rules)
    specials = sorted(token["id"] for token in rules.get("added_tokens", []))
    spelled = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    if spelled[0x41] not in vocabulary:
        spelled = byte_letters()
    single = {byte: vocabulary[text] for byte, text in spelled.items() if text in vocabulary}
    return sorted({*vocabulary.values(), *specials}), specials, single


def _vocabulary(rules: Rules) -> dict[str, int]:
    words = rules["model"]["vocab"]
    return dict(words) if isinstance(words, dict) else {text: index for index, (text, _) in enumerate(words)}


def _words(rules: Rules, ids: list[int]) -> Iterator[int]:
    known = set(ids)
    return (
        number for text, number in _vocabulary(rules).items() if text.isalpha() and text.isascii() and number in known
    )


def byte_letters() -> dict[int, str]:
    """Return the letter that byte-level vocabularies write for each byte. Source: GPT-2's encoder, bytes_to_unicode."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(0x100 + step) for step, byte in enumerate(others)}


def _byte_sequences(single: dict[int, int], specials: list[int], word: int) -> Iterator[tuple[int, ...]]:
    """Yield ids of bytes: whole characters, cut ones, stray and impossible bytes, with specials and words between."""
    encoded = [letter.encode() for letter in "é߿ࠀ你\ufeff\ufffd😀\U0010ffff\n " + NONCHARACTERS]
    encoded += [b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\xfe\xff", b"\x80", b"\xc2", b"\xf0\x9f"]
    encoded += [
        b"\xe4\xbd\xe4\xbd\xa0",
        b"\xf0\x9f\xe4\xbd\xa0",
        b"\xc3\xc3\xa9",
        b"\xa9\xc3",
        b"a\xe4\xbdb",
        b"\r\n",
        b"\x00a",
    ]
    for text in encoded:
        if not all(byte in single for byte in text):
            continue
        ids = tuple(single[byte] for byte in text)
        yield from (ids[:length] for length in range(1, len(ids) + 1))
        yield from (ids[start:] for start in range(1, len(ids)))
        yield from (ids + ids, ids[::-1], (word, *ids, word), (*ids[:-1], word), (word, *ids[1:]))
        for special in specials:
            yield from ((ids[0], special, *ids[1:]), (special, *ids), (*ids, special), (*ids[:-1], special))
