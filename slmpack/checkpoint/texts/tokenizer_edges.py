"""Edges of a tokenizer's rules: texts that its normaliser changes and that its pre-tokeniser cuts in two ways."""
# ruff: noqa: RUF001 - letters that look like others are the point

import re
import string
from collections.abc import Iterator
from typing import Any

from slmpack.checkpoint.texts.unicode_texts import form_texts

Rules = dict[str, Any]
STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
SIMPLE_PLACES = ("{0}", "{0}x", "x{0}", "x{0}y", "x {0} y", " {0} ", "{0}{0}", "x{0}{0}y", "\n{0}\n", "1{0}2")
_STRINGS = ("content", "prepend", "replacement", "delimiter", "String", "left", "right", "prefix", "suffix")
_LITERAL = re.compile(r"(?<![\\{^])[A-Za-z]{1,12}(?![}\w])|[^\\\x00-\x7f]|\\[-/\[\]'\"!#$%&*+.,:;<=>?@^_`{|}~]")
_CONTRACTIONS = ("s", "t", "re", "ve", "m", "ll", "d")
_APOSTROPHES = "'\u2019\u02bc\uff07`\u2032"
_LONGEST = 40


def edge_texts(rules: Rules) -> tuple[str, ...]:
    """Return texts at the edges of the rules of a parsed tokenizer.json, and at those that tokenizers usually have."""
    placed = [place.replace("{0}", text) for text in _written_in(rules) for place in SIMPLE_PLACES]
    return tuple(
        dict.fromkeys([*placed, *form_texts(), *_contractions(), *_digits(), *_spaces(), *_marks(), *_signs()])
    )


def _written_in(rules: Rules) -> tuple[str, ...]:
    """Return the texts that the rules name, and the literal pieces of their expressions."""
    named = [text for step in STEPS for text in _named(rules.get(step))]
    pieces = [match[0].lstrip("\\") for text in expressions_of(rules) for match in _LITERAL.finditer(text)]
    cased = [form for text in pieces for form in (text, text.upper(), text.title())]
    model = rules.get("model", {})
    prefixes = [model.get(key) for key in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")]
    return tuple(dict.fromkeys(text for text in (*named, *cased, *prefixes) if text and len(text) <= _LONGEST))


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _named(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, str) and key in _STRINGS:
                yield each
            yield from _named(each)


def expressions_of(rules: Rules) -> tuple[str, ...]:
    """Return the regular expressions of all steps."""
    return tuple(dict.fromkeys(text for step in STEPS for text in _expressions(rules.get(step))))


def _expressions(value: Any) -> Iterator[str]:
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _expressions(each)
    if isinstance(value, dict) and isinstance(value.get("Regex"), str):
        yield value["Regex"]


def _contractions() -> Iterator[str]:
    for apostrophe in _APOSTROPHES:
        for end in _CONTRACTIONS:
            cases = [case for text in (end, end + "x") for case in (text, text.upper(), text.title())]
            for form in dict.fromkeys((*cases, end[0])):
                yield f"it{apostrophe}{form}"
                yield f"IT {apostrophe}{form} 1{apostrophe}{form}"
    yield "'ſ x'ſ 'ſt K'K x'K \u017ft"  # case folding of s and k goes beyond ASCII
    yield "''s '' x''s'll's 'S'T'RE'Ve'"


def _digits() -> Iterator[str]:
    for count in (*range(1, 8), 9, 16, 17, 31):
        run = ("1234567890" * 4)[:count]
        eastern = "".join(chr(0x0660 + int(digit)) for digit in run)
        wide = "".join(chr(0xFF10 + int(digit)) for digit in run)
        yield from (run, f"x{run}y", f" {run} ", f"-{run}.{run}", eastern, wide, f"{run}{eastern}", f"²{run}½")
    yield from ("1,234,567.89", "1 2 3", "0x1F", "1e10", "v1.2.3", "٣٤٥abc१२३", "ⅧⅨ ①② ½", "三百 一二三")


def _spaces() -> Iterator[str]:
    """Yield white space of each kind before and after line ends, at the start, the end and between words."""
    kinds = (" ", "  ", "   ", "\t", "\u00a0", "\u3000", "\u2003", "\x0b", "\x0c", "\x85", "\u2028", "\u200b", "\ufeff")
    for kind in kinds:
        for end in ("\n", "\r\n", "\r", "\n\n", "\n\n\n"):
            yield from (f"a{kind}{end}b", f"a{end}{kind}b", f"a{kind}{end}{kind}b", f"{kind}{end}", f"a.{end}{kind}")
            yield f"a{kind}{end}{kind}{end}{kind}b{kind}{end}"
        yield from (
            f"{kind}a",
            f"a{kind}",
            f"a{kind}b",
            f"a{kind}{kind}b",
            f"{kind}!{kind}1{kind}",
            f"a {kind} b",
            kind,
        )


def _signs() -> Iterator[str]:
    """Yield every two signs of ASCII in a row, and each beside letters of both cases, digits and line ends."""
    for sign in string.punctuation:
        yield " ".join(f"x{sign}{other}y" for other in string.punctuation)
        yield "\n".join(f"{sign}{other} {other}{sign}" for other in string.punctuation)
        yield f"{sign}Ab {sign}ab{sign} {sign}AB{sign}CD {sign}1{sign}2 {sign}\n{sign}\n\n{sign} \n {sign}\t{sign}"
        yield f"{sign}你{sign}好 {sign}é{sign} {sign}{sign}{sign}a {sign}\r\n/{sign}\n/"
    yield from (
        "HTMLParser getHTTPResponse iPhone XMLa aXML ABc abC Ab AB aB A a",
        "ǅungla AǅA ʰA Aʰa ªa Aª ÉcoleÀLa ÀÉa",
    )
    yield from (
        "你好world 日本語abc ひらがなkana カタカナKANA 한글abc abc漢字abc 漢字かなカナ 漢字ー々〆 、。",
        "a你b好c 1你2好3 A你 你A",
    )


def _marks() -> Iterator[str]:
    """Yield texts about the signs that stand for a space or a byte in vocabularies, and about prefixes of words."""
    for sign in (
        "\u2581",
        "\u2581\u2581",
        "Ġ",
        "Ċ",
        "ĉ",
        "Ā",
        "##",
        "##a",
        "</w>",
        "<0x0A>",
        "<0xE2>",
        "<0x41>",
        "@@",
        "<unk>",
    ):
        yield from (place.replace("{0}", sign) for place in SIMPLE_PLACES)
        yield from (f" {sign}a {sign} a{sign} ", f"{sign} {sign}", f"\u2581 {sign} \u2581")
    yield from (
        "a b",
        " a b",
        "  a b",
        "a",
        " a",
        "A",
        ".a",
        " .a",
        "!a!",
        "a-b_c",
        "can't",
        "(a)",
        "[a]b",
        "`a`",
        "a\u0301-",
    )
