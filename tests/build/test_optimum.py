"""Every part of the way by optimum that needs no environment of its own."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from slmpack.build.optimum.check_logits import TOLERANCE, compare_logits
from slmpack.build.optimum.environment import exporter_requirements, pinned_versions
from slmpack.build.optimum.legacy_config import translated, write_for_exporter
from slmpack.build.optimum.quantise_graph import GraphOptions, is_sensitive, write_graph
from slmpack.build.optimum.recipes import (
    EXPORTED,
    exporter_digest,
    exporter_versions,
    graph_options,
)
from slmpack.build.select import recipe_digest
from slmpack.errors import BuildError, RecipeError
from slmpack.machine.json_file import read_json, write_json
from slmpack.records import Recipe, Target

# ---------------------------------------------------------------------------------------------- recipes and versions


def test_everything_in_the_exporters_environment_is_pinned_exactly() -> None:
    lines = [line for line in exporter_requirements().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line and "*" not in line for line in lines)
    assert len(pinned_versions(exporter_requirements())) == len(lines)


def test_the_versions_are_those_of_what_exports() -> None:
    versions = exporter_versions()
    assert versions["optimum-onnx"] == "0.1.0"
    assert versions["transformers"].startswith("4.")
    assert "onnxruntime-genai" not in versions


def test_every_recipe_of_exported_graphs_has_a_digest_of_its_own() -> None:
    digests = {exporter_digest(target, recipe) for target, recipes in EXPORTED.items() for recipe in recipes}
    assert len(digests) == 4
    assert recipe_digest(Target.CPU_INT4, Recipe.SMALL) != recipe_digest(Target.CPU_INT4, Recipe.BALANCED)


@pytest.mark.parametrize(
    ("target", "recipe", "named"),
    [
        (Target.CPU_INT4, Recipe.ACCURATE, r"recipe accurate for cpu-int4 of GPT2LMHeadModel.*: small, balanced; use"),
        (Target.CPU_INT4, Recipe.STOCK_SMALL, r"recipe stock-small .*: small, balanced; use --recipe auto"),
        (Target.CUDA_INT4, Recipe.SMALL, r"recipe small for cuda-int4 .* cpu-int8 accurate; use --target cpu-int4"),
        (Target.CUDA_FP16, None, r"^cuda-fp16 of GPT2LMHeadModel, .* cpu-int4 small, .*; use --target cpu-int4"),
    ],
)
def test_a_recipe_that_exported_graphs_lack_is_refused_with_those_they_have(
    target: Target, recipe: Recipe | None, named: str
) -> None:
    with pytest.raises(RecipeError, match=named):
        graph_options(target, recipe, "GPT2LMHeadModel")


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("/transformer/h.0/mlp/c_proj/MatMul", True),
        ("/transformer/h.0/attn/c_proj/MatMul", False),
        ("/gpt_neox/layers.23/attention/query_key_value/MatMul", True),
        ("/model/layers.5/mlp/down_proj/MatMul", True),
        ("/model/layers.5/mlp/up_proj/MatMul", False),
        ("/model/layers.6/self_attn/v_proj/MatMul", False),
        ("/model/layers.7/self_attn/v_proj/MatMul", False),
        ("/model/layers.8/self_attn/v_proj/MatMul", True),
        ("/transformer/blocks.21/ffn/down_proj/MatMul", True),
        ("/lm_head/MatMul", False),
    ],
)
def test_values_and_ends_of_mlps_are_sensitive_in_the_outer_and_every_third_of_24_layers(
    node: str, expected: bool
) -> None:
    assert is_sensitive(node, layers=24) is expected


# ---------------------------------------------------------------------------------------------- the checkpoint


def test_rotary_settings_get_the_names_that_older_releases_read() -> None:
    rope = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}
    assert translated({"model_type": "gpt_neox", "rope_parameters": rope, "dtype": "bfloat16"}) == {
        "model_type": "gpt_neox", "rotary_emb_base": 20000.0, "rotary_pct": 0.5, "torch_dtype": "bfloat16",
    }  # fmt: skip
    assert translated({"model_type": "stablelm", "rope_parameters": rope}) == {
        "model_type": "stablelm", "rope_theta": 20000.0, "partial_rotary_factor": 0.5,
    }  # fmt: skip


def test_rotary_scaling_is_told_as_rope_scaling() -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    told = translated({"model_type": "falcon", "rope_parameters": rope})
    assert told["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert told["rope_theta"] == 10000.0


def test_an_older_configuration_stays_as_it_is() -> None:
    config = {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000, "torch_dtype": "float16"}
    assert translated(config) == config


def test_weights_are_linked_to_and_the_tokenizer_is_left_out(tmp_path: Path) -> None:
    checkpoint, into = tmp_path / "checkpoint", tmp_path / "into"
    checkpoint.mkdir()
    into.mkdir()
    write_json(checkpoint / "config.json", {"model_type": "gpt2", "dtype": "float32"})
    for name in ("model.safetensors", "tokenizer.json", "modeling_own.py"):
        (checkpoint / name).write_text(name)
    write_for_exporter(checkpoint, into)
    assert sorted(path.name for path in into.iterdir()) == ["config.json", "model.safetensors"]
    assert (into / "model.safetensors").readlink() == (checkpoint / "model.safetensors").resolve()
    assert read_json(into / "config.json") == {"model_type": "gpt2", "torch_dtype": "float32"}


# ---------------------------------------------------------------------------------------------- the comparison


def logits() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((10, 50)).astype(np.float32)


def test_logits_that_differ_by_rounding_are_the_same_model() -> None:
    compared = compare_logits(logits() * np.float32(1 + 1e-6), logits(), prefilled=6)
    assert compared.positions == 10
    assert 0 < compared.largest < TOLERANCE


def test_one_other_logit_is_refused_with_its_position() -> None:
    found = logits()
    found[7, 3] += 0.01
    with pytest.raises(BuildError, match=r"differ .* at 1 of 10 positions, most at position 7 \(decode\), by 0.00"):
        compare_logits(found, logits(), prefilled=6)
    found = logits()
    found[2] = -found[2]
    with pytest.raises(BuildError, match=r"at position 2 \(prefill\), .*, likeliest token \d+ and not \d+; at most"):
        compare_logits(found, logits(), prefilled=6)


def test_logits_that_are_no_numbers_are_refused() -> None:
    found = logits()
    found[5, 5] = np.nan
    with pytest.raises(BuildError, match=r"most at position 5 .*by inf"):
        compare_logits(found, logits(), prefilled=6)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(BuildError, match=r"logits \[10, 49\] of the exported graph; \[10, 50\]"):
        compare_logits(logits()[:, :49], logits(), prefilled=6)


# ---------------------------------------------------------------------------------------------- the graph


def write_graph_with_gemms(path: Path) -> None:
    """Write ids -> embedding -> Gemm -> Gemm of a transposed weight -> head, the embedding transposed."""
    random = np.random.default_rng(0)
    shapes = {"embedding": (40, 32), "up": (32, 64), "up_bias": (64,), "down": (32, 64), "down_bias": (32,)}
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["hidden"], name="/wte/Gather"),
        helper.make_node("Gemm", ["hidden", "up", "up_bias"], ["wide"], name="/h.0/mlp/c_fc/Gemm"),
        helper.make_node("Gemm", ["wide", "down", "down_bias"], ["narrow"], name="/h.0/mlp/c_proj/Gemm", transB=1),
        helper.make_node("Transpose", ["embedding"], ["head"], name="/lm_head/Transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["narrow", "head"], ["logits"], name="/lm_head/MatMul"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["tokens", 40])
    graph = helper.make_graph(nodes, "graph", [ids], [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def answer(graph: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found: np.ndarray[tuple[int, int], np.dtype[np.float32]] = session.run(None, {"ids": np.arange(20)})[0]
    return found


@pytest.mark.parametrize(
    ("options", "bits", "least"),
    [
        (GraphOptions(bits=4), [4, 4, 4], 0.97),
        (GraphOptions(bits=4, mixed=True), [4, 8, 8], 0.985),
        (GraphOptions(bits=8), [8, 8, 8], 0.999),
    ],
)
def test_gemms_and_a_tied_head_are_quantised_too(
    tmp_path: Path, options: GraphOptions, bits: list[int], least: float
) -> None:
    write_graph_with_gemms(tmp_path / "exported.onnx")
    (tmp_path / "into").mkdir()
    told = write_graph(tmp_path / "exported.onnx", options, 1, tmp_path / "into")
    model = onnx.load(tmp_path / "into" / "model.onnx")
    widths = {
        node.name: attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "MatMulNBits" and attribute.name == "bits"
    }
    assert [widths[name] for name in sorted(widths)] == bits
    assert not {"Gemm", "MatMul", "Transpose"} & {node.op_type for node in model.graph.node}
    assert told[0].startswith(f"{bits.count(options.bits or 0)} matrices have {options.bits} bits")
    before, after = answer(tmp_path / "exported.onnx"), answer(tmp_path / "into" / "model.onnx")
    assert float(np.corrcoef(before.ravel(), after.ravel())[0, 1]) > least


def test_a_graph_that_is_not_quantised_stays_as_it_is(tmp_path: Path) -> None:
    write_graph_with_gemms(tmp_path / "exported.onnx")
    (tmp_path / "into").mkdir()
    assert write_graph(tmp_path / "exported.onnx", GraphOptions(bits=None), 1, tmp_path / "into") == ()
    assert np.array_equal(answer(tmp_path / "exported.onnx"), answer(tmp_path / "into" / "model.onnx"))
