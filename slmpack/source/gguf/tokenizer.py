# ruff: noqa: RUF001 - DeepSeek writes its special tokens with full-width bars
"""The tokenizer inside a GGUF file, written as Hugging Face files that give llama.cpp's ids.

    tokenizer.ggml.* --read_vocabulary--> Vocabulary --write_tokenizer--> tokenizer.json, tokenizer_config.json,
                                                                          chat_template.jinja

llama.cpp is what the file was written for, so its reading is the right one: special tokens are found first, anywhere
in the text; then `gpt2` vocabularies merge bytes within words (`pretokenizers`), `llama` ones merge characters
over the whole text, best score first, and spell in bytes what is left.

Two differences remain, both where nobody can see them in ordinary text: special tokens that overlap each other in
the text (llama.cpp takes the longer, `tokenizers` the one that starts first), and white space beyond ASCII after a
special token of Phi-3 (llama.cpp keeps it, `tokenizers` drops it).

Source: ggml-org/llama.cpp, src/llama-vocab.cpp: `llama_vocab::impl::load`, `tokenizer_st_partition`, `tokenize`.
"""

from pathlib import Path

from slmpack.machine.json_file import write_json
from slmpack.source.gguf.bpe import build_byte_level, build_sentencepiece
from slmpack.source.gguf.header import GgufHeader, read_header
from slmpack.source.gguf.metadata import Metadata
from slmpack.source.gguf.pretokenizers import PRE_TOKENIZERS
from slmpack.source.gguf.vocabulary import SpecialToken, TokenType, Vocabulary

KEY = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"

# Texts that end a generation for llama.cpp, and that it takes for special tokens of any type.
END_TEXTS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    }
)
# Texts that llama.cpp takes for the special tokens of code infilling and for those of gpt-oss.
OTHER_SPECIAL_TEXTS = frozenset(
    {
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|prefix|>",
        "<|suffix|>",
        "<|middle|>",
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
        "<|channel|>",
        "<|message|>",
        "<|start|>",
        "<|constrain|>",
    }
)


def read_vocabulary(header: GgufHeader) -> Vocabulary:
    """Read and check the tokenizer fields of a GGUF file.

    Raises:
        SourceError: a tokenizer model or pre-tokenizer that is not known to be read as llama.cpp does, or a field that
            is missing or does not fit the others; the message names the field.
    """
    fields = Metadata(header.metadata)
    model, pre = _model_and_pre(fields)
    tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(fields.texts(f"{KEY}tokens"))]
    _require_distinct(fields, tokens)
    words = PRE_TOKENIZERS[pre] if pre else None
    bos, eos = _token_id(fields, "bos", tokens), _token_id(fields, "eos", tokens)
    add_bos = fields.flag(f"{KEY}add_bos_token", words.add_bos if words else True)
    if eos is None or (add_bos and bos is None):
        raise fields.refuse(f"{KEY}{'eos' if eos is None else 'bos'}_token_id", "the id of a token")
    template = fields.text(TEMPLATE)
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tuple(tokens),
        specials=_special_tokens(fields, tokens),
        merges=_merges(fields) if words else (),
        scores=() if words else tuple(fields.numbers(f"{KEY}scores", len(tokens))),
        bos_id=bos,
        eos_id=eos,
        pad_id=_token_id(fields, "padding", tokens),
        unk_id=_token_id(fields, "unknown", tokens),
        end_ids=_end_ids(fields, tokens, eos, template or ""),
        add_bos=add_bos,
        add_eos=fields.flag(f"{KEY}add_eos_token", False),
        add_space_prefix=words is None and fields.flag(f"{KEY}add_space_prefix", True),
        chat_template=template,
        context_length=fields.whole(f"{fields.text('general.architecture')}.context_length", 1),
    )


def _token_id(fields: Metadata, role: str, tokens: list[str]) -> int | None:
    return fields.whole(f"{KEY}{role}_token_id", most=len(tokens) - 1)


def _model_and_pre(fields: Metadata) -> tuple[str, str | None]:
    model = fields.text(f"{KEY}model")
    if model is None or model not in ("gpt2", "llama"):
        raise fields.refuse(f"{KEY}model", "gpt2 or llama")
    if model == "llama":
        return model, None
    pre = fields.text(f"{KEY}pre")
    if pre not in PRE_TOKENIZERS:
        raise fields.refuse(f"{KEY}pre", f"one of {', '.join(sorted(PRE_TOKENIZERS))}")
    return model, pre


def _require_distinct(fields: Metadata, tokens: list[str]) -> None:
    seen: set[str] = set()
    for text in tokens:
        if text in seen:
            raise fields.refuse(f"{KEY}tokens", "every token once", f"has {text!r} twice")
        seen.add(text)


def _merges(fields: Metadata) -> tuple[tuple[str, str], ...]:
    pairs: dict[tuple[str, str], None] = {}  # the first of two equal merges counts
    for merge in fields.texts(f"{KEY}merges"):
        cut = merge.find(" ", 1)
        if cut < 0 or cut + 1 == len(merge):
            raise fields.refuse(f"{KEY}merges", "two tokens with a space between them", f"has {merge!r}")
        pairs.setdefault((merge[:cut], merge[cut + 1 :]))
    return tuple(pairs)


def _special_tokens(fields: Metadata, tokens: list[str]) -> tuple[SpecialToken, ...]:
    types = fields.wholes(f"{KEY}token_type", len(tokens))
    strips = _strips_right(fields)
    specials = []
    for text, kind in zip(tokens, types, strict=True):
        hidden = kind in (TokenType.CONTROL, TokenType.UNKNOWN) or text in END_TEXTS
        if hidden or kind == TokenType.USER_DEFINED or text in OTHER_SPECIAL_TEXTS:
            keeps = text in ("<unk>", "<s>", "<|endoftext|>")
            specials.append(SpecialToken(text, hidden, strips and not keeps))
    return tuple(specials)


def _strips_right(fields: Metadata) -> bool:
    """Whether special tokens swallow white space: of Phi-3 they do, which the file tells by its name only."""
    name = (fields.label("general.name") or "").lower()
    return "phi-3" in name or "phi3" in name


def _end_ids(fields: Metadata, tokens: list[str], eos: int, template: str) -> tuple[int, ...]:
    """Return `eos_token_id`, then what the file names as end of turn or of message, then what its template ends with.

    Files often name `<|endoftext|>` alone, although the chat template ends a turn with `<|end|>`. llama.cpp stops at
    every token with such a text; the ones that the template never writes are left out here.
    """
    named = [_token_id(fields, "eot", tokens), _token_id(fields, "eom", tokens), *_more_ends(fields, tokens)]
    written = (index for index, text in enumerate(tokens) if text in END_TEXTS and text in template)
    return tuple(dict.fromkeys([eos, *(index for index in named if index is not None), *written]))


def _more_ends(fields: Metadata, tokens: list[str]) -> list[int]:
    """Return the ids of `eos_token_ids`, which some converters write beside `eos_token_id`."""
    key = f"{KEY}eos_token_ids"
    if not fields.has(key):
        return []
    ids = fields.wholes(key)
    if not 0 <= min(ids) <= max(ids) < len(tokens):
        raise fields.refuse(key, f"ids below {len(tokens)}")
    return ids


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
