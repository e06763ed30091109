"""Streaming: the stock builder's package, to the byte, without its memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime_genai
import pytest
import torch
from building import Case
from runtime import logits_of
from safetensors.torch import load_file, save_file
from streamed_checkpoints import FAMILIES, checkpoints, run_cases, tokenizer, write_tiny

from slmpack.build.genai import streaming
from slmpack.build.genai.run_builder import BuilderRun, BuildRequest, run_builder
from slmpack.errors import BuildError
from slmpack.machine.child import ChildRun, run_in_child
from slmpack.records import Snapshot
from slmpack.targets import BuilderOptions

__all__ = ["checkpoints", "tokenizer"]  # fixtures

pytestmark = pytest.mark.slow

KINDS = [
    ("int4", "cpu", 32), ("int4", "cpu", 16), ("int8", "cpu", 128), ("int8", "cpu", 32),
    ("int4", "cuda", 32), ("int4", "cuda", 16), ("int8", "cuda", 128), ("int8", "cuda", 32),
]  # fmt: skip
HEAD, DOWN = "/lm_head/MatMul", "/model/layers.0/mlp/down_proj/MatMul"


@pytest.fixture(scope="module")
def built(checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family, precision and target, and one with named tensors: <family>-<kind>/stock and /streamed."""
    folder = tmp_path_factory.mktemp("built")
    cases = [
        Case(
            checkpoint=checkpoint, into=folder / f"{family}-{precision}-{provider}-{block_size}" / how,
            precision=precision, execution_provider=provider, block_size=block_size, streamed=how == "streamed",
        )
        for family, checkpoint in checkpoints.items()
        for precision, provider, block_size in KINDS
        for how in ("stock", "streamed")
    ]  # fmt: skip
    cases += [
        Case(
            checkpoint=checkpoints["phi3"], into=folder / "named" / how, precision="int4", execution_provider="cpu",
            block_size=32, int8_nodes=(DOWN, HEAD), streamed=how == "streamed",
        )
        for how in ("stock", "streamed")
    ]  # fmt: skip
    ended = run_cases(cases, folder / "log")
    assert set(ended.unsupported_reasons) == {""}
    return folder


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_graph_are_the_stock_builders_to_the_byte(
    built: Path, family: str, kind: tuple[str, str, int]
) -> None:
    folder = built / "-".join((family, *map(str, kind)))
    names = {path.name for path in (folder / "stock").iterdir()}
    assert {path.name for path in (folder / "streamed").iterdir()} == names >= {"model.onnx", "model.onnx.data"}
    for name in sorted(names):
        assert (folder / "streamed" / name).read_bytes() == (folder / "stock" / name).read_bytes(), name


def test_named_tensors_are_quantised_to_8_bits_as_the_stock_builder_does(built: Path) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        streamed = (built / "named" / "streamed" / name).read_bytes()
        assert streamed == (built / "named" / "stock" / name).read_bytes(), name
        assert streamed != (built / "phi3-int4-cpu-32" / "streamed" / name).read_bytes(), name


def built_by(
    checkpoint: Path, into: Path, options: BuilderOptions, streamed: bool = True
) -> tuple[BuilderRun, ChildRun]:
    into.mkdir()
    request = BuildRequest(
        snapshot=checkpoint, architecture="of the test", layers=2, options=options, streamed=streamed, into=into
    )
    return run_in_child(
        run_builder, request, log=into.parent / "log", limit_seconds=900, failure=BuildError, doing="the build"
    )


def int4(**changes: Any) -> BuilderOptions:
    return BuilderOptions.model_validate(
        {"precision": "int4", "execution_provider": "cpu", "algo_config": "default", "block_size": 32} | changes
    )


def test_the_graph_names_the_builders_own_commit_and_not_that_of_the_folder_it_is_installed_in(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    built_by(checkpoints["llama"], tmp_path / "package", int4())
    graph = onnx.load(tmp_path / "package" / "model.onnx", load_external_data=False)
    assert graph.producer_version == f"{onnxruntime_genai.__version__}+{onnxruntime_genai.__commit__[:7]}"


def test_a_tied_head_of_8_bits_is_the_embedding_too_and_runs(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    ids = list(range(20, 60))
    with torch.no_grad():
        source = LlamaForCausalLM.from_pretrained(checkpoints["llama"], dtype=torch.float32)
        expected = source(torch.tensor([ids])).logits[0]
    names = ("attn/qkv_proj", "attn/o_proj", "mlp/gate_proj", "mlp/up_proj", "mlp/down_proj")
    every = (HEAD, *(f"/model/layers.{layer}/{name}/MatMul" for layer in (0, 1) for name in names))
    built_by(checkpoints["llama"], tmp_path / "package", int4(int8_nodes=every))
    found = logits_of(tmp_path / "package", ids)
    assert (found - expected).norm() < 0.03 * expected.norm()  # of 4 bits 0.18


def test_refuses_8_bits_for_a_matmul_that_is_not_there(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"/model/no/MatMul is to have 8 bits; a MatMul of this model; name one such"):
        built_by(checkpoints["llama"], tmp_path / "package", int4(int8_nodes=("/model/no/MatMul",)))


@pytest.mark.parametrize(
    ("tensor", "wrong", "streamed"),
    [
        ("model.layers.1.self_attn.k_proj.weight", float("nan"), True),
        ("model.norm.weight", float("nan"), True),
        ("model.embed_tokens.weight", float("-inf"), True),
        ("model.layers.0.mlp.down_proj.weight", float("inf"), False),
    ],
    ids=["quantised", "kept", "float", "by the stock builder"],
)
def test_names_the_tensor_that_is_not_finite(
    checkpoints: Mapping[str, Path], tmp_path: Path, tensor: str, wrong: float, streamed: bool
) -> None:
    folder = tmp_path / "qwen2"
    folder.mkdir()
    for path in checkpoints["qwen2"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor].view(-1)[-1] = wrong
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    name = tensor.replace("model.norm", r"model\.(norm|layers\.2\.final_norm_layernorm)")
    with pytest.raises(BuildError, match=rf"{name} holds a NaN, an infinity or more than .*; finite weights; save"):
        built_by(folder, tmp_path / "package", int4(), streamed)


def test_a_weight_beyond_float16_is_refused_for_cuda_and_taken_for_a_cpu(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "qwen2"
    folder.mkdir()
    for path in checkpoints["qwen2"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 70000.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    built_by(folder, tmp_path / "cpu", int4())
    with pytest.raises(BuildError, match=r"model\.layers\.0\.mlp\.up_proj\.weight holds .* more than float16 can hold"):
        built_by(folder, tmp_path / "cuda", int4(execution_provider="cuda"))


def test_rows_of_an_odd_length_go_the_stock_builders_way_and_it_is_said(tokenizer: Path, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "odd", "qwen2", tokenizer, intermediate_size=225)
    ended, _ = built_by(folder, tmp_path / "package", int4())
    assert not ended.streamed
    assert (
        ended.unsupported_reason
        == "model.layers.0.mlp.down_proj.MatMul.weight [225, 96] is not a matrix with rows of an even length"
    )
    assert logits_of(tmp_path / "package", [20, 21, 22]).isfinite().all()


def test_takes_another_builder_to_the_stock_way() -> None:
    assert streaming.unchecked_builder() is None
    assert streaming.unchecked_builder({"onnxruntime-genai": "0.1.0"}) == (
        "onnxruntime-genai 0.18.0 is not 0.1.0, against which streaming was checked"
    )


def test_streams_a_real_model_in_less_memory_than_its_weights(smollm2: Snapshot, tmp_path: Path) -> None:
    streamed, run = built_by(smollm2.path, tmp_path / "streamed", int4())
    _, stock_run = built_by(smollm2.path, tmp_path / "stock", int4(), streamed=False)
    assert streamed.streamed
    assert run.peak_private_bytes < smollm2.size_bytes < stock_run.peak_private_bytes
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()
    assert {path.name for path in (tmp_path / "streamed").iterdir()} == {
        path.name for path in (tmp_path / "stock").iterdir()
    }
