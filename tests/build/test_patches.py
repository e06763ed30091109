"""The builder's mends: what is refused by name, and what is put into a window's place; `test_families` has the rest."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from transformers import Gemma3TextConfig, LlamaConfig, OlmoConfig, PhiConfig

from slmpack.build.genai.patches import complete_config
from slmpack.build.genai.sliding_window import move_window_into_attention
from slmpack.errors import BuildError


def test_norms_that_the_builder_would_leave_out_are_refused() -> None:
    with pytest.raises(BuildError, match=r"^a Phi with qk_layernorm; one without: .*; use --target transformers"):
        complete_config(PhiConfig(qk_layernorm=True))


@pytest.mark.parametrize(("config", "epsilon"), [(PhiConfig(layer_norm_eps=3e-5), 3e-5), (OlmoConfig(), 1e-5)])
def test_the_epsilon_has_the_name_that_the_builder_looks_for(config: PhiConfig | OlmoConfig, epsilon: float) -> None:
    complete_config(config)
    assert config.rms_norm_eps == epsilon


def test_an_epsilon_that_is_there_is_left_alone() -> None:
    config = LlamaConfig(rms_norm_eps=2e-6)
    complete_config(config)
    assert config.rms_norm_eps == 2e-6


def test_gemma_3_has_one_set_of_positions_and_the_local_frequency_beside_it() -> None:
    config: Any = Gemma3TextConfig()
    local = config.rope_parameters["sliding_attention"]["rope_theta"]
    complete_config(config)
    assert config.rope_local_base_freq == local
    assert config.rope_parameters["rope_type"] == "default"


def write_attention(package: Path, layers: list[int], **attributes: Any) -> None:
    """Write what the builder does of a model with one attention layer and a window of 24."""
    names = ["q", "k", "v"]
    node = helper.make_node("GroupQueryAttention", names, ["out"], domain="com.microsoft", **attributes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 16]) for name in names]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 16])]
    onnx.save(helper.make_model(helper.make_graph([node], "decoder", inputs, outputs)), package / "model.onnx")
    decoder = {"filename": "model.onnx", "sliding_window": {"window_size": 24, "layers": layers}}
    (package / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder}}))


def attention_of(package: Path) -> dict[str, int]:
    (node,) = onnx.load(package / "model.onnx").graph.node
    return {attribute.name: attribute.i for attribute in node.attribute}


def test_a_window_without_layers_becomes_that_of_every_layer(tmp_path: Path) -> None:
    write_attention(tmp_path, [], local_window_size=-1)
    move_window_into_attention(tmp_path)
    assert attention_of(tmp_path) == {"local_window_size": 24}
    assert "sliding_window" not in (tmp_path / "genai_config.json").read_text()


def test_a_layer_with_a_window_has_a_whole_cache_so_that_short_requests_run(tmp_path: Path) -> None:
    write_attention(tmp_path, [0], local_window_size=24, sliding_window_cache=1)
    move_window_into_attention(tmp_path)
    assert attention_of(tmp_path) == {"local_window_size": 24}
    assert "sliding_window" not in (tmp_path / "genai_config.json").read_text()
