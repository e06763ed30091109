"""Texts over all of Unicode, by rule and at random: characters alone and in words, orders of character classes.

NUL and lone surrogates are in none of them: the wrapper refuses those.
"""
# ruff: noqa: RUF001 - letters that look like others are the point

import random
import string
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import product

WHITE_SPACE = " \t\n\r\x0b\x0c\x1c\x1f\x85\u00a0\u1680\u2003\u200a\u2028\u2029\u202f\u205f\u3000"
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u17b4\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2064\u2066\u2069\u206f"
    "\u3164\ufe00\ufe0e\ufe0f\ufeff\uffa0\ufff9\ufffb\U0001d173\U000e0001\U000e0041\U000e0100\U000e01ef"
)
NONCHARACTERS = "\ufdd0\ufdef\ufffe\uffff\U0001fffe\U0001ffff\U0010fffe\U0010ffff"
UNUSUAL = "\ufffc\ufffd\ue000\uf8ff\U000f0000\U0010fffd\u0378\u2fe0\U000e0080\ud7ff\U00010000\u07ff\u0800\u007f\u0080"
LONG_BYTES = (100, 1_000, 5_000)
_LONG_UNITS = ("a", "ab", "Ab1", "é", "你", "😀", "=", "0", "\u0301", "\u200d", "x\u2581", "-_")
_CHUNK = 48
_ASCII = (string.ascii_lowercase, string.ascii_letters, string.digits, string.punctuation)

# One character of each class that words are cut by, in the order of their general category; space and line ends last.
_CLASSES = "Aaǅʰ你\u0301\u0903\u20dd7ⅷ²_-(]«»!'+$^©\u00ad\ue000\u2028\u00a0\x01 \n\r\t"
_COARSE = "Aa你\u03017²'!$ \n\r\t\u00a0"
_FEW = "aZ1!' \n\t"

BLOCKS: dict[str, tuple[int, int]] = {
    "C0 controls": (0x01, 0x1F),
    "C1 controls": (0x7F, 0x9F),
    "Latin-1": (0xA0, 0xFF),
    "Latin Extended": (0x100, 0x24F),
    "IPA": (0x250, 0x2AF),
    "modifiers": (0x2B0, 0x2FF),
    "combining marks": (0x300, 0x36F),
    "Greek": (0x370, 0x3FF),
    "Cyrillic": (0x400, 0x52F),
    "Armenian": (0x531, 0x58F),
    "Hebrew": (0x591, 0x5F4),
    "Arabic": (0x600, 0x6FF),
    "Syriac": (0x700, 0x74F),
    "Thaana": (0x780, 0x7B1),
    "NKo": (0x7C0, 0x7FF),
    "Devanagari": (0x900, 0x97F),
    "Bengali": (0x980, 0x9FE),
    "Gurmukhi": (0xA01, 0xA76),
    "Gujarati": (0xA81, 0xAFF),
    "Tamil": (0xB82, 0xBFA),
    "Telugu": (0xC00, 0xC7F),
    "Kannada": (0xC80, 0xCF2),
    "Malayalam": (0xD00, 0xD7F),
    "Sinhala": (0xD81, 0xDF4),
    "Thai": (0xE01, 0xE5B),
    "Lao": (0xE81, 0xEDF),
    "Tibetan": (0xF00, 0xFDA),
    "Myanmar": (0x1000, 0x109F),
    "Georgian": (0x10A0, 0x10FF),
    "Hangul Jamo": (0x1100, 0x11FF),
    "Ethiopic": (0x1200, 0x137C),
    "Cherokee": (0x13A0, 0x13FD),
    "Canadian Aboriginal": (0x1400, 0x167F),
    "Ogham": (0x1680, 0x169C),
    "Runic": (0x16A0, 0x16F8),
    "Khmer": (0x1780, 0x17F9),
    "Mongolian": (0x1800, 0x18AA),
    "Tai Le": (0x1950, 0x1974),
    "Latin Extended Additional": (0x1E00, 0x1EFF),
    "Greek Extended": (0x1F00, 0x1FFE),
    "punctuation": (0x2000, 0x206F),
    "superscripts": (0x2070, 0x209C),
    "currency": (0x20A0, 0x20C0),
    "marks for symbols": (0x20D0, 0x20F0),
    "letterlike": (0x2100, 0x214F),
    "number forms": (0x2150, 0x218B),
    "arrows": (0x2190, 0x21FF),
    "mathematics": (0x2200, 0x22FF),
    "technical": (0x2300, 0x23FF),
    "enclosed": (0x2460, 0x24FF),
    "boxes and blocks": (0x2500, 0x259F),
    "symbols": (0x2600, 0x27BF),
    "Braille": (0x2800, 0x28FF),
    "Coptic": (0x2C80, 0x2CFF),
    "CJK radicals": (0x2E80, 0x2FD5),
    "CJK punctuation": (0x3000, 0x303F),
    "Hiragana": (0x3041, 0x309F),
    "Katakana": (0x30A0, 0x30FF),
    "Bopomofo": (0x3105, 0x312F),
    "CJK compatibility": (0x3200, 0x33FF),
    "CJK": (0x4E00, 0x9FFF),
    "Yi": (0xA000, 0xA4C6),
    "Vai": (0xA500, 0xA62B),
    "Hangul": (0xAC00, 0xD7A3),
    "private use": (0xE000, 0xF8FF),
    "CJK compatibility ideographs": (0xF900, 0xFAD9),
    "presentation forms": (0xFB00, 0xFDFF),
    "variation selectors": (0xFE00, 0xFE0F),
    "full width": (0xFF00, 0xFFEF),
    "specials": (0xFFF0, 0xFFFF),
    "Linear B": (0x10000, 0x100FA),
    "Gothic": (0x10330, 0x1034A),
    "cuneiform": (0x12000, 0x12399),
    "hieroglyphs": (0x13000, 0x1342F),
    "musical": (0x1D100, 0x1D1E8),
    "mathematical letters": (0x1D400, 0x1D7FF),
    "Adlam": (0x1E900, 0x1E95F),
    "emoji": (0x1F300, 0x1F64F),
    "transport": (0x1F680, 0x1F6FF),
    "regional letters": (0x1F1E6, 0x1F1FF),
    "skin tones": (0x1F3FB, 0x1F3FF),
    "more emoji": (0x1F900, 0x1FAFF),
    "CJK Extension B": (0x20000, 0x2A6DF),
    "tags": (0xE0000, 0xE007F),
    "last plane": (0x100000, 0x10FFFF),
}


def character_texts() -> tuple[str, ...]:
    """Return every character up to U+00FF and every unusual one beyond, alone, in a word, and between spaces."""
    characters = [chr(code) for code in range(1, 0x100)] + list(WHITE_SPACE + INVISIBLE + NONCHARACTERS + UNUSUAL)
    # Every byte that UTF-8 has: each lead byte with the lowest and the highest character of its, each trailing byte.
    leads = [chr(code) for code in range(0x80, 0x800, 0x40)] + [chr(code | 0xFFF) for code in range(0, 0xD000, 0x1000)]
    leads += [chr(code) for code in range(0x10000, 0x110000, 0x40000)]
    trails = [chr(0x4E00 + step) for step in range(64)] + [chr(0x1F600 + step) for step in range(64)]
    unique = dict.fromkeys([*characters, *leads, *trails])
    return tuple(place.format(each) for each in unique for place in ("{}", "a{}b")) + tuple(
        f"{each} {each}{each}\n{each}" for each in dict.fromkeys(characters)
    )


def class_texts() -> tuple[str, ...]:
    """Return texts in which every class of character follows every other: where words are cut.

    All pairs of all classes alone and within letters; all orders of three of the coarse classes and of five of the
    few that expressions treat apart, run together in pieces.
    """
    pairs = ["".join(pair) for pair in product(_CLASSES, repeat=2)]
    runs = [character * count for character in _CLASSES for count in (2, 3, 4, 5)]
    chains = [*_pieces(_cycle(_COARSE, 3)), *_pieces(_cycle(_FEW, 5))]
    short = ["".join(each) for count in (1, 2, 3) for each in product(" \n\r\tx", repeat=count)]
    return tuple(dict.fromkeys([*pairs, *(f"x{pair}y" for pair in pairs), *runs, *chains, *short]))


def _cycle(letters: str, order: int) -> str:
    """Return the shortest text that holds every text of `order` letters (de Bruijn's, by its Lyndon words)."""
    word, parts = [-1], []
    while word:
        word[-1] += 1
        if order % len(word) == 0:
            parts.extend(word)
        word = [word[index % len(word)] for index in range(order)]
        while word and word[-1] == len(letters) - 1:
            word.pop()
    text = "".join(letters[index] for index in parts)
    return text + text[: order - 1]


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _CHUNK):
        yield text[start : start + _CHUNK + 4]  # as much of the next piece as an order is long


def long_texts() -> tuple[str, ...]:
    """Return words without a break, of about each of `LONG_BYTES`, and long runs of each kind of space."""
    words = [unit * (size // len(unit.encode())) for unit in _LONG_UNITS for size in LONG_BYTES]
    spaces = [space * count for space in (" ", "\n", "\t", "\r\n", " \n", "\u3000") for count in (20, 300)]
    return (*words, *(f"x{text}y" for text in spaces), *spaces)


def random_texts(count: int, seed: int, specials: Sequence[str] = ()) -> Iterator[str]:
    """Draw texts of up to about 60 characters from all scripts, mixed with ASCII, spaces, digits and special tokens.

    Args:
        count: of texts.
        seed: the same one draws the same texts.
        specials: texts to be mixed in, such as the added tokens.
    """
    draw = random.Random(seed)  # noqa: S311 - repeatable texts are the point
    blocks = list(BLOCKS.values())
    for _ in range(count):
        own = draw.sample(blocks, 2)  # as text has it: a script or two, and signs among them
        yield "".join(_piece(draw, own, specials) for _ in range(draw.randint(1, 9)))


def _piece(draw: random.Random, own: list[tuple[int, int]], specials: Sequence[str]) -> str:
    kind = draw.random()
    if kind < 0.4:
        return _word(draw, *draw.choice(own))
    if kind < 0.55:
        return draw.choice((" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n", "\r\n", draw.choice(WHITE_SPACE)))
    if kind < 0.9:
        return "".join(draw.choices(draw.choice(_ASCII), k=draw.randint(1, 7)))
    if kind < 0.95 and specials:
        return draw.choice(specials)
    return _word(draw, *draw.choice(list(BLOCKS.values())))


def _word(draw: random.Random, first: int, last: int) -> str:
    return "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 6)))


def form_texts() -> tuple[str, ...]:
    """Return texts that the Unicode normalisation forms, lower case or the removal of accents change."""
    letters = "éÅçñöảấȫḗǖṩÅΩKôÿṝ"
    odd = (
        "ﬁ ﬂ ﬃ ǆ ǅ ½ ² ₂ ① ㈱ ㎏ ℃ ℻ ™ ª ﹏ Ａｂ１ ｶﾞ ﾊﾟ 　 … ‥ ﷺ ﬔ",
        "각 한글",
        "क़ ড় ਖ਼ שׁ ײַ",
        "Å Ω K ; ` ´ ¨",
        "a\u0315\u0300\u05ae\u0301b",
        "s\u0323\u0307 s\u0307\u0323 d\u0323\u0307",
        "\u0344 \u0340 \u0343 \u0374 \u037e \u0387",
        "\u1100\u1161\u11a8 \uac00\u11a8 \u1100\u1161",
        "\u0301 alone \u0301\u0301",
        "e\u0301" * 20,
        "x" + "\u0301\u0323" * 12,
        "İstanbul IıiI ẞß ΣΊΣΥΦΟΣ ς ǅ Ǆ ÀÉÎ ÅÄÖ",
        "Đđ Łł Øø ħ ı ŀ ŉ ſ ẛ",
        "\U0001d15e \U0001d160 \U0002f800 豈 丽",
        "\u2126\u212b\u212a\u2000\u2001\u2329",
        "\u00a0\u2002\u2007\u202f\u3000",
        "na\u00efve nai\u0308ve NAI\u0308VE",
        "漢字kanji漢 字",
        "ก\u0e33 ເ\u0eb3 \u0f77",
        "\u1e9b\u0323",
        "\u09c7\u09be \u0b47\u0b3e \u0bc6\u0bbe \u0cc6\u0cc2\u0cd5",
    )
    forms = [unicodedata.normalize(form, text) for text in (*letters, *odd) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    texts = dict.fromkeys([*odd, *letters, *forms])
    return tuple(texts) + tuple(dict.fromkeys(f"a{text}b {text} {text.upper()} {text.lower()}" for text in texts))
