"""Kept blocks: what a GGUF file had is found again in its weights, code by code."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import byte_level_fields, write_gguf
from numpy.typing import NDArray
from package_weights import layer_weights, package_weights

from slmpack.build.build import build_package
from slmpack.checkpoint.blocks import Bits, dequantise_rows, quantise_rows
from slmpack.checkpoint.original import LOSSLESS, original_gguf, original_sentences, storages_of
from slmpack.quantise.lossless import exact_rows
from slmpack.records import Recipe, Snapshot, Target
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.gguf.convert import ARCHITECTURES
from slmpack.source.gguf.names import checkpoint_name
from slmpack.source.resolve import resolve_source

RANDOM = np.random.default_rng(3)


def spread(rows: int, columns: int) -> NDArray[np.float32]:
    """Weights of every magnitude that float16 scales have, down to those that become zero, and a block of zeros."""
    weights = RANDOM.standard_normal((rows, columns)) * 10.0 ** RANDOM.integers(-9, 4, (rows, 1))
    weights[0, :32] = 0
    return weights.astype(np.float32)


@pytest.mark.parametrize("storage", list(LOSSLESS))
def test_every_block_that_ggml_wrote_is_found_again(storage: str) -> None:
    kind = gguf.GGMLQuantizationType[storage]
    weights = torch.from_numpy(gguf.dequantize(gguf.quantize(spread(400, 192), kind), kind))
    found = exact_rows(weights, LOSSLESS[storage], 32)
    assert found is not None
    assert torch.equal(dequantise_rows(found, 192, LOSSLESS[storage], 32), weights)
    assert found.zeros is None


def some_codes(kind: str, half: int) -> NDArray[np.int64]:
    """Codes around zero, `[blocks, 32]`, that the reference quantiser does not write."""
    match kind:
        case "without the lowest code":
            return RANDOM.integers(-half + 1, half, (500, 32))
        case "with both extremes":
            codes = RANDOM.integers(-half + 1, half, (500, 32))
            codes[:, :2] = half - 1, -half + 1
            return codes
        case "small ones only":
            return RANDOM.integers(-2, 3, (500, 32))
        case "all the same":
            return np.repeat(RANDOM.integers(-half, half, (500, 1)), 32, axis=1)
        case _:
            return np.repeat([[-half, half - 1]], 500, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "kind", ["without the lowest code", "with both extremes", "small ones only", "all the same", "the whole range"]
)
def test_blocks_of_an_importance_matrix_are_found_again(kind: str, bits: Bits) -> None:
    codes = some_codes(kind, 1 << (bits - 1))
    scales = (RANDOM.standard_normal((500, 1)) * 10.0 ** RANDOM.integers(-6, 3, (500, 1))).astype(np.float16)
    weights = torch.from_numpy(codes.astype(np.float32) * scales.astype(np.float32))
    found = exact_rows(weights, bits, 32)
    assert found is not None
    assert torch.equal(dequantise_rows(found, 32, bits, 32), weights)
    assert torch.equal(found.scales.half().float(), found.scales)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_form_is_that_of_the_quantiser(bits: Bits) -> None:
    multiples = torch.from_numpy(RANDOM.integers(-8, 8, (6, 80)).astype(np.float32)) / 64
    multiples[:, ::32] = -8 / 64 if bits == 4 else 127 / 64  # the extreme that both begin with
    expected, found = quantise_rows(multiples.clone(), bits, 32), exact_rows(multiples, bits, 32)
    assert found is not None
    assert found.codes.shape == expected.codes.shape
    assert found.scales.shape == expected.scales.shape
    if bits == 4:
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scales, expected.scales)


def not_whole(weights: torch.Tensor) -> None:
    weights[2, 40] *= 1.001


def one_code_too_far(weights: torch.Tensor) -> None:
    weights[2, 32:64] = torch.arange(-8.0, 24.0) / 3


def not_a_number(weights: torch.Tensor) -> None:
    weights[2, 40] = torch.nan


def infinite(weights: torch.Tensor) -> None:
    weights[2, 40] = torch.inf


def with_a_fine_scale(weights: torch.Tensor) -> None:
    weights[2, 32:64] = 1 + 2**-13  # one scale, and every code the same, but float16 does not have it


@pytest.mark.parametrize("change", [not_whole, one_code_too_far, not_a_number, infinite, with_a_fine_scale])
def test_one_weight_that_has_no_code_is_enough_to_say_no(change: object) -> None:
    assert callable(change)
    weights = torch.from_numpy(RANDOM.integers(-8, 8, (4, 96)).astype(np.float32)) / 4
    assert exact_rows(weights, 4, 32) is not None
    change(weights)
    assert exact_rows(weights, 4, 32) is None


@pytest.mark.parametrize("storage", ["Q4_1", "Q5_0", "Q6_K"])
def test_other_types_have_no_such_form(storage: str) -> None:
    kind = gguf.GGMLQuantizationType[storage]
    if storage == "Q6_K":  # the package only reads these
        written = RANDOM.integers(0, 256, (4, 210 * 2), dtype=np.uint8)
        written[:, 208:210] = written[:, 418:420] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    else:
        written = gguf.quantize(RANDOM.standard_normal((4, 512)).astype(np.float32), kind)
    assert exact_rows(torch.from_numpy(gguf.dequantize(written, kind)), 4, 32) is None


def test_the_sentences_tell_what_was_kept_and_what_was_not() -> None:
    types = {f"layer {number}": "Q4_0" for number in range(3)} | {"head": "Q8_0", "gate": "F16"}
    types |= {f"other {number}": "Q4_1" for number in range(4)} | {"late": "Q4_0"}
    lossless = {"layer 0", "layer 1", "layer 2", "head"}
    assert original_sentences(original_gguf(types), has_codes=False, lossless=lossless) == (
        "4 matrices quantised again from Q4_1, which has no fast form in ONNX Runtime",
        "3 matrices kept as in the GGUF file (Q4_0), without loss",
        "1 matrix kept as in the GGUF file (Q8_0), without loss",
        "1 matrix quantised again from Q4_0, since this recipe has another form for them",
    )
    assert original_sentences(None, has_codes=False, lossless=()) == ()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_matrices_have_the_names_that_the_conversion_gives_them(architecture: str) -> None:
    from checkpoints import SMALL
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    model_type = "gemma3_text" if architecture == "gemma3" else architecture
    config = AutoConfig.for_model(model_type, **SMALL)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    names = get_gguf_hf_weights_map(model, TensorProcessor())  # type: ignore[no-untyped-call]
    weights = model.state_dict()
    matrices = {theirs: ours for theirs, ours in names.items() if weights[ours].dim() == 2}
    assert len(matrices) - 2 * (4 if architecture == "phi3" else 7) in (1, 2)  # some heads have no name of their own
    assert {theirs: checkpoint_name(theirs, architecture) for theirs in matrices} == matrices
    assert not any(checkpoint_name(theirs, architecture) for theirs in names.keys() - matrices.keys())


def write_quantised(path: Path) -> Path:
    """Write the Llama of `write_gguf`, its layers in Q4_0 and its embeddings in Q8_0."""
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    plain = gguf.GGUFReader(
        write_gguf(path.with_suffix(".f32"), byte_level_fields("gpt-2"), tokenizer__chat_template=template)
    )
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in plain.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            of = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], of)
    for tensor in plain.tensors:
        if "norm" in tensor.name:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            kind = gguf.GGMLQuantizationType["Q8_0" if tensor.name.startswith("token") else "Q4_0"]
            writer.add_tensor(tensor.name, gguf.quantize(tensor.data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_as(types: dict[str, str], storage: str) -> list[str]:
    return [name for name, found in types.items() if found == storage]


@pytest.mark.slow
def test_a_snapshot_remembers_how_its_file_was_stored_and_its_codes_are_there(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = write_quantised(tmp_path / "tiny.gguf")
    snapshot = fetch_snapshot(resolve_source(str(file)), tmp_path / "workspace")
    types = storages_of(snapshot.original)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert types == {
        checkpoint_name(name, "llama"): tensor.tensor_type.name for name, tensor in stored.items() if "norm" not in name
    }
    weights = load_file(snapshot.path / "model.safetensors")
    for name in stored_as(types, "Q4_0"):
        found = exact_rows(weights[name], 4, 32)
        assert found is not None, name
        assert torch.equal(dequantise_rows(found, weights[name].shape[1], 4, 32), weights[name])
    assert not any(re.search("gguf|types", path.name) for path in snapshot.path.iterdir())
    package = build_package(snapshot, Target.CPU_INT4, Recipe.BALANCED, tmp_path / "workspace")
    built = package_weights(package.path, 0)
    assert all(torch.equal(built[matrix], plain) for matrix, plain in layer_weights(weights, 0).items())
    assert (
        f"{len(stored_as(types, 'Q4_0'))} matrices kept as in the GGUF file (Q4_0), without loss"
        in package.quantisation
    )


@pytest.mark.slow
def test_the_snapshot_of_the_default_says_what_it_was(smollm2: Snapshot, tiny_snapshot: Snapshot) -> None:
    types = storages_of(smollm2.original)
    assert len(types) == 211
    assert types["model.embed_tokens.weight"] == "Q8_0"
    assert types["model.layers.29.mlp.down_proj.weight"] == "Q4_1"
    assert tiny_snapshot.original is None
