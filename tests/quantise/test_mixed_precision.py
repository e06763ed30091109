"""Sensitivity: what each group of matrices loses in 4 bits, and which of them have 8 bits therefore."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SMALL, copy_tokenizer, write_random, write_tiny_gpt2

from slmpack.checkpoint.blocks import dequantise_rows
from slmpack.checkpoint.forward import load_source
from slmpack.checkpoint.headers import Tensor
from slmpack.checkpoint.windows import TEXT_FILE
from slmpack.errors import BuildError
from slmpack.machine.store import Manifest
from slmpack.quantise.awq.channel_pairs import Fold
from slmpack.quantise.awq.fold import FOLD_FILE, fold_channels
from slmpack.quantise.calibrate import ENERGY_FILE, calibrate, measure_energy, read_energy
from slmpack.quantise.mixed_precision.estimate import estimate_losses
from slmpack.quantise.mixed_precision.groups import groups_of
from slmpack.quantise.mixed_precision.perturbed_forward import Int4, UnfitError, measure_losses
from slmpack.quantise.mixed_precision.sensitivity import (
    LEAST_TOKENS,
    MOST_OPERATIONS,
    MOST_TOKENS,
    SENSITIVITY_FILE,
    SensitivityRequest,
    measure_sensitivity,
    plan_work,
    read_sensitivity,
    run_sensitivity,
)
from slmpack.quantise.zero_point_search import search_zero_points
from slmpack.records import Snapshot

WINDOW = (1, 5, 9, 7, 3, 88, 2, 4, 6, 8, 11, 12, 13, 14, 99, 98, 21, 22)
NO_FOLD = Fold()
# What is special about each: where a batch that grows could go wrong.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped heads": ("Llama", {}),
    "biases": ("Qwen2", {}),
    "capped attention and windows shorter than the text": ("Gemma2", {"sliding_window": 5}),
    "windows and two position embeddings": ("Gemma3Text", {"sliding_window": 5}),
    "norms of heads": ("Qwen3", {}),
    "fused projections": ("Phi3", {"original_max_position_embeddings": 64}),
}
FUSED = [["self_attn.qkv"], ["self_attn.o"], ["mlp.gate_up"], ["mlp.down"]]
PARTED = [["self_attn.q", "self_attn.k", "self_attn.v"], ["self_attn.o"], ["mlp.gate", "mlp.up"], ["mlp.down"]]


def random_energy(folder: Path) -> dict[str, Any]:
    return measure_energy(load_source(folder, "bfloat16"), (WINDOW[:9], WINDOW[9:]))


def in_4_bits(weight: Any, energy: Any) -> Any:
    return dequantise_rows(search_zero_points(weight, energy, 32), weight.shape[1], 4, 32)


def all_in_4_bits(model: Any, groups: Sequence[Sequence[str]], energy: Mapping[str, Any]) -> dict[str, Any]:
    return {name: in_4_bits(model.get_parameter(name).data, energy[name]) for group in groups for name in group}


def plain_losses(model: Any, groups: Sequence[Sequence[str]], weights: Mapping[str, Any]) -> list[float]:
    """Return the KL of the whole model, in float64, with one group's weights replaced at a time."""
    import torch

    model.double()
    parameters = dict(model.named_parameters())

    def answer() -> Any:
        with torch.inference_mode():
            return torch.log_softmax(model(input_ids=torch.tensor([WINDOW])).logits[0], dim=-1)

    source, losses = answer(), []
    for group in groups:
        kept = {name: parameters[name].data for name in group}
        for name in group:
            parameters[name].data = weights[name].double()
        losses.append(float((source.exp() * (source - answer())).sum(-1).mean()))
        for name in group:
            parameters[name].data = kept[name]
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("what", ARCHITECTURES)
def test_a_groups_loss_is_that_of_the_whole_model_with_only_its_weights_replaced(what: str, tmp_path: Path) -> None:
    name, more = ARCHITECTURES[what]
    plain = write_random(tmp_path, name, SMALL | more)
    energy = random_energy(tmp_path)
    groups = groups_of(energy)
    of_a_layer = FUSED if name == "Phi3" else PARTED
    assert sorted(map(sorted, groups)) == sorted(
        sorted(f"model.layers.{layer}.{part}_proj.weight" for part in group) for layer in (0, 1) for group in of_a_layer
    )
    weights = {
        tensor: in_4_bits(plain.get_parameter(tensor).data, energy[tensor]) for group in groups for tensor in group
    }
    expected = plain_losses(plain, groups, weights)
    found = measure_losses(load_source(tmp_path, "bfloat16"), WINDOW, groups, Int4(energy, NO_FOLD))
    assert min(expected) > 1e-5
    assert found == pytest.approx(expected, rel=3e-3, abs=1e-7)


@pytest.mark.slow
def test_layers_that_work_on_a_few_rows_at_a_time_give_the_same(tmp_path: Path) -> None:
    """The window is so long that a layer never has all rows at once."""
    write_random(tmp_path, "Llama", SMALL | {"max_position_embeddings": 1024})
    window = [3 + at * at % 97 for at in range(700)]
    energy = random_energy(tmp_path)
    groups, int4 = groups_of(energy), Int4(energy, NO_FOLD)
    found = measure_losses(load_source(tmp_path, "bfloat16"), window, groups, int4)
    alone = [measure_losses(load_source(tmp_path, "bfloat16"), window, [group], int4)[0] for group in groups[::3]]
    assert found[::3] == pytest.approx(alone, rel=1e-3)


@pytest.mark.slow
def test_a_fold_is_in_the_weights_that_are_rounded_and_not_in_the_graph(tmp_path: Path) -> None:
    import torch

    plain = write_random(tmp_path, "Llama", SMALL)
    energy = random_energy(tmp_path)
    up, down = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("up", "down"))
    scales = 0.25 + 4 * torch.rand(48, generator=torch.Generator().manual_seed(1))
    inverse = 1 / scales
    fold = Fold(columns={down: scales}, rows={up: inverse})
    groups = groups_of(energy)
    weights = {
        tensor: in_4_bits(plain.get_parameter(tensor).data, energy[tensor]) for group in groups for tensor in group
    }
    weights[down] = in_4_bits(plain.get_parameter(down).data * scales, energy[down] / scales**2) / scales
    weights[up] = in_4_bits(plain.get_parameter(up).data * inverse[:, None], energy[up]) / inverse[:, None]
    expected = plain_losses(plain, groups, weights)
    found = measure_losses(load_source(tmp_path, "bfloat16"), WINDOW, groups, Int4(energy, fold))
    assert found == pytest.approx(expected, rel=2e-3)
    unfolded = measure_losses(load_source(tmp_path, "bfloat16"), WINDOW, groups, Int4(energy, NO_FOLD))
    at = groups.index((down,))
    assert found[at] != pytest.approx(unfolded[at], rel=0.02)


@pytest.mark.slow
def test_an_architecture_without_a_list_of_layers_does_not_fit(tmp_path: Path) -> None:
    write_random(tmp_path, "GPT2", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64})
    with pytest.raises(UnfitError, match="GPT2Model has no list of layers"):
        measure_losses(load_source(tmp_path, "bfloat16"), WINDOW, [], Int4({}, NO_FOLD))


@pytest.mark.slow
def test_activations_that_are_not_finite_are_refused_with_the_matrix_name(tmp_path: Path) -> None:
    import torch

    plain = write_random(tmp_path, "Llama", SMALL)
    energy = random_energy(tmp_path)
    plain.model.layers[0].mlp.gate_proj.weight.data.fill_(3e38)
    plain.to(torch.bfloat16).save_pretrained(tmp_path)
    down = r"model\.layers\.0\.mlp\.down_proj\.weight"
    with pytest.raises(BuildError, match=f"the inputs of {down} are not finite; finite activations; check"):
        measure_losses(load_source(tmp_path, "bfloat16"), WINDOW, groups_of(energy), Int4(energy, NO_FOLD))


@pytest.mark.slow
def test_a_group_with_a_huge_channel_is_the_first_and_what_4_bits_hold_exactly_loses_nothing(tmp_path: Path) -> None:
    import torch

    plain = write_random(tmp_path, "Llama", SMALL)
    groups = groups_of(random_energy(tmp_path))
    down = "model.layers.1.mlp.down_proj.weight"
    for name in (name for group in groups for name in group):
        plain.get_parameter(name).data.sign_().mul_(0.25)
    plain.get_parameter(down).data[:, 5] = torch.linspace(-9, 9, 64)
    plain.to(torch.bfloat16).save_pretrained(tmp_path)
    losses = measure_losses(
        load_source(tmp_path, "bfloat16"), WINDOW, groups, Int4(random_energy(tmp_path), NO_FOLD)
    )  # fmt: skip
    *others, loudest = sorted(losses)
    assert groups[losses.index(loudest)] == (down,)
    assert loudest > 1e-4
    assert max(others) < 1e-7


@pytest.mark.slow
def test_a_snapshot_is_measured_once_with_its_fold(tiny_snapshot: Snapshot, workspace: Path, tmp_path: Path) -> None:
    calibration = calibrate(tiny_snapshot, None, workspace)
    fold = fold_channels(tiny_snapshot, calibration, workspace)
    folder = measure_sensitivity(tiny_snapshot, calibration, fold, tmp_path)
    found = read_sensitivity(folder)
    assert found.measured
    assert found.reason is None
    assert [group.tensors for group in found.groups] == list(groups_of(read_energy(calibration)))
    assert sum(group.weights for group in found.groups) == 2 * (4 * 128 * 128 + 3 * 128 * 256)
    assert min(group.loss for group in found.groups) > 0
    made = (folder / SENSITIVITY_FILE).stat().st_mtime_ns
    assert measure_sensitivity(tiny_snapshot, calibration, fold, tmp_path) == folder
    assert (folder / SENSITIVITY_FILE).stat().st_mtime_ns == made
    assert Manifest.read(folder).facts["tokens"] == MOST_TOKENS


def tensors_of(layers: int, hidden: int, inner: int, vocabulary: int) -> dict[str, Tensor]:
    """Return the headers of a checkpoint with four groups a layer."""
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        of_layer = {
            "qkv": (3 * hidden, hidden),
            "o": (hidden, hidden),
            "up": (2 * inner, hidden),
            "down": (hidden, inner),
        }
        shapes |= {f"model.layers.{layer}.{name}_proj.weight": shape for name, shape in of_layer.items()}
    return {name: Tensor(dtype="BF16", shape=shape) for name, shape in shapes.items()}


def test_work_is_planned_by_the_operations_of_every_row() -> None:
    small = plan_work(tensors_of(layers=2, hidden=8, inner=16, vocabulary=10), 2, 4096)
    of_a_layer = 4 * 8 * 8 + 3 * 8 * 16
    a_token = 2 * of_a_layer * (5 + 9) + 2 * 80 * 9  # rows in the first and the second layer, and before the head
    assert small == (MOST_TOKENS, MOST_TOKENS * a_token)
    assert plan_work(tensors_of(2, 8, 16, 10), 2, 7).tokens == 7  # a context shorter than that


def test_what_would_take_too_long_is_not_measured() -> None:
    middling = plan_work(tensors_of(layers=32, hidden=3072, inner=8192, vocabulary=32064), 32, 4096)
    assert LEAST_TOKENS <= middling.tokens < MOST_TOKENS
    assert middling.operations <= MOST_OPERATIONS
    large = plan_work(tensors_of(layers=48, hidden=5120, inner=17920, vocabulary=100352), 48, 4096)
    assert large.tokens == 0
    assert large.operations > MOST_OPERATIONS


def request_for(checkpoint: Path, energy: dict[str, Any], into: Path, tokens: int) -> SensitivityRequest:
    """Write a calibration with these energies, and a fold that is none, into folders beside each other."""
    from safetensors.torch import save_file

    for folder in (into, into / "calibration", into / "fold"):
        folder.mkdir()
    save_file(energy, into / "calibration" / ENERGY_FILE)
    (into / "calibration" / TEXT_FILE).write_text("Let us think the unthinkable, let us do the undoable. " * 20)
    save_file({}, into / "fold" / FOLD_FILE)
    return SensitivityRequest(
        snapshot=checkpoint, dtype="bfloat16", calibration=into / "calibration", fold=into / "fold", tokens=tokens,
        reason=None if tokens else "no time", into=into,
    )  # fmt: skip


@pytest.mark.slow
def test_an_architecture_that_cannot_be_measured_is_estimated_and_the_reason_kept(
    tmp_path: Path, smollm2: Snapshot
) -> None:
    write_tiny_gpt2(tmp_path / "gpt2", smollm2.path)
    energy = measure_energy(load_source(tmp_path / "gpt2", "float32"), (WINDOW,))
    found = run_sensitivity(request_for(tmp_path / "gpt2", energy, tmp_path / "into", tokens=32))
    assert not found.measured
    assert found.reason == "GPT2Model has no list of layers"
    assert read_sensitivity(tmp_path / "into") == found


@pytest.mark.slow
def test_a_weight_that_is_not_finite_is_refused_with_its_own_name(tiny_phi3: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    energy = measure_energy(load_source(tiny_phi3, "bfloat16"), (WINDOW,))
    copy_tokenizer(tiny_phi3, tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_phi3 / "config.json").read_bytes())
    tensors = {name: value.clone() for name, value in load_file(tiny_phi3 / "model.safetensors").items()}
    up = "model.layers.1.mlp.gate_up_proj.weight"
    tensors[up][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for tokens in (32, 0):
        request = request_for(tmp_path, energy, tmp_path / f"into-{tokens}", tokens)
        with pytest.raises(BuildError, match=rf"{up} holds a NaN"):
            run_sensitivity(request)


@pytest.mark.slow
def test_the_estimate_is_the_outputs_error_relative_to_what_it_disturbs(tmp_path: Path) -> None:
    plain = write_random(tmp_path, "Llama", SMALL)
    energy = random_energy(tmp_path)
    groups = groups_of(energy)
    weights = all_in_4_bits(plain, groups, energy)

    def output_energy(names: Sequence[str], of_error: bool) -> float:
        source = {name: plain.get_parameter(name).data.double() for name in names}
        rows = {name: weight - weights[name] if of_error else weight for name, weight in source.items()}
        return sum(float((weight.square() * energy[name].double()).sum()) for name, weight in rows.items())

    found = dict(zip(groups, estimate_losses(tmp_path, groups, Int4(energy, NO_FOLD)), strict=True))
    stream = 0.0
    for layer in (0, 1):
        of_layer = [group for group in groups if group[0].startswith(f"model.layers.{layer}.")]
        added = [group for group in of_layer if group[0].endswith(("o_proj.weight", "down_proj.weight"))]
        for group in of_layer:
            disturbed = output_energy(group, of_error=False) + (stream if group in added else 0.0)
            assert found[group] == pytest.approx(output_energy(group, of_error=True) / disturbed, rel=1e-3)
        stream += sum(output_energy(group, of_error=False) for group in added)
