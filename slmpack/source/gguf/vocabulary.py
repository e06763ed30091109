"""The vocabulary of a GGUF file: tokens, their kinds, merges and scores."""

from dataclasses import dataclass
from enum import IntEnum


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`. Source: `llama_token_type` in ggml-org/llama.cpp, include/llama.h."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SpecialToken:
    """A token that is looked for in the text before anything else.

    Attributes:
        hidden: left out of decoded text on request, as control tokens are and user-defined ones are not.
        strips_right: swallows the white space after it.
    """

    text: str
    hidden: bool
    strips_right: bool


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer fields of a GGUF file, checked and with llama.cpp's defaults filled in.

    Attributes:
        model: `gpt2` (byte-level merges) or `llama` (SentencePiece with scores).
        pre: `tokenizer.ggml.pre`; None for `llama`.
        merges: pairs in order of rank; empty for `llama`.
        scores: one a token; empty for `gpt2`.
        end_ids: what ends an answer: `eos_token_id` first, then the end-of-turn tokens.
    """

    model: str
    pre: str | None
    tokens: tuple[str, ...]
    specials: tuple[SpecialToken, ...]
    merges: tuple[tuple[str, str], ...]
    scores: tuple[float, ...]
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    unk_id: int | None
    end_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None
    context_length: int | None
