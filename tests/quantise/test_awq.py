"""Fold: a model whose channels are scaled and divided again says the same, or no fold is used."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SMALL, write_random, write_tiny_gpt2
from safetensors.torch import load_file, save_file
from torch import Tensor

from slmpack.checkpoint.blocks import dequantise_rows
from slmpack.checkpoint.headers import read_weights
from slmpack.checkpoint.mapped_rows import Rows
from slmpack.checkpoint.windows import TEXT_FILE
from slmpack.machine.store import Manifest
from slmpack.quantise.awq.channel_pairs import ARCHITECTURES, Fold, FoldMap, NoFoldError, Pair, fold_map
from slmpack.quantise.awq.channel_scales import (
    LARGEST_SCALE,
    POWERS,
    SAMPLED_ROWS,
    blocks_of,
    choose_scales,
    per_channel,
    scales_of,
    to_columns,
)
from slmpack.quantise.awq.check import LARGEST_DIFFERENCE, LARGEST_KL, compare_folded
from slmpack.quantise.awq.fold import FOLD_FILE, FoldRequest, fold_by, fold_channels, fold_of, read_fold
from slmpack.quantise.calibrate import ENERGY_FILE, calibrate, read_energy
from slmpack.quantise.zero_point_search import search_zero_points
from slmpack.records import Snapshot
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

WINDOWS = ((1, 5, 9, 7, 3, 88, 2, 31), (4, 6, 8, 11, 12, 13, 14, 15))
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 3}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0], "bos_token_id": 1, "eos_token_id": 2}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "phi3": ("Phi3", {"original_max_position_embeddings": 64}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"sliding_window": 3}),
    "gemma3_text": ("Gemma3Text", {"sliding_window": 3}),
}


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in read_weights(folder).items()}


def written(family: str, folder: Path) -> tuple[Any, FoldMap]:
    """Write a random checkpoint of a family in bfloat16; return its model in float32 and its map."""
    name, more = FAMILIES[family]
    model = write_random(folder, name, SMALL | more)
    return model, fold_map(model.config, shapes_of(folder))


def random_scales(pairs: tuple[Pair, ...]) -> list[Tensor]:
    """Return scales from 1/8 to 8: a channel that is folded wrongly is off by much."""
    generator = torch.Generator().manual_seed(0)
    return [torch.exp2(6 * torch.rand(pair.channels, generator=generator) - 3) for pair in pairs]


def test_every_architecture_of_the_map_is_tried() -> None:
    assert FAMILIES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_says_the_same(family: str, tmp_path: Path) -> None:
    _, found = written(family, tmp_path)
    difference = compare_folded(
        tmp_path, "bfloat16", fold_of(found.pairs, random_scales(found.pairs)), found.norm_offset, WINDOWS
    )
    assert difference.reason is None
    assert difference.largest < 2e-5


def _with(found: FoldMap, change: Callable[[Pair], Pair], which: Callable[[Pair], bool]) -> FoldMap:
    return dataclasses.replace(found, pairs=tuple(change(pair) if which(pair) else pair for pair in found.pairs))


def plain_norms(found: FoldMap) -> FoldMap:
    return dataclasses.replace(found, norm_offset=0.0)


def heads_in_a_row(found: FoldMap) -> FoldMap:
    """Let o's columns have the heads of v one after the other, and again, which is not how they are shared."""
    return _with(found, lambda pair: dataclasses.replace(pair, heads=1), lambda pair: pair.repeats > 1)


def gate_instead_of_up(found: FoldMap) -> FoldMap:
    def change(pair: Pair) -> Pair:
        return dataclasses.replace(pair, giver=pair.giver.replace("up_proj", "gate_proj"))

    return _with(found, change, lambda pair: "mlp.up_proj" in pair.giver)


def rows_of_keys(found: FoldMap) -> FoldMap:
    def change(pair: Pair) -> Pair:
        return dataclasses.replace(pair, start=pair.start - pair.channels)

    return _with(found, change, lambda pair: "qkv_proj" in pair.giver)


def other_half(found: FoldMap) -> FoldMap:
    return _with(found, lambda pair: dataclasses.replace(pair, start=0), lambda pair: "gate_up" in pair.giver)


def another_norm(found: FoldMap) -> FoldMap:
    """Take the norm after the attention for the one before the MLP, as it is elsewhere."""

    def change(pair: Pair) -> Pair:
        return dataclasses.replace(pair, giver=pair.giver.replace("pre_feedforward", "post_attention"))

    return _with(found, change, lambda pair: pair.norm)


def a_reader_forgotten(found: FoldMap) -> FoldMap:
    return _with(
        found, lambda pair: dataclasses.replace(pair, readers=pair.readers[:1]), lambda pair: len(pair.readers) > 1
    )


WRONG: list[tuple[str, Callable[[FoldMap], FoldMap]]] = [
    ("gemma", plain_norms), ("gemma2", another_norm), ("llama", heads_in_a_row), ("qwen2", gate_instead_of_up),
    ("phi3", rows_of_keys), ("phi3", other_half), ("qwen3", a_reader_forgotten),
]  # fmt: skip


@pytest.mark.parametrize(("family", "spoil"), WRONG, ids=[f"{family}: {spoil.__name__}" for family, spoil in WRONG])
def test_a_wrong_map_is_found_out(family: str, spoil: Callable[[FoldMap], FoldMap], tmp_path: Path) -> None:
    _, found = written(family, tmp_path)
    wrong = spoil(found)
    fold = fold_of(wrong.pairs, random_scales(wrong.pairs))
    difference = compare_folded(tmp_path, "bfloat16", fold, wrong.norm_offset, WINDOWS)
    assert difference.largest > 100 * LARGEST_DIFFERENCE
    assert difference.mean_kl > 100 * LARGEST_KL
    assert str(difference.reason).startswith("folded logits differ by ")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_has_every_matrix_and_every_norm_before_one(family: str, tmp_path: Path) -> None:
    model, found = written(family, tmp_path)
    shapes = shapes_of(tmp_path)
    layers = [name for name, shape in shapes.items() if ".layers." in name and len(shape) == 2]
    read = [name for pair in found.pairs for name in pair.readers]
    assert sorted(read) == sorted(layers)
    assert len(found.pairs) == 8
    for pair in found.pairs:
        assert pair.rows == shapes[pair.giver][0]
        assert pair.start + pair.channels == pair.rows
        assert {shapes[name][1] for name in pair.readers} == {pair.channels * pair.repeats}
    assert sum(pair.norm for pair in found.pairs) == 4
    assert model.config.model_type == family


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_a_norm_that_layers_share_or_that_something_else_reads_is_not_folded(tmp_path: Path) -> None:
    model, _ = written("llama", tmp_path)
    norm, router = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.router.weight"
    changed(tmp_path, lambda tensors: tensors.update({router: torch.ones(4, 64)}))
    with pytest.raises(NoFoldError, match=f"{router} is not known: it may read what would be folded"):
        fold_map(model.config, shapes_of(tmp_path))
    changed(tmp_path, lambda tensors: tensors.pop(norm))
    changed(tmp_path, lambda tensors: tensors.pop(router))
    with pytest.raises(NoFoldError, match=f"the checkpoint has no {norm}"):
        fold_map(model.config, shapes_of(tmp_path))


def test_a_config_that_is_not_the_checkpoints_has_no_map(tmp_path: Path) -> None:
    model, _ = written("phi3", tmp_path)
    model.config.num_key_value_heads = 4
    with pytest.raises(NoFoldError, match=r"qkv_proj.* has another shape than its config says"):
        fold_map(model.config, shapes_of(tmp_path))
    model.config.num_hidden_layers = 3
    with pytest.raises(NoFoldError, match="2 layers in the checkpoint where its config has 3"):
        fold_map(model.config, shapes_of(tmp_path))


def test_the_algebra_holds_in_float64_where_heads_are_shared() -> None:
    """One layer by its definition, with loops: 2 heads of v are read twice each, and one norm is before all."""
    generator = torch.Generator().manual_seed(0)
    hidden, key_heads, repeats, size, inner, positions = 6, 2, 2, 3, 5, 4

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = {
        "norm": random(hidden), "v": random(key_heads * size, hidden), "o": random(hidden, key_heads * repeats * size),
        "gate": random(inner, hidden), "up": random(inner, hidden), "down": random(hidden, inner),
    }  # fmt: skip
    seen, attention = random(positions, hidden), random(key_heads * repeats, positions, positions)
    pairs = (
        Pair("norm", hidden, hidden, ("v", "gate", "up"), norm=True),
        Pair("v", key_heads * size, key_heads * size, ("o",), heads=key_heads, repeats=repeats),
        Pair("up", inner, inner, ("down",)),
    )
    fold = fold_of(pairs, random_scales(pairs))
    folded = {
        name: weight * fold.norms[name].double() if name in fold.norms else
        weight * fold.columns[name].double() * fold.rows.get(name, torch.ones(len(weight))).double()[:, None]
        for name, weight in weights.items()
    }  # fmt: skip

    def layer(by: Mapping[str, Tensor]) -> list[list[float]]:
        said = []
        for at in range(positions):
            normed = [[float(by["norm"][j] * seen[p, j]) for j in range(hidden)] for p in range(positions)]
            mixed = [
                sum(float(attention[head, at, p]) * sum(float(by["v"][head // repeats * size + d, j]) * normed[p][j]
                    for j in range(hidden)) for p in range(positions))
                for head in range(key_heads * repeats) for d in range(size)
            ]  # fmt: skip
            gates = [sum(float(by["gate"][i, j]) * normed[at][j] for j in range(hidden)) for i in range(inner)]
            ups = [sum(float(by["up"][i, j]) * normed[at][j] for j in range(hidden)) for i in range(inner)]
            gated = [up * gate / (1 + math.exp(-gate)) for up, gate in zip(ups, gates, strict=True)]
            said.append([
                sum(float(by["o"][i, c]) * mixed[c] for c in range(len(mixed)))
                + sum(float(by["down"][i, c]) * gated[c] for c in range(inner))
                for i in range(hidden)
            ])  # fmt: skip
        return said

    plain, other = torch.tensor(layer(weights)), torch.tensor(layer(folded))
    assert not torch.equal(plain, other)
    torch.testing.assert_close(other, plain, rtol=0, atol=float(plain.std()) * 1e-5)  # scales are float32


def slow_loss(weights: Tensor, energy: Tensor, columns: Tensor) -> float:
    """Return what is lost by the definition, in float64."""
    quantised = search_zero_points(weights * columns, energy / columns.square(), 32)
    back = dequantise_rows(quantised, weights.shape[1], 4, 32).double() / columns.double()
    return float(((back - weights.double()).square() * energy.double()).sum())


@pytest.mark.parametrize(("heads", "repeats", "size"), [(1, 1, 96), (2, 2, 32), (2, 3, 16)])
def test_no_choice_loses_more_than_none(heads: int, repeats: int, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    columns = heads * repeats * size
    matrices = {name: torch.randn(40, columns, generator=generator) * 0.02 for name in ("first", "second")}
    energy = torch.exp(5 * torch.randn(columns, generator=generator))
    pair = Pair("giver", heads * size, heads * size, ("first", "second"), heads=heads, repeats=repeats)
    rows = {name: Rows(weights, name) for name, weights in matrices.items()}
    (choice,) = choose_scales([pair], rows, dict.fromkeys(matrices, energy), 2)
    losses = [
        sum(slow_loss(weights, energy, to_columns(pair, scales)) for weights in matrices.values())
        for scales in (choice.scales, torch.ones(pair.channels))
    ]
    assert losses == pytest.approx([choice.loss, choice.unfolded], rel=1e-4)
    assert losses[0] < 0.95 * losses[1]
    assert float(choice.scales.max()) <= LARGEST_SCALE


def test_blocks_are_chosen_apart_where_readers_have_them_in_the_same_places() -> None:
    apart = Pair("giver", 64, 64, ("reader",), heads=2, repeats=2)
    assert blocks_of(apart).tolist() == [0] * 32 + [1] * 32
    assert blocks_of(dataclasses.replace(apart, heads=4)).tolist() == [0] * 64  # heads of 16 in blocks of 32
    assert blocks_of(dataclasses.replace(apart, heads=4, repeats=1)).tolist() == [0] * 32 + [1] * 32
    assert blocks_of(Pair("giver", 48, 48, ("reader",))).tolist() == [0] * 32 + [1] * 16


def test_large_matrices_are_sampled_evenly() -> None:
    weights = torch.zeros(4 * SAMPLED_ROWS, 32)
    weights[1::4] = torch.randn(SAMPLED_ROWS, 32)  # of every four rows, not the first
    pair, energy = Pair("giver", 32, 32, ("reader",)), {"reader": torch.rand(32)}
    (choice,) = choose_scales([pair], {"reader": Rows(weights, "reader")}, energy, 1)
    assert choice.unfolded == 0
    (choice,) = choose_scales([pair], {"reader": Rows(weights.roll(-1, 0), "reader")}, energy, 1)
    all_rows = slow_loss(weights, energy["reader"], torch.ones(32))
    assert choice.unfolded == pytest.approx(4 * all_rows, rel=1e-4)  # the rows seen stand for four each


def test_a_channel_without_energy_or_weights_is_not_scaled() -> None:
    energy, squares = torch.tensor([0.0, 1e8, 1e-8, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    blocks = torch.zeros(4, dtype=torch.long)
    for power in POWERS:
        scales = scales_of(energy, squares, blocks, power)
        assert scales[[0, 3]].tolist() == [1, 1]
        expected = min(10 ** (4 * power), LARGEST_SCALE)
        assert scales[1:3].tolist() == pytest.approx([expected, 1 / expected])
    assert scales_of(torch.zeros(4), squares, blocks, 0.5).tolist() == [1, 1, 1, 1]


def test_a_shared_heads_energy_is_the_mean_of_its_readers() -> None:
    pair = Pair("v", 4, 4, ("o",), heads=2, repeats=2)
    assert per_channel(pair, torch.arange(8.0)).tolist() == [1, 2, 5, 6]
    assert to_columns(pair, torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [1, 2, 1, 2, 3, 4, 3, 4]


def calibrated(checkpoint: Path, into: Path, energy: Callable[[int], Tensor]) -> FoldRequest:
    """Return a request with a calibration in which every matrix of the decoder has `energy`."""
    into.mkdir()
    (into / TEXT_FILE).write_text("The ships hung in the sky in much the same way that bricks don't. " * 20)
    energies = {
        name: energy(shape[1]) for name, shape in shapes_of(checkpoint).items() if len(shape) == 2 and "layers" in name
    }
    save_file(energies, into / ENERGY_FILE)
    return FoldRequest(snapshot=checkpoint, dtype="bfloat16", calibration=into, into=into)


def uneven(channels: int) -> Tensor:
    return torch.exp(4 * torch.randn(channels, generator=torch.Generator().manual_seed(0)))


@pytest.mark.slow
def test_a_map_that_is_wrong_gives_an_empty_fold_and_the_reason(tiny_phi3: Path, tmp_path: Path) -> None:
    request = calibrated(tiny_phi3, tmp_path / "calibration", uneven)
    folded = fold_by(lambda config, shapes: other_half(fold_map(config, shapes)), request)
    assert str(folded.reason).startswith("folded logits differ by ")
    assert (folded.pairs, folded.of_pairs) == (0, 8)
    assert read_fold(request.into) == Fold()
    assert fold_by(fold_map, request).reason is None
    assert read_fold(request.into) != Fold()


@pytest.mark.slow
def test_a_map_of_tensors_that_the_model_has_not_is_not_used(tiny_phi3: Path, tmp_path: Path) -> None:
    def strange(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> FoldMap:
        return _with(
            fold_map(config, shapes), lambda pair: dataclasses.replace(pair, readers=("who.weight",)),
            lambda pair: "gate_up" in pair.giver,
        )  # fmt: skip

    def stranger(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> FoldMap:
        return _with(
            fold_map(config, shapes), lambda pair: dataclasses.replace(pair, giver="who.weight"),
            lambda pair: "gate_up" in pair.giver,
        )  # fmt: skip

    request = calibrated(tiny_phi3, tmp_path / "calibration", uneven)
    assert fold_by(strange, request).reason == "who.weight is none of the model's weights"
    assert fold_by(stranger, request).reason == "who.weight is none of the model's weights"
    assert read_fold(request.into) == Fold()


@pytest.mark.slow
@pytest.mark.parametrize("of_zeros", [True, False], ids=["zeros", "nothing"])
def test_a_calibration_without_energy_folds_nothing(of_zeros: bool, tiny_phi3: Path, tmp_path: Path) -> None:
    request = calibrated(tiny_phi3, tmp_path / "calibration", torch.zeros)
    if not of_zeros:
        save_file({}, request.calibration / ENERGY_FILE)
    assert fold_by(fold_map, request).reason == "no scale of any channel would lose less"
    assert read_fold(request.into) == Fold()


@pytest.mark.slow
def test_a_fold_is_made_once_and_remembers_what_came_of_it(
    tiny_snapshot: Snapshot, workspace: Path, tmp_path: Path
) -> None:
    calibration = calibrate(tiny_snapshot, None, workspace)
    folder = fold_channels(tiny_snapshot, calibration, tmp_path)
    made = (folder / FOLD_FILE).stat().st_mtime_ns
    assert fold_channels(tiny_snapshot, calibration, tmp_path) == folder
    assert (folder / FOLD_FILE).stat().st_mtime_ns == made
    facts = Manifest.read(folder).facts
    assert (facts["of_pairs"], facts["reason"]) == (8, None)
    assert float(str(facts["largest_difference"])) < LARGEST_DIFFERENCE
    assert float(str(facts["loss_ratio"])) < 1
    fold = read_fold(folder)
    assert fold.columns.keys() <= read_energy(calibration).keys()
    assert int(str(facts["pairs"])) == len(fold.norms) + len(fold.rows) > 0
    shapes = shapes_of(tiny_snapshot.path)
    assert all(len(columns) == shapes[name][1] for name, columns in fold.columns.items())
    assert all(len(rows) == shapes[name][0] for name, rows in fold.rows.items())


@pytest.mark.slow
def test_an_architecture_without_a_map_is_not_folded_and_says_so(
    smollm2: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_gpt2(tmp_path / "tiny-gpt2", smollm2.path)
    snapshot = fetch_snapshot(resolve_source(str(tmp_path / "tiny-gpt2")), tmp_path / "workspace")
    calibration = calibrated(snapshot.path, tmp_path / "calibration", uneven).calibration
    folder = fold_channels(snapshot, calibration, tmp_path / "workspace")
    assert read_fold(folder) == Fold()
    assert Manifest.read(folder).facts["reason"] == "no fold is known for the architecture gpt2"
    assert "no channels are folded, since no fold is known for the architecture gpt2" in caplog.messages
