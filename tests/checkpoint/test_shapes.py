"""Shapes: what transformers would fill with random numbers or leave out is refused, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slmpack.checkpoint.shapes import ShapeReport, ShapeRequest, compare_shapes
from slmpack.errors import SourceError
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

pytestmark = pytest.mark.slow  # transformers makes every model

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def write_model(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """Write a model of random weights, as transformers saves it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    torch.manual_seed(0)
    loader.from_config(AutoConfig.for_model(kind, **(SMALL | changes))).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def compare(folder: Path) -> ShapeReport:
    return compare_shapes(ShapeRequest(folder=folder))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("phi3", {}),  # q, k and v in one
        ("qwen2", {}),  # biases
        ("gemma2", {"head_dim": 8}),
        ("mixtral", {"num_local_experts": 4}),  # experts of their own in the file, merged when loaded
    ],
)
def test_takes_what_transformers_saves(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    assert compare(write_model(tmp_path, kind, **changes)).remarks == ()


def test_takes_what_transformers_renames_and_drops_without_a_word(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "gpt2")

    def as_in_2019(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128)

    edit_weights(folder, as_in_2019)
    assert "wte.weight" in load_file(folder / "model.safetensors")
    assert compare(folder).remarks == ()


def test_takes_a_model_of_its_own_code_without_running_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "phi3")
    own = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    edit_config(folder, auto_map=own)
    for name in ("configuration_phi3", "modeling_phi3"):
        (folder / f"{name}.py").write_text("raise SystemExit('ran')")
    assert compare(folder).remarks == ()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a narrower layer than the config's": (
        {"intermediate_size": 40},
        r"model\.layers\.0\.mlp\.down_proj\.weight in .* has the shape \[32, 48\]; \[32, 40\], as config\.json asks "
        r"\(intermediate_size 40\); take the config\.json",
    ),
    "other heads": ({"num_key_value_heads": 4}, r"k_proj\.weight .*\[16, 32\]; \[32, 32\], as config\.json asks"),
    "biases that are not there": (
        {"attention_bias": True},
        r"has no model\.layers\.0\.self_attn\.k_proj\.bias and 7 more; one of the shape \[16\]",
    ),
    "fewer layers than are there": (
        {"num_hidden_layers": 1},
        r"has model\.layers\.1\.input_layernorm\.weight; no such tensor in the LlamaForCausalLM of config\.json",
    ),
    "more layers than are there": ({"num_hidden_layers": 3}, r"has no model\.layers\.2\..* and 8 more"),
    "a configuration that makes no model": ({"hidden_size": "wide"}, r"config\.json makes no model \(\w+: "),
    "heads that do not divide the width": ({"num_attention_heads": 0}, r"config\.json makes no model \(\w+: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_a_config_that_asks_for(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    folder = write_model(tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(SourceError, match=message) as caught:
        compare(folder)
    assert "\n" not in str(caught.value)


def test_refuses_a_model_without_its_head_or_a_norm(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(SourceError, match=r"has no lm_head\.weight; one of the shape \[64, 32\]"):
        compare(folder)
    edit_config(folder, tie_word_embeddings=True)
    assert compare(folder).remarks == ()
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(SourceError, match=r"has no model\.norm\.weight; one of the shape \[32\]"):
        compare(folder)


def test_refuses_weights_in_a_layer_that_the_model_would_leave_out(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    name = "model.layers.1.self_attn.q_proj.lora_A.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(2, 32)}))
    with pytest.raises(SourceError, match=rf"has {name}; no such tensor .* merge an adapter"):
        compare(folder)


def test_refuses_experts_that_do_not_fit_together(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "mixtral", num_local_experts=4)
    (lost,) = [
        name for name in load_file(folder / "model.safetensors") if "layers.1." in name and "experts.2.w1" in name
    ]
    edit_weights(folder, lambda tensors: tensors.pop(lost))
    with pytest.raises(
        SourceError, match=r"do not fit together in model\.layers\.1\.mlp\.experts\.gate_up_proj; as many"
    ):
        compare(folder)


def test_tells_what_else_is_left_out(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    extra = {"medusa.0.weight": torch.ones(2), "mtp.layers.0.weight": torch.ones(2)}
    edit_weights(folder, lambda tensors: tensors.update(extra))
    (remark,) = compare(folder).remarks
    assert "no place for it: medusa.0.weight and 1 more" in remark


def test_a_fetch_that_is_refused_names_its_source_and_leaves_nothing(tiny_phi3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_phi3.iterdir():
        shutil.copy(path, folder)
    (folder / "config.json").unlink()
    config = json.loads((tiny_phi3 / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 260}))
    with pytest.raises(SourceError, match=rf"down_proj\.weight in {folder} has the shape \[128, 256\]; \[128, 260\]"):
        fetch_snapshot(resolve_source(str(folder)), tmp_path / "workspace")
    assert not (tmp_path / "workspace" / "snapshots").exists()
    assert list((tmp_path / "workspace" / "scratch").iterdir()) == []
