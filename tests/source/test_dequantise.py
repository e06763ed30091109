"""Quantised checkpoints: read as they were written, made plain, and taken by the builder as they are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import IDS, Trial, Trials, build_and_ask
from checkpoints import SMALL, copy_tokenizer, write_random
from families import qwen_tokenizer
from numpy.typing import NDArray
from older_records import write_older_manifest
from package_weights import layer_weights, package_weights
from places import HARNESS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slmpack.build.build import build_package
from slmpack.checkpoint.blocks import Bits
from slmpack.checkpoint.inspect import inspect_checkpoint
from slmpack.checkpoint.original import codes_folder, original_sentences
from slmpack.errors import BuildError, SourceError
from slmpack.machine.child import run_in_child
from slmpack.machine.store import MANIFEST, damage
from slmpack.records import Original, Recipe, Target
from slmpack.source.dequantise import DequantiseRequest, dequantise_checkpoint
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

VOCABULARY = 4096  # more than the largest of `asking.IDS`
SIZES = SMALL | {"vocab_size": VOCABULARY, "intermediate_size": 96, "pad_token_id": 2, "eos_token_id": 2}
GROUP = 32


# ------------------------------------------------------------------------- the layouts, written number by number


def int32_of(items: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Pack the last axis, the first item into the lowest bits."""
    grouped = items.reshape(*items.shape[:-1], -1, 32 // bits)
    words = sum(grouped[..., place] << bits * place for place in range(32 // bits))
    return np.asarray(words).astype(np.uint32).view(np.int32)


def as_gptq(codes: NDArray[np.int64], zeros: NDArray[np.int64], bits: int, less: int = 1) -> dict[str, Any]:
    stored = (zeros.T - less) % (1 << bits)
    return {"qweight": int32_of(codes, bits).T, "qzeros": int32_of(stored, bits),
            "g_idx": np.arange(codes.shape[1], dtype=np.int32) // GROUP}  # fmt: skip


def as_gptq_v2(codes: NDArray[np.int64], zeros: NDArray[np.int64], bits: int) -> dict[str, Any]:
    return as_gptq(codes, zeros, bits, less=0)


def as_awq(codes: NDArray[np.int64], zeros: NDArray[np.int64], bits: int) -> dict[str, Any]:
    def interleaved(items: NDArray[np.int64]) -> NDArray[np.int32]:
        eights = items.reshape(items.shape[0], -1, 8)
        return int32_of(eights[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(items.shape), bits)

    return {"qweight": interleaved(codes.T), "qzeros": interleaved(zeros.T)}


def as_olive(codes: NDArray[np.int64], zeros: NDArray[np.int64], bits: int) -> dict[str, Any]:
    def bytes_of(items: NDArray[np.int64]) -> NDArray[np.uint8]:
        if bits == 8:
            return items.astype(np.uint8)
        even = np.pad(items, ((0, 0), (0, items.shape[1] % 2)))
        return (even[:, 0::2] | even[:, 1::2] << 4).astype(np.uint8)

    return {"qweight": bytes_of(codes), "qzeros": bytes_of(zeros)}


LAYOUTS: dict[str, Callable[..., dict[str, Any]]] = {
    "gptq": as_gptq, "gptq_v2": as_gptq_v2, "awq": as_awq, "olive": as_olive,
}  # fmt: skip


def told(layout: str, bits: int) -> dict[str, Any]:
    """What such a checkpoint says in its config.json."""
    method = layout.removesuffix("_v2")
    other: dict[str, dict[str, Any]] = {"gptq": {"desc_act": False, "sym": False, "checkpoint_format": layout},
             "awq": {"version": "gemm", "zero_point": True}, "olive": {"symmetric": False}}  # fmt: skip
    return {"quant_method": method, "bits": bits, "group_size": GROUP} | other[method]


def write_quantised(folder: Path, tokenizer: Path, family: str, layout: str, bits: int = 4, **config: Any) -> Path:
    """Write a random checkpoint with codes in its layers' matrices; what they mean is in `plain.safetensors`."""
    write_random(folder, family, SIZES | config)
    copy_tokenizer(tokenizer, folder)
    tensors, random = load_file(folder / "model.safetensors"), np.random.default_rng(1)
    plain = {name: tensor.float() for name, tensor in tensors.items()}
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors.pop(name).shape
        codes = random.integers(0, 1 << bits, (rows, columns))
        zeros = random.integers(0, 1 << bits, (rows, columns // GROUP))
        scales = (0.03 * 16 / (1 << bits) * random.uniform(0.5, 1.5, zeros.shape)).astype(np.float16)
        offsets = codes - zeros.repeat(GROUP, axis=1)
        plain[name] = torch.from_numpy((offsets * scales.astype(np.float64).repeat(GROUP, axis=1)).astype(np.float32))
        parts = LAYOUTS[layout](codes, zeros, bits) | {"scales": scales if layout == "olive" else scales.T}
        stem = name.removesuffix("weight")
        tensors |= {stem + part: torch.from_numpy(np.ascontiguousarray(value)) for part, value in parts.items()}
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(plain, folder / "plain.safetensors")
    edit_config(folder, quantization_config=told(layout, bits))
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_told(folder: Path, **changes: Any) -> None:
    before = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, quantization_config=before | changes)


# ---------------------------------------------------------------------------------------- by the headers alone


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_tokenizer(tmp_path_factory.mktemp("tokenizer") / "qwen")


@pytest.fixture(scope="module")
def gptq(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantised(tmp_path_factory.mktemp("gptq") / "tiny", tokenizer, "Llama", "gptq")


@pytest.fixture
def altered(gptq: Path, tmp_path: Path) -> Path:
    """A copy to break: its weights are a link until they are written anew."""
    for path in gptq.iterdir():
        if path.suffix == ".safetensors":
            (tmp_path / path.name).hardlink_to(path)
        else:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_is_what_it_will_be_once_it_is_plain(gptq: Path) -> None:
    facts = inspect_checkpoint(gptq)
    plain = load_file(gptq / "plain.safetensors")
    assert (facts.dtype, facts.parameters) == ("F32", sum(tensor.numel() for tensor in plain.values()))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"quant_method": "bitsandbytes"}, r"quantised by 'bitsandbytes'; gptq, awq, olive or floats; name the model"),
        ({"quant_method": "compressed-tensors"}, r"quantised by 'compressed-tensors'; gptq, awq"),
        ({"bits": 3}, r"quantised by gptq to 3 bits; 4 or 8; name the model that it was made from"),
        ({"bits": True}, r"to True bits"),
        ({"quant_method": "awq", "bits": 8}, r"quantised by awq to 8 bits; 4;"),
        ({"quant_method": "awq", "version": "gemv"}, r"by awq, laid out as gemv; gemm;"),
        ({"checkpoint_format": "marlin"}, r"by gptq, laid out as marlin; gptq or gptq_v2;"),
        ({"group_size": 0}, r"in groups of 0; a positive whole number, or -1"),
        ({"group_size": None}, r"in groups of None"),
        ({"dynamic": {"lm_head": {"bits": 8}}}, r"single modules are quantised otherwise \(dynamic\)"),
        ({"bits": 8}, r"model\.layers\.0\.\S+\.(scales|qzeros|g_idx) in \S+ is \S+ \[\d+.*\]; .*take the config\.json"),
        ({"group_size": 16}, r"\.scales in \S+ is F16 \[\d+, \d+\]; F16 or BF16 or F32 \[\d+, \d+\]; take"),
    ],
)
def test_refuses_what_it_cannot_read(changes: dict[str, Any], found: str, altered: Path) -> None:
    edit_told(altered, **changes)
    with pytest.raises(SourceError, match=found):
        resolve_source(str(altered))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")


DOWN = "model.layers.1.mlp.down_proj"


def without_scales(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(f"{DOWN}.scales")


def with_other_zero_points(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}.qzeros"] = torch.zeros(3, 7, dtype=torch.int32)


def with_flat_codes(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}.qweight"] = torch.zeros(64, dtype=torch.int32)


def without_codes(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("qweight")]:
        tensors.pop(name)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (without_scales, rf"has no {DOWN}\.scales; F16 or BF16 or F32 \[3, 64\]"),
        (with_other_zero_points, r"I32 \[3, 7\]; I32 \[3, 8\]"),
        (with_flat_codes, r"I32 \[64\]; a matrix"),
        (without_codes, r"no quantised weights"),
    ],
)
def test_refuses_tensors_that_do_not_fit(edit: Callable[[Any], object], found: str, altered: Path) -> None:
    edit_tensors(altered, edit)
    with pytest.raises(SourceError, match=found):
        resolve_source(str(altered))


# ------------------------------------------------------------------------------------------------- made plain


def dequantise(checkpoint: Path, into: Path) -> Original:
    for name in ("plain", "codes"):
        (into / name).mkdir()
        copy_tokenizer(checkpoint, into / name)
    return dequantise_checkpoint(DequantiseRequest(original=checkpoint, plain=into / "plain", codes=into / "codes"))


def assert_plain(folder: Path, checkpoint: Path) -> None:
    expected, found = load_file(checkpoint / "plain.safetensors"), load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"


@pytest.mark.parametrize(
    ("layout", "bits"), [("gptq", 4), ("gptq", 8), ("gptq_v2", 4), ("awq", 4), ("olive", 4), ("olive", 8)]
)
def test_every_weight_is_scale_times_code_less_zero_point(
    layout: str, bits: int, tokenizer: Path, tmp_path: Path
) -> None:
    checkpoint = write_quantised(tmp_path / "tiny", tokenizer, "Llama", layout, bits)
    original = dequantise(checkpoint, tmp_path)
    assert (original.bits, original.unsupported_reason) == (bits, None)
    assert_plain(tmp_path / "plain", checkpoint)


def test_columns_of_any_group_become_plain_and_are_not_kept(altered: Path, tmp_path: Path) -> None:
    """The groups of a matrix in reverse, and so its scales and zero points: the weights stay."""

    def reverse(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("qzeros", "scales"):
            tensors[f"{DOWN}.{part}"] = tensors[f"{DOWN}.{part}"].flip(0)
        tensors[f"{DOWN}.g_idx"] = tensors[f"{DOWN}.g_idx"].flip(0)

    edit_tensors(altered, reverse)
    (into := tmp_path / "into").mkdir()
    original, reason = (
        dequantise(altered, into),
        "its groups are not in order (desc_act), which ONNX Runtime has no fast form for",
    )
    assert original.unsupported_reason == reason
    assert not list((into / "codes").glob("*.safetensors"))
    assert original_sentences(original, has_codes=False, lossless=()) == (
        f"weights quantised again from GPTQ, 4 bits, groups of 32, since {reason}",
    )
    assert_plain(into / "plain", altered)


def leave_a_float(tensors: dict[str, torch.Tensor]) -> None:
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        tensors.pop(f"{DOWN}.{part}")
    tensors[f"{DOWN}.weight"] = torch.ones(64, 96)


def quantise_the_embeddings(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("model.embed_tokens.weight")
    parts = as_gptq(np.ones((VOCABULARY, 64), np.int64), np.ones((VOCABULARY, 2), np.int64), 4)
    parts["scales"] = np.ones((2, VOCABULARY), np.float16)
    for part, value in parts.items():
        tensors[f"model.embed_tokens.{part}"] = torch.from_numpy(np.ascontiguousarray(value))


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (leave_a_float, f"has no place for {DOWN}.weight"),
        (quantise_the_embeddings, "has no place for codes of model.embed_tokens"),
    ],
)
def test_what_the_builder_has_no_place_for_is_not_kept(
    edit: Callable[[Any], object], found: str, altered: Path, tmp_path: Path
) -> None:
    edit_tensors(altered, edit)
    (into := tmp_path / "into").mkdir()
    assert found in str(dequantise(altered, into).unsupported_reason)


# ------------------------------------------------------------------------------------------- fetched and built


@pytest.mark.slow
def test_a_snapshot_is_plain_and_what_is_kept_lies_beside_it(gptq: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    source = resolve_source(str(gptq))
    snapshot = fetch_snapshot(source, workspace)
    assert_plain(snapshot.path, gptq)
    assert snapshot.dtype == "F32"
    original, codes = snapshot.original, codes_folder(snapshot.path)
    assert original_sentences(original, has_codes=True, lossless=()) == (
        "weights kept as they were quantised (GPTQ, 4 bits, groups of 32), without loss",
    )
    assert (damage(codes), damage(snapshot.path)) == (None, None)
    assert not list((workspace / "scratch").iterdir())
    shutil.rmtree(codes)
    assert fetch_snapshot(source, workspace) == snapshot
    assert damage(codes) is None
    write_older_manifest(snapshot.path / MANIFEST)
    codes.parent.rename(workspace / "kept")  # where they were then
    inodes = snapshot.path.stat().st_ino, (workspace / "kept" / codes.name).stat().st_ino
    older = fetch_snapshot(source, workspace)
    assert (older, older.path.stat().st_ino, codes.stat().st_ino) == (snapshot, *inodes)  # nothing was made again


CASES: dict[str, tuple[str, str, Bits, dict[str, Any]]] = {
    "gptq": ("Llama", "gptq", 4, {}),
    "tied": ("Qwen2", "gptq", 8, {"tie_word_embeddings": True}),
    "fused": ("Phi3", "gptq_v2", 4, {"bos_token_id": 1, "original_max_position_embeddings": 64}),
    "awq": ("Llama", "awq", 4, {"attention_bias": True}),
}


@pytest.mark.slow
def test_the_builder_computes_with_the_codes_as_they_were(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []
    for name, (family, layout, bits, config) in CASES.items():
        folder = tmp_path / name
        checkpoint = write_quantised(folder / "tiny", tokenizer, family, layout, bits, **config)
        assert dequantise(checkpoint, folder).unsupported_reason is None
        trials.append(Trial(checkpoint=folder / "codes", into=folder / "package", precision=f"int{bits}"))
    monkeypatch.setenv("PYTHONPATH", str(HARNESS))
    run_in_child(
        build_and_ask, Trials(trials=tuple(trials)), log=tmp_path / "log", limit_seconds=900,
        failure=BuildError, doing="the build",
    )  # fmt: skip
    for name in CASES:
        found = package_weights(tmp_path / name / "package", 1)
        expected = layer_weights(load_file(tmp_path / name / "plain" / "model.safetensors"), 1)
        assert found.keys() == expected.keys()
        for matrix, weights in expected.items():
            assert torch.equal(found[matrix], weights), (name, matrix)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name / "plain", dtype=torch.float32)
        with torch.no_grad():
            logits = model(torch.tensor([IDS])).logits[0].numpy()
        error = np.load(tmp_path / name / "package" / "logits.npy") - logits
        assert error.std() < 0.03 * logits.std(), (name, error.std() / logits.std())  # activations have 8 bits


@pytest.mark.slow
def test_a_package_has_the_codes_as_they_were_and_says_so(tokenizer: Path, tmp_path: Path) -> None:
    checkpoint = write_quantised(tmp_path / "tiny", tokenizer, *CASES["gptq"][:3])
    workspace = tmp_path / "workspace"
    snapshot = fetch_snapshot(resolve_source(str(checkpoint)), workspace)
    package = build_package(snapshot, Target.CPU_INT4, Recipe.BALANCED, workspace)
    assert package.quantisation == ("weights kept as they were quantised (GPTQ, 4 bits, groups of 32), without loss",)
    assert not (workspace / "folds").exists()
    found, plain = package_weights(package.path, 0), load_file(snapshot.path / "model.safetensors")
    for matrix, weights in layer_weights(plain, 0).items():
        assert torch.equal(found[matrix], weights), matrix
