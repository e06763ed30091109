"""The two kinds of GGUF vocabulary as `tokenizers` models: byte-level merges, and SentencePiece with scores."""

from typing import TYPE_CHECKING

from slmpack.errors import SourceError
from slmpack.source.gguf.metadata import CONVERT_AGAIN
from slmpack.source.gguf.pretokenizers import PRE_TOKENIZERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from slmpack.source.gguf.vocabulary import Vocabulary

SPACE = "▁"


def build_byte_level(vocabulary: "Vocabulary") -> "Tokenizer":
    """Build the tokenizer of a `gpt2` vocabulary.

    Raises:
        SourceError: a merge makes a token, or a byte within characters needs one, that is not in the vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    assert vocabulary.pre is not None
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    for left, right in vocabulary.merges:
        if left not in ids or right not in ids or left + right not in ids:
            raise SourceError(
                f"tokenizer.ggml.merges has {left + ' ' + right!r}",
                "both tokens and the two joined in tokenizer.ggml.tokens",
                CONVERT_AGAIN,
            )
    words = PRE_TOKENIZERS[vocabulary.pre]
    tokenizer = Tokenizer(models.BPE(ids, list(vocabulary.merges), ignore_merges=words.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(expression), "isolated") for expression in words.expressions),
            *(pre_tokenizers.CharDelimiterSplit(character) for character in _characters_without_token(ids)),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _with_specials(tokenizer, vocabulary)


def _characters_without_token(ids: dict[str, int]) -> list[str]:
    """Return the ASCII characters that are no token.

    Vocabularies leave out bytes that their training text never had, such as control characters. llama.cpp drops such
    a byte, yet never merges over it; `tokenizers` would, unless words are cut there. ONNX Runtime GenAI knows no such
    cut and gives -1 for the byte.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    spelled = ByteLevel(add_prefix_space=False, use_regex=False)
    return [chr(code) for code in range(0x80) if spelled.pre_tokenize_str(chr(code))[0][0] not in ids]


def build_sentencepiece(vocabulary: "Vocabulary") -> "Tokenizer":
    """Build the tokenizer of a `llama` vocabulary: merges, best score first, and bytes for the rest.

    Raises:
        SourceError: a byte has no token, or a token needs a merge of a character that has none.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    for byte in range(256):
        if f"<0x{byte:02X}>" not in ids:
            raise SourceError(f"tokenizer.ggml.tokens has no <0x{byte:02X}>", "a token for every byte", CONVERT_AGAIN)
    tokenizer = Tokenizer(
        models.BPE(
            ids,
            _merges_by_score(ids, vocabulary.scores),
            unk_token=vocabulary.tokens[vocabulary.unk_id] if vocabulary.unk_id is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = normalizers.Replace(" ", SPACE)
    after = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), space])
        tokenizer.decoder = decoders.Sequence([*after, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = space
        # No space is left to split at. Without it ONNX Runtime GenAI would split by Llama 3's expression.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.decoder = decoders.Sequence(after)
    return _with_specials(tokenizer, vocabulary)


def _merges_by_score(ids: dict[str, int], scores: tuple[float, ...]) -> list[tuple[str, str]]:
    """Return every pair of tokens that joins to a token, in the order in which llama.cpp would join them.

    llama.cpp joins any two neighbours whose text is a token, regardless of how the vocabulary was trained.
    """
    ranked = []
    for text, index in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[index], index, cut, left, right))
            elif _joins_unknown(left, right, ids):
                raise SourceError(
                    f"tokenizer.ggml.tokens has {text!r}", f"tokens for {left!r} and {right!r} too", CONVERT_AGAIN
                )
    return [(left, right) for *_, left, right in sorted(ranked)]


def _joins_unknown(left: str, right: str, ids: dict[str, int]) -> bool:
    """Whether llama.cpp could join the two although one is a lone character without a token."""
    return (left in ids or len(left) == 1) and (right in ids or len(right) == 1)


def _with_specials(tokenizer: "Tokenizer", vocabulary: "Vocabulary") -> "Tokenizer":
    """Add the special tokens and what a prompt starts and ends with."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_tokens(
        [
            AddedToken(token.text, normalized=False, special=token.hidden, rstrip=token.strips_right)
            for token in vocabulary.specials
        ]
    )
    around = {}
    if vocabulary.add_bos and vocabulary.bos_id is not None:
        around["bos"] = vocabulary.bos_id
    if vocabulary.add_eos:
        around["eos"] = vocabulary.eos_id
    pieces = {name: vocabulary.tokens[index] for name, index in around.items()}
    single = [*([pieces["bos"]] if "bos" in pieces else []), "$A", *([pieces["eos"]] if "eos" in pieces else [])]
    tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[(pieces[name], index) for name, index in around.items()]
    )
    return tokenizer
