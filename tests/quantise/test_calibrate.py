"""Calibrate: the mean square of what every matrix is multiplied with, by the name of the checkpoint's tensor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SMALL, copy_tokenizer, write_mute_phi3, write_random

from slmpack.checkpoint.forward import load_source
from slmpack.checkpoint.windows import TEXT_FILE
from slmpack.errors import BuildError, UsageError
from slmpack.machine.store import Manifest
from slmpack.quantise.calibrate import (
    ENERGY_FILE,
    CalibrationRequest,
    calibrate,
    measure_energy,
    read_energy,
    run_calibration,
)
from slmpack.records import Snapshot
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

pytestmark = pytest.mark.slow

WINDOWS = ((1, 5, 9, 7, 3, 88, 2), (4, 6, 8, 11, 12, 13, 14))
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "a tied head": ("Gemma2", {}),
    "fused projections": ("Phi3", {"original_max_position_embeddings": 64}),
    "biases, a head of its own": ("Qwen2", {}),
    "experts in one tensor": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def plain_energy(model: Any, windows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the mean squares in float64, by the weight's name in the model, all of which is in memory."""
    import torch

    seen: dict[str, list[Any]] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, inputs, path=path: seen.setdefault(f"{path}.weight", []).append(inputs[0].flatten(0, -2))
            )
    with torch.inference_mode():
        for window in windows:
            model(input_ids=torch.tensor([window]))
    return {name: torch.cat(inputs).double().square().mean(0) for name, inputs in seen.items()}


@pytest.mark.parametrize("what", ARCHITECTURES)
def test_energies_are_those_of_the_whole_model_in_float32(what: str, tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    name, more = ARCHITECTURES[what]
    expected = plain_energy(write_random(tmp_path, name, SMALL | more), WINDOWS)
    with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        shapes = {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}  # noqa: SIM118 - not a dict
    if "lm_head.weight" not in shapes:
        expected["model.embed_tokens.weight"] = expected.pop("lm_head.weight")
    found = measure_energy(load_source(tmp_path, "bfloat16"), WINDOWS)
    assert found.keys() == expected.keys()
    for tensor, energy in found.items():
        assert energy.dtype is torch.float32
        assert [len(energy)] == shapes[tensor][1:]
        torch.testing.assert_close(energy.double(), expected[tensor], rtol=1e-4, atol=1e-6)


def test_projections_of_one_input_have_its_energy(tmp_path: Path) -> None:
    import torch

    write_random(tmp_path, "Qwen2", SMALL)
    found = measure_energy(load_source(tmp_path, "bfloat16"), WINDOWS)
    q, k, v, o = (found[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkvo")
    assert torch.equal(q, k)
    assert torch.equal(q, v)
    assert not torch.equal(q, o)


def test_a_model_that_is_its_own_decoder_is_refused(tmp_path: Path) -> None:
    import torch

    class Bare(torch.nn.Linear):
        @property
        def base_model(self) -> torch.nn.Module:
            return self

        def get_output_embeddings(self) -> torch.nn.Module:
            return self

    with pytest.raises(BuildError, match="no calibration: Bare without a decoder of its own"):
        measure_energy(Bare(8, 8), WINDOWS)


def changed_phi3(folder: Path, tiny_phi3: Path, changes: dict[str, float]) -> Path:
    """Write tiny Phi-3 with some tensors filled with a number, the last weight of each left as it is."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    copy_tokenizer(tiny_phi3, folder)
    (folder / "config.json").write_bytes((tiny_phi3 / "config.json").read_bytes())
    tensors = {name: value.clone() for name, value in load_file(tiny_phi3 / "model.safetensors").items()}
    for name, number in changes.items():
        tensors[name].view(-1)[:-1] = number
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def request_for(checkpoint: Path, into: Path) -> CalibrationRequest:
    into.mkdir(exist_ok=True)
    (into / TEXT_FILE).write_text("The ships hung in the sky in much the same way that bricks don't. " * 20)
    return CalibrationRequest(
        snapshot=checkpoint, dtype="bfloat16", context_length=4096, text_tokens=256, random_tokens=256, into=into
    )


DOWN = "model.layers.0.mlp.down_proj.weight"


def test_activations_that_are_not_finite_are_refused_with_the_layers_name(tiny_phi3: Path, tmp_path: Path) -> None:
    checkpoint = changed_phi3(tmp_path / "loud", tiny_phi3, {"model.layers.0.mlp.gate_up_proj.weight": 3e38})
    with pytest.raises(BuildError, match=rf"the inputs of {DOWN} are not finite; finite activations; check"):
        run_calibration(request_for(checkpoint, tmp_path / "into"))
    assert not (tmp_path / "into" / ENERGY_FILE).exists()


def test_a_weight_that_is_not_finite_is_refused_with_its_own_name(tiny_phi3: Path, tmp_path: Path) -> None:
    checkpoint = changed_phi3(tmp_path / "nan", tiny_phi3, {"model.layers.0.mlp.gate_up_proj.weight": float("nan")})
    with pytest.raises(BuildError, match=r"model\.layers\.0\.mlp\.gate_up_proj\.weight holds a NaN"):
        run_calibration(request_for(checkpoint, tmp_path / "into"))


def test_a_calibration_of_zeros_is_refused(tmp_path: Path, smollm2: Snapshot) -> None:
    from safetensors.torch import load_file, save_file

    write_mute_phi3(tmp_path / "empty", smollm2.path)
    path = tmp_path / "empty" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: value * 0 for name, value in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(BuildError, match="a calibration in which every matrix saw only zeros; activations; check"):
        run_calibration(request_for(tmp_path / "empty", tmp_path / "into"))


def test_a_matrix_that_saw_only_zeros_is_left_out_and_named(
    tmp_path: Path, smollm2: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    write_mute_phi3(tmp_path / "mute", smollm2.path)
    workspace = tmp_path / "workspace"
    folder = calibrate(fetch_snapshot(resolve_source(str(tmp_path / "mute")), workspace), None, workspace)
    silent = [f"model.layers.{at}.{name}_proj.weight" for at in (0, 1) for name in ("mlp.down", "self_attn.o")]
    assert str(Manifest.read(folder).facts["silent"]).splitlines() == silent
    assert not read_energy(folder).keys() & set(silent)
    warned = f"4 matrices saw only zeros, the first is {silent[0]}: they are quantised without a calibration"
    assert warned in caplog.messages


def test_a_calibration_is_made_once_a_text(tiny_snapshot: Snapshot, tmp_path: Path) -> None:
    import torch

    built_in = calibrate(tiny_snapshot, None, tmp_path)
    made = (built_in / ENERGY_FILE).stat().st_mtime_ns
    assert calibrate(tiny_snapshot, None, tmp_path) == built_in
    assert (built_in / ENERGY_FILE).stat().st_mtime_ns == made
    assert Manifest.read(built_in).facts["tokens"] == 512
    text = "Marvin trudged on down the corridor, still moaning. " * 30
    own = calibrate(tiny_snapshot, text, tmp_path)
    assert (own / TEXT_FILE).read_text() == text
    assert own.parent == built_in.parent
    energies = read_energy(built_in), read_energy(own)
    assert energies[0].keys() == energies[1].keys()
    assert len(energies[0]) == 9
    assert all(not torch.equal(energies[0][name], energy) for name, energy in energies[1].items())


def test_a_text_that_is_too_short_is_refused(tiny_phi3: Path, tmp_path: Path) -> None:
    request = request_for(tiny_phi3, tmp_path)
    (tmp_path / TEXT_FILE).write_text("So long, and thanks for all the fish.")
    with pytest.raises(UsageError, match=r"a calibration text of \d+ tokens; at least 200; give a longer text"):
        run_calibration(request)
    assert not (tmp_path / ENERGY_FILE).exists()
