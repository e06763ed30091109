"""The texts that every package's tokenizer is compared on, pinned: each line is there for a reason.

They are short, since what goes wrong goes wrong anywhere: where words are cut (digits, white space, contractions,
letters beyond ASCII), how bytes are spelt that no token covers (emoji, rare scripts), what normalisation changes
(combining marks, ligatures, full width), and where special tokens are found.
"""
# ruff: noqa: RUF001 - letters that look like others are the point

PROSE = (
    "The quick brown fox jumps over the lazy dog.",
    "It's said they'll come; I'd doubt it, we've seen, you're right, I'm sure, he isn't.",
    "IT'S ALL CAPS, THEY'LL SAY. WE'VE SEEN It'S mixed, don\u2019t we\u2019ll?",
    "McDonald's camelCaseWord snake_case_word kebab-case-word XMLHttpRequest HTML5 utf8",
    "e.g. Mr. O'Neill (née Smith) paid $1,234.56 — about 20% less… \u201cquoted\u201d \u00abGuillemets\u00bb",
    "Thermodynamically tarnished tesserae tumbled; quixotic zephyrs bewildered unperturbed cartographers.",
    "a",
    "!",
    "?!?!... --- *** ### @@@ \\ / | ~ ` ^",
    "https://example.com/a?b=c&d=%20#frag user@example.com C:\\temp\\x.txt /usr/bin/env",
)
CODE = (
    'def f(x: int) -> str:\n    if x > 0:\n        return f"{x!r}"\n\treturn "tab"\n',
    'for(int i=0;i<10;++i){printf("%d\\n",i);}//end',
    '{"key": [1, 2.5e-3, null, true], "s": "a\\"b"}',
    "<div class='x'>&nbsp;</div>\n<!-- comment -->",
    "```python\nprint('hi')\n```\n\n- item\n  - sub\n\n| a | b |\n|---|---|",
)
DIGITS = (
    "0",
    "7 42 123 1234 12345 123456 1234567890",
    "3.14159 -273.15 1e10 0x1F 2026-11-21 12:34:56 +49 (0)30 123456",
    "abc123def 1st 2nd x2 ²³ ½ Ⅷ ٣٤٥ १२३ ๑๒๓ 三百",
)
WHITE_SPACE = (
    "",
    " ",
    "  ",
    "       ",
    "\n",
    "\n\n\n",
    "\t",
    " leading",
    "   three leading",
    "trailing ",
    "trailing   ",
    " both ",
    "two  three   four    five     spaces",
    "tab\tand\t\ttabs",
    "line\nline\n\nline\n\n\nline\n",
    "line\r\nline\r\n\r\nline\r",
    "mixed \n \t \n  end \n",
    "a \nb\n c",
    "no\u00a0break\u2003em\u3000ideographic\u200bzero\u2028line\u2029paragraph\x0bvertical\x0cform\x85next",
)
SCRIPTS = (
    "Привет, мир! Как дела? Ещё не всё.",
    "你好，世界！今天天气怎么样？中文没有空格。",
    "日本語の文章、ひらがなとカタカナ。",
    "안녕하세요 세계, 오늘 날씨가 어때요?",
    "مرحبا بالعالم، كيف حالك؟ مَرْحَبًا",
    "שלום עולם, מה שלומך? שָׁלוֹם",
    "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय",
    "สวัสดีชาวโลก วันนี้อากาศเป็นอย่างไร น้ำ",
    "Γειά σου Κόσμε, Ελλάδα ΣΊΣΥΦΟΣ",
    "ქართული ენა հայերեն ትግርኛ ខ្មែរ မြန်မာ தமிழ்",
    "Straße Ünïcödé naïve façade Łódź Đà Nẵng İstanbul ıI ǅ ﬁ ﬂ",
)
MARKS = (
    "e\u0301 n\u0303 A\u030a o\u0308\u0304 caf\u00e9 cafe\u0301 \u1e69 s\u0323\u0307",
    "z\u0335\u0321\u033a\u035aa\u0334\u0322l\u0336\u0313g\u0337\u0308o\u0338",
    "\uff26\uff35\uff2c\uff2c \uff11\uff12\uff13 \u2460\u2461 \u2122 \u00b5 \u212b \u2126 \ufb03",
)
EMOJI = (
    "😀 🎉🎉 text🔥text",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 ❤️ 1️⃣",
    "🇩🇪🇯🇵🇺🇸 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "∑∫√∞≠≤ → ⇒ ♠♥ ☃ ½ 𝔘𝔫𝔦 𝒜 𐍈 𓀀 \U0001f9ff \ufffd \ufeff",
)
SPECIAL_LOOKALIKES = (
    "<s>not special?</s> <unk> <pad> [INST] hi [/INST] <|im_start|>user<|im_end|> <|endoftext|>",
    "▁▁ lower one eighth block ▁x _ Ġ Ċ č <0x0A> <0xE2>",
    "<|im_ start|> <| end |> </s > <|unknown_token|> <",
)
LONG = (
    "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 6,
    "a" * 400,
    "ab1 " * 100,
    " " * 130 + "x",
    "\n" * 70,
    "=" * 120,
)

CORPUS = (
    *PROSE,
    *CODE,
    *DIGITS,
    *WHITE_SPACE,
    *SCRIPTS,
    *MARKS,
    *EMOJI,
    *SPECIAL_LOOKALIKES,
    *LONG,
)


def texts_with(specials: tuple[str, ...]) -> tuple[str, ...]:
    """Return the corpus and, for each of a tokenizer's own special tokens, texts with it at every kind of place."""
    places = ("{0}", "word{0}word", "word {0} word", "{0}\nline\n{0}\n", "  {0}  {0}\t", "{0}{0} x")
    return CORPUS + tuple(place.format(special) for special in specials for place in places)


Chat = list[dict[str, str]]

CHATS: tuple[tuple[str, Chat], ...] = (
    ("one turn", [{"role": "user", "content": "What is the capital of France?"}]),
    (
        "several turns",
        [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello, Ada."},
            {"role": "user", "content": "What is my name?"},
            {"role": "assistant", "content": "Ada\n"},
            {"role": "user", "content": "Thanks."},
        ],
    ),
    (
        "a system message",
        [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Name an animal."},
        ],
    ),
    (
        "a system message and several turns",
        [
            {"role": "system", "content": "Be brief.\n\nBe kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Bye"},
        ],
    ),
    (
        "a system message in the middle",
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Bye"},
        ],
    ),
    ("two users in a row", [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Anyone?"}]),
    ("the assistant first", [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hi"}]),
    ("newlines and white space", [{"role": "user", "content": "  a\n\nb\r\n\tc \n"}]),
    ("quotes and backslashes", [{"role": "user", "content": "\"double\" 'single' \\n {{ x }} {% y %} <b>&amp;</b>"}]),
    ("scripts and emoji", [{"role": "user", "content": "Привет 你好 नमस्ते 👩‍👩‍👧‍👦 e\u0301 \u2028 end"}]),
    ("no content", [{"role": "user", "content": ""}]),
)


def special_chat(specials: tuple[str, ...]) -> tuple[str, Chat]:
    """Return a chat whose message has a tokenizer's own special tokens written out, and its name."""
    return ("special tokens in a message", [{"role": "user", "content": " x ".join(["", *specials, ""])}])
