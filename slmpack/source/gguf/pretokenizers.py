# ruff: noqa: RUF001 - the expressions name ranges of Chinese and Japanese characters
r"""How llama.cpp cuts text into words before byte-pair merges, by the name in `tokenizer.ggml.pre`.

A pre-tokenizer is a few regular expressions, each applied to the pieces of the one before; a match is a piece, and so
is what lies between two matches. Three properties of llama.cpp that the expressions below keep:

- it knows letters, numbers, punctuation, symbols and marks, but not their case beyond ASCII, so that
  `[\p{L}&&[^a-z]]` stands for what its vocabularies call "upper case, title case or other letter";
- its contractions ignore case in ASCII only (`(?i:'s)` would also match the long s);
- a run of spaces is cut before its last one, and what no expression matches stays a piece of its own.

The expressions are written as ONNX Runtime GenAI's tokenizer recognises them, since it compares them as text.

Source: ggml-org/llama.cpp, src/llama-vocab.cpp: `llm_tokenizer_bpe` (expressions), `llama_vocab::impl::load` (names,
`ignore_merges`, `add_bos`); src/unicode.cpp: `unicode_regex_split` and its custom functions (what they match).
"""

from dataclasses import dataclass

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}"

_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_SLASH}"
_GPT4O = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}|{_REST_SLASH}"
)
_HAN_KANA = r"[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[[一-龥ࠀ-一가-퟿]&&\S]+", r"\p{N}")
_FALCON_MARKS = r"[\p{P}\$\+<=>\^~\|`]+"
_DEFAULT_MARKS = r"[\p{P}\$\+<=>\^~\|]+"


@dataclass(frozen=True)
class PreTokenizer:
    """What a name in `tokenizer.ggml.pre` stands for.

    Attributes:
        expressions: in oniguruma's syntax, applied in turn.
        ignore_merges: a word that is a token is that token, regardless of the merges.
        add_bos: whether a prompt starts with the beginning-of-sequence token unless the file says otherwise.
    """

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2_WORDS = PreTokenizer((_GPT2,))
_SINGLE_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_WORDS = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_LLAMA3_WITH_MERGES = PreTokenizer((_LLAMA3,))
_QWEN2_WORDS = PreTokenizer((_QWEN2,))
_GPT4O_WORDS = PreTokenizer((_GPT4O,))
_DEEPSEEK3_WORDS = PreTokenizer((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((_DEFAULT_MARKS, _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4"), _GPT2_WORDS),
    **dict.fromkeys(("mpt", "olmo", "jais", "trillion", "granite-docling"), _GPT2_WORDS),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _SINGLE_DIGITS
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3_WORDS
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _LLAMA3_WITH_MERGES),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "hunyuan", "grok-2", "solar-open"), _QWEN2_WORDS
    ),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _GPT4O_WORDS),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK3_WORDS),
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
    "falcon": PreTokenizer((_FALCON_MARKS, _GPT2, r"[0-9][0-9][0-9]")),
}
