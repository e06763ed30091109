# ruff: noqa: RUF001 - DeepSeek writes its special tokens with full-width bars
"""The tokenizer inside a GGUF file, written as Hugging Face files that give llama.cpp's ids.

    tokenizer.ggml.* --read_vocabulary--> Vocabulary --write_tokenizer--> tokenizer.json, tokenizer_config.json,
                                                                          chat_template.jinja

llama.cpp is what the file was written for, so its reading is the right one: special tokens are found first, anywhere
in the text; then `gpt2` vocabularies merge bytes within words (`gguf_pretokenizers`), `llama` ones merge characters
over the whole text, best score first, and spell in bytes what is left.

Two differences remain, both where nobody can see them in ordinary text: special tokens that overlap each other in
the text (llama.cpp takes the longer, `tokenizers` the one that starts first), and white space beyond ASCII after a
special token of Phi-3 (llama.cpp keeps it, `tokenizers` drops it).

Source: ggml-org/llama.cpp, src/llama-vocab.cpp: `llama_vocab::impl::load`, `tokenizer_st_partition`, `tokenize`.
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from slmpack.errors import SourceError
from slmpack.gguf_bpe import build_byte_level, build_sentencepiece
from slmpack.gguf_header import GgufHeader, read_header
from slmpack.gguf_pretokenizers import PRE_TOKENIZERS
from slmpack.json_file import write_json

CONVERT_AGAIN = "convert the model again or use its original checkpoint"

# Texts that end a generation for llama.cpp, and that it takes for special tokens whatever their type.
END_TEXTS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
})  # fmt: skip
# Texts that llama.cpp takes for the special tokens of code infilling and for those of gpt-oss.
OTHER_SPECIAL_TEXTS = frozenset({
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
    "<|prefix|>", "<|suffix|>", "<|middle|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>",
})  # fmt: skip


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


class _Fields:
    """Typed access to `tokenizer.ggml.*`; every refusal names the field and its value."""

    def __init__(self, header: GgufHeader) -> None:
        self.metadata = header.metadata

    def refuse(self, name: str, expected: str, found: str = "") -> SourceError:
        key = f"tokenizer.ggml.{name}"
        told = found or (f"is {self.metadata[key]!r}" if key in self.metadata else "is missing")
        return SourceError(f"{key} {told}", expected, CONVERT_AGAIN)

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if value is not default and not isinstance(value, kind):
            raise self.refuse(name, f"a value of type {kind.__name__}", f"is of type {type(value).__name__}")
        return value

    def array(self, name: str, kind: type, length: int | None) -> list[Any]:
        values: list[Any] = self.get(name, list, [])
        if not values:
            raise self.refuse(name, "a list with one entry a token" if length else "a list", "is missing or empty")
        if not all(isinstance(value, kind) for value in values):
            raise self.refuse(name, f"a list of {kind.__name__}", "has entries of another type")
        if length is not None and len(values) != length:
            raise self.refuse(name, f"{length}, one a token", f"has {len(values)} entries")
        return values

    def token_id(self, name: str, tokens: int) -> int | None:
        value: int | None = self.get(name, int)
        if value is not None and not 0 <= value < tokens:
            raise self.refuse(name, f"an id below {tokens}")
        return value


def read_vocabulary(header: GgufHeader) -> Vocabulary:
    """Read and check the tokenizer fields of a GGUF file.

    Raises:
        SourceError: a tokenizer model or pre-tokenizer that is not known to be read as llama.cpp does, or a field that
            is missing or does not fit the others; the message names the field.
    """
    fields = _Fields(header)
    model, pre = _model_and_pre(fields)
    tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(fields.array("tokens", str, None))]
    _require_distinct(fields, tokens)
    words = PRE_TOKENIZERS[pre] if pre else None
    bos, eos = fields.token_id("bos_token_id", len(tokens)), fields.token_id("eos_token_id", len(tokens))
    add_bos = fields.get("add_bos_token", bool, words.add_bos if words else True)
    if eos is None or (add_bos and bos is None):
        raise fields.refuse("eos_token_id" if eos is None else "bos_token_id", "the id of a token")
    template = header.metadata.get("tokenizer.chat_template")
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tuple(tokens),
        specials=_special_tokens(fields, tokens),
        merges=_merges(fields) if words else (),
        scores=() if words else tuple(fields.array("scores", float, len(tokens))),
        bos_id=bos,
        eos_id=eos,
        pad_id=fields.token_id("padding_token_id", len(tokens)),
        unk_id=fields.token_id("unknown_token_id", len(tokens)),
        end_ids=_end_ids(fields, tokens, eos, template or ""),
        add_bos=add_bos,
        add_eos=fields.get("add_eos_token", bool, False),
        add_space_prefix=words is None and fields.get("add_space_prefix", bool, True),
        chat_template=template,
        context_length=header.metadata.get(f"{header.metadata.get('general.architecture')}.context_length"),
    )


def _model_and_pre(fields: _Fields) -> tuple[str, str | None]:
    model = fields.get("model", str)
    if model not in ("gpt2", "llama"):
        raise fields.refuse("model", "gpt2 or llama")
    if model == "llama":
        return model, None
    pre = fields.get("pre", str)
    if pre not in PRE_TOKENIZERS:
        raise fields.refuse("pre", f"one of {', '.join(sorted(PRE_TOKENIZERS))}")
    return model, pre


def _require_distinct(fields: _Fields, tokens: list[str]) -> None:
    seen: set[str] = set()
    for text in tokens:
        if text in seen:
            raise fields.refuse("tokens", "every token once", f"has {text!r} twice")
        seen.add(text)


def _merges(fields: _Fields) -> tuple[tuple[str, str], ...]:
    pairs: dict[tuple[str, str], None] = {}  # the first of two equal merges counts
    for merge in fields.array("merges", str, None):
        cut = merge.find(" ", 1)
        if cut < 0 or cut + 1 == len(merge):
            raise fields.refuse("merges", "two tokens with a space between them", f"has {merge!r}")
        pairs.setdefault((merge[:cut], merge[cut + 1 :]))
    return tuple(pairs)


def _special_tokens(fields: _Fields, tokens: list[str]) -> tuple[SpecialToken, ...]:
    types = fields.array("token_type", int, len(tokens))
    strips = _strips_right(fields)
    specials = []
    for text, kind in zip(tokens, types, strict=True):
        hidden = kind in (TokenType.CONTROL, TokenType.UNKNOWN) or text in END_TEXTS
        if hidden or kind == TokenType.USER_DEFINED or text in OTHER_SPECIAL_TEXTS:
            keeps = text in ("<unk>", "<s>", "<|endoftext|>")
            specials.append(SpecialToken(text, hidden, strips and not keeps))
    return tuple(specials)


def _strips_right(fields: _Fields) -> bool:
    """Whether special tokens swallow white space: of Phi-3 they do, which the file tells by its name only."""
    name = str(fields.metadata.get("general.name", "")).lower()
    return "phi-3" in name or "phi3" in name


def _end_ids(fields: _Fields, tokens: list[str], eos: int, template: str) -> tuple[int, ...]:
    """Return `eos_token_id`, then what the file names as end of turn or of message, then what its template ends with.

    Files often name `<|endoftext|>` alone, although the chat template ends a turn with `<|end|>`. llama.cpp stops at
    every token with such a text; the ones that the template never writes are left out here.
    """
    named = (fields.token_id("eot_token_id", len(tokens)), fields.token_id("eom_token_id", len(tokens)))
    written = (index for index, text in enumerate(tokens) if text in END_TEXTS and text in template)
    return tuple(dict.fromkeys([eos, *(index for index in named if index is not None), *written]))


def write_tokenizer(path: Path, into: Path) -> None:
    """Write the tokenizer of the GGUF file `path` into the folder `into`.

    `chat_template.jinja` is written if the file has a template.

    Raises:
        SourceError: as `read_vocabulary`.
    """
    vocabulary = read_vocabulary(read_header(path))
    build = build_byte_level if vocabulary.model == "gpt2" else build_sentencepiece
    build(vocabulary).save(str(into / "tokenizer.json"))
    write_json(into / "tokenizer_config.json", _tokenizer_config(vocabulary))
    if vocabulary.chat_template is not None:
        (into / "chat_template.jinja").write_text(vocabulary.chat_template, newline="")


def _tokenizer_config(vocabulary: Vocabulary) -> dict[str, str | int | bool]:
    ids = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id, "pad": vocabulary.pad_id, "unk": vocabulary.unk_id}
    config: dict[str, str | int | bool] = {
        f"{name}_token": vocabulary.tokens[index] for name, index in ids.items() if index is not None
    }
    if vocabulary.context_length is not None:
        config["model_max_length"] = vocabulary.context_length
    return config | {
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
    }
