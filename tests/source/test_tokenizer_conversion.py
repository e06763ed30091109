"""Tokenizer conversion: a checkpoint with an older tokenizer only is read as transformers reads it, and says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import PHI3_CHAT, Rules, sentencepiece
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from slmpack.checkpoint.texts.sample_texts import CORPUS
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.errors import SourceError
from slmpack.machine.json_file import write_json
from slmpack.records import Snapshot
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source
from slmpack.source.tokenizer_conversion import convert_tokenizer

SPECIALS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def without_fast_tokenizer(checkpoint: Path, folder: Path) -> Rules:
    """Copy a checkpoint but its tokenizer.json, whose content is returned."""
    shutil.copytree(checkpoint, folder)
    rules: Rules = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    return rules


def with_merges(checkpoint: Path, folder: Path) -> Path:
    """Write what GPT-2's kin were published with: the files of its tokenizer, and a configuration of their own kind."""
    model = without_fast_tokenizer(checkpoint, folder)["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "GPT2Tokenizer"})
    write_json(folder / "config.json", {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
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
def test_sentencepiece_is_read_as_transformers_reads_it_and_the_source_stays(tiny_phi3: Path, tmp_path: Path) -> None:
    folder = with_sentencepiece(tiny_phi3, tmp_path / "older")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    snapshot = fetched(folder, tmp_path / "workspace")
    assert_reads_as_transformers(snapshot.path, folder)
    (sentence,) = snapshot.repairs
    assert sentence.startswith("tokenizer.json was made from tokenizer.model by transformers ")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_byte_level_merges_are_read_as_transformers_reads_them(tiny_phi3: Path, tmp_path: Path) -> None:
    folder = with_merges(tiny_phi3, tmp_path / "older")
    shutil.copytree(folder, tmp_path / "converted")
    sentence = convert_tokenizer(tmp_path / "converted", tmp_path / "log")
    assert sentence is not None
    assert sentence.startswith("tokenizer.json was made from vocab.json and merges.txt by transformers ")
    assert_reads_as_transformers(tmp_path / "converted", folder)
    assert convert_tokenizer(tmp_path / "converted", tmp_path / "log") is None


def assert_reads_as_transformers(converted: Path, folder: Path) -> None:
    found, expected = read_tokenizer(converted), AutoTokenizer.from_pretrained(folder)
    for text in CORPUS:
        assert found(text)["input_ids"] == expected(text)["input_ids"]
    assert found.special_tokens_map == expected.special_tokens_map
    assert found("The quick brown fox")["input_ids"] != found("The quick brown box")["input_ids"]


@pytest.mark.slow
def test_an_older_tokenizer_that_transformers_cannot_read_is_refused_by_its_name(
    tiny_phi3: Path, tmp_path: Path
) -> None:
    folder = with_sentencepiece(tiny_phi3, tmp_path / "older")
    (folder / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(SourceError, match=r"^transformers cannot read the tokenizer in .*older.*; save the tokenizer"):
        fetched(folder, tmp_path / "workspace")
    assert not list((tmp_path / "workspace" / "snapshots").glob("*"))
