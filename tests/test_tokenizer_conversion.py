"""Tokenizer conversion: a checkpoint with an older tokenizer only is read as transformers reads it, and says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import PHI3_CHAT, Rules, sentencepiece
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from slmpack.errors import SourceError
from slmpack.fetch import fetch_snapshot
from slmpack.json_file import write_json
from slmpack.parity_corpus import CORPUS
from slmpack.records import Snapshot
from slmpack.resolve import resolve_source
from slmpack.tokenizer_pair import read_tokenizer

SPECIALS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def without_fast_tokenizer(checkpoint: Path, folder: Path) -> Rules:
    """Copy a checkpoint but its tokenizer.json, whose content is returned."""
    shutil.copytree(checkpoint, folder)
    rules: Rules = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    return rules


def with_merges(checkpoint: Path, folder: Path) -> Path:
    model = without_fast_tokenizer(checkpoint, folder)["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "GPT2Tokenizer"})
    return folder


def with_sentencepiece(checkpoint: Path, folder: Path) -> Path:
    without_fast_tokenizer(checkpoint, folder)
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(sentencepiece(())))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    write_json(folder / "tokenizer_config.json", named)
    (folder / "chat_template.jinja").write_text(PHI3_CHAT)
    return folder


def sentencepiece_model(rules: Rules) -> bytes:
    """Spell merges with byte fallback as SentencePiece's own file. Source: sentencepiece_model.proto."""
    model: Any = import_protobuf().ModelProto()  # type: ignore[no-untyped-call]
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}  # unknown, control; bytes are 6, others 1
    for text, index in sorted(rules["model"]["vocab"].items(), key=lambda item: int(item[1])):
        piece = model.pieces.add()
        piece.piece, piece.score = text, -float(index)
        piece.type = kinds.get(text, 6 if text.startswith("<0x") else 1)
    model.trainer_spec.model_type = 2  # BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = True
    return bytes(model.SerializeToString())


def fetched(folder: Path, workspace: Path) -> Snapshot:
    return fetch_snapshot(resolve_source(str(folder)), workspace)


@pytest.mark.slow
@pytest.mark.parametrize("older", [with_merges, with_sentencepiece])
def test_an_older_tokenizer_is_read_as_transformers_reads_it(tiny_phi3: Path, tmp_path: Path, older: Any) -> None:
    folder = older(tiny_phi3, tmp_path / "older")
    expected = AutoTokenizer.from_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    snapshot = fetched(folder, tmp_path / "workspace")
    found = read_tokenizer(snapshot.path)
    for text in CORPUS:
        assert found(text)["input_ids"] == expected(text)["input_ids"]
    assert found.special_tokens_map == expected.special_tokens_map
    (sentence,) = snapshot.repairs
    assert sentence.startswith("tokenizer.json was made from ")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"} == before


@pytest.mark.slow
def test_an_older_tokenizer_that_transformers_cannot_read_is_refused_by_its_name(
    tiny_phi3: Path, tmp_path: Path
) -> None:
    folder = with_sentencepiece(tiny_phi3, tmp_path / "older")
    (folder / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(SourceError, match=r"^transformers cannot read the tokenizer in .*older.*; save the tokenizer"):
        fetched(folder, tmp_path / "workspace")
    assert not list((tmp_path / "workspace" / "snapshots").glob("*"))
