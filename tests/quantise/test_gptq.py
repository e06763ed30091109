"""GPTQ: the codes that a plain elimination in float64 finds; a whole model that loses less than with the search."""

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SMALL, write_random
from safetensors.torch import load_file, save_file
from torch import Tensor

from slmpack.checkpoint.blocks import Quantised, dequantise_rows
from slmpack.checkpoint.forward import load_source
from slmpack.checkpoint.headers import Tensor as Tensors
from slmpack.checkpoint.headers import read_weights
from slmpack.checkpoint.windows import TEXT_FILE
from slmpack.errors import BuildError, UsageError
from slmpack.machine.store import Manifest
from slmpack.quantise.awq.channel_pairs import Fold
from slmpack.quantise.calibrate import measure_energy
from slmpack.quantise.gptq.codes_file import open_gptq, write_solved
from slmpack.quantise.gptq.cost import Speed, cost_of, predicted_seconds
from slmpack.quantise.gptq.gptq import GptqRequest, quantise_by_gptq, run_gptq
from slmpack.quantise.gptq.layers import covariance, solve_model
from slmpack.quantise.gptq.solve import DAMPING, Factor, factorise, solve
from slmpack.quantise.zero_point_search import search_zero_points
from slmpack.records import Snapshot
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

GENERATOR = torch.Generator().manual_seed(0)
ROWS, BLOCK = 24, 32
NO_FOLD = Fold()


def normal_weights(columns: int) -> Tensor:
    return torch.randn(ROWS, columns, generator=GENERATOR) * 0.02


def inputs_of_a_kind(kind: str, columns: int) -> Tensor:
    """Return 1,000 inputs, float32 `[1000, columns]`."""
    own = torch.randn(1000, columns, generator=GENERATOR)
    shared = torch.randn(1000, 6, generator=GENERATOR) @ torch.randn(6, columns, generator=GENERATOR)
    match kind:
        case "correlated":
            return shared + 0.3 * own
        case "correlated, of every magnitude":
            return (shared + 0.3 * own) * torch.exp(1.5 * torch.randn(columns, generator=GENERATOR))
        case "fewer than channels":
            return (shared + 0.3 * own)[: columns // 2]
        case "one massive channel":
            shared[:, 5] *= 300
            return shared + own
        case _:
            shared[:, ::3] = 0
            return shared + 0.3 * own * (shared != 0)


KINDS = pytest.mark.parametrize(
    "kind",
    ["correlated", "correlated, of every magnitude", "fewer than channels", "one massive channel", "dead channels"],
)


def output_error(weights: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    """Return the squared error of the outputs, in float64, straight from its definition."""
    return float(((weights.double() - rounded.double()) @ inputs.double().T).square().sum())


def slow_elimination(weights: Tensor, hessian: Tensor) -> Tensor:
    """Return the rounded weights, float64 `[N, K]`: each column's error goes to all columns that are not rounded yet.

    The inverse of what is left of the Hessian is made smaller by one column after every step.
    Source: Frantar and Alistarh, Optimal Brain Compression, arXiv:2208.11580, section 4 and lemma 1.
    """
    left, columns = weights.double().clone(), weights.shape[1]
    energy = hessian.double().diagonal().clone()
    inverse = torch.linalg.inv(hessian.double() + DAMPING * energy.mean() * torch.eye(columns).double())
    rounded = torch.empty_like(left)
    for start in reversed(range(0, columns, BLOCK)):
        part = slice(start, min(start + BLOCK, columns))
        grid = search_zero_points(left[:, part].float(), energy[part].float(), BLOCK)
        assert grid.zeros is not None
        scale, zero = grid.scales[:, 0].double(), grid.zeros[:, 0].double()
        for column in reversed(range(part.start, part.stop)):
            code = (left[:, column] / scale + zero).round().clamp(0, 15)
            rounded[:, column] = (code - zero) * scale
            error = (left[:, column] - rounded[:, column]) / inverse[column, column]
            left -= torch.outer(error, inverse[column])
            inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column].clone()
    return rounded


def solved_by(weights: Tensor, inputs: Tensor) -> Tensor:
    solved = solve(weights, factorise(covariance(inputs, None), "it"), BLOCK)
    return dequantise_rows(solved, weights.shape[1], 4, BLOCK)


@KINDS
@pytest.mark.parametrize("columns", [128, 72])
def test_finds_what_a_plain_elimination_in_float64_finds(kind: str, columns: int) -> None:
    weights, inputs = normal_weights(columns), inputs_of_a_kind(kind, columns)
    expected = slow_elimination(weights, inputs.double().T @ inputs.double() / len(inputs))
    found = solved_by(weights, inputs)
    same = ((found - expected).abs() < 1e-5).all(1)
    assert same.sum() >= ROWS - 4  # in the others two grids of a block are as good but for rounding
    expected_error = output_error(weights[same], expected[same], inputs)
    assert output_error(weights[same], found[same], inputs) == pytest.approx(expected_error, rel=1e-4)


@KINDS
def test_loses_less_than_the_search_alone(kind: str) -> None:
    weights, inputs = normal_weights(256), inputs_of_a_kind(kind, 256)
    searched = search_zero_points(weights, inputs.square().mean(0), BLOCK)
    alone = output_error(weights, dequantise_rows(searched, 256, 4, BLOCK), inputs)
    assert output_error(weights, solved_by(weights, inputs), inputs) < 0.7 * alone


def test_is_as_good_as_the_search_where_inputs_have_nothing_in_common() -> None:
    weights, energy = normal_weights(96), torch.exp(2 * torch.randn(96, generator=GENERATOR))

    def loss_of(quantised: Quantised) -> float:
        return float(((dequantise_rows(quantised, 96, 4, BLOCK) - weights).double().square() * energy.double()).sum())

    found = solve(weights, factorise(energy.diag(), "it"), BLOCK)
    assert loss_of(found) == pytest.approx(loss_of(search_zero_points(weights, energy, BLOCK)), rel=1e-4)


def test_inputs_of_zeros_leave_the_search_alone() -> None:
    weights = normal_weights(64)
    found = solve(weights, factorise(torch.zeros(64, 64), "it"), BLOCK)
    expected = search_zero_points(weights, torch.zeros(64), BLOCK)
    torch.testing.assert_close(found.scales, expected.scales)
    assert (dequantise_rows(found, 64, 4, BLOCK) - weights).abs().max() <= 1.01 * expected.scales.abs().max()


def test_a_block_of_zeros_stays_zeros() -> None:
    weights, inputs = normal_weights(96), inputs_of_a_kind("correlated", 96)
    weights[:, 64:] = 0
    assert solved_by(weights, inputs)[:, 64:].eq(0).all()


def test_what_is_not_quite_positive_definite_is_damped_more() -> None:
    hessian = torch.eye(32)
    hessian[3, 3] = -0.05
    weights = normal_weights(32)
    found = dequantise_rows(solve(weights, factorise(hessian, "it"), BLOCK), 32, 4, BLOCK)
    assert (found - weights).abs().max() < 0.02


def test_what_no_damping_helps_is_refused_with_the_matrix_name() -> None:
    with pytest.raises(BuildError, match="the inputs of down have no covariance that can be factorised; a positive"):
        factorise(torch.ones(4, 4) - 9 * torch.eye(4), "down")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_covariance_that_is_not_finite_is_refused_with_the_matrix_name(wrong: float) -> None:
    hessian = torch.eye(4)
    hessian[2, 1] = wrong
    with pytest.raises(BuildError, match="the inputs of down are not finite; finite activations; check"):
        factorise(hessian, "down")


def test_refuses_the_factor_of_another_matrix() -> None:
    with pytest.raises(BuildError, match=r"a calibration of shape \[64\]; \[96\], as the weight's rows; calibrate"):
        solve(normal_weights(96), Factor(torch.eye(64), torch.ones(64)), BLOCK)


def test_a_covariance_is_the_mean_of_products_below_the_diagonal() -> None:
    inputs, columns = torch.randn(2, 50, 700, generator=GENERATOR), torch.rand(700, generator=GENERATOR) + 0.5
    rows = inputs.flatten(0, 1).double() / columns.double()
    found = covariance(inputs, columns).double().tril()
    torch.testing.assert_close(found, (rows.T @ rows / 100).tril(), rtol=1e-4, atol=1e-5)


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    solved = search_zero_points(normal_weights(72), torch.ones(72), BLOCK)
    write_solved(tmp_path, "model.layers.0.mlp.down_proj.weight", solved)
    ((name, matrix),) = open_gptq(tmp_path).items()
    assert (name, matrix.count) == ("model.layers.0.mlp.down_proj.weight", ROWS)
    for start, stop in ((0, ROWS), (5, 6), (20, 24), (7, 7)):
        for found, expected in zip(matrix.read(start, stop), solved, strict=True):
            assert found is not None
            assert expected is not None
            assert found.dtype is expected.dtype
            assert torch.equal(found, expected[start:stop])


FAMILIES: dict[str, dict[str, Any]] = {"Llama": {}, "Phi3": {"original_max_position_embeddings": 64}, "Qwen2": {}}


def some_windows(count: int, seed: int) -> list[list[int]]:
    ids: list[list[int]] = torch.randint(1, 100, (count, 32), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def solve_checkpoint(folder: Path, fold: Fold = NO_FOLD) -> dict[str, Quantised]:
    solved: dict[str, Quantised] = {}
    solve_model(load_source(folder, "bfloat16"), some_windows(16, seed=1), fold, solved.__setitem__)
    return solved


def mean_kl(model: Any, weights: dict[str, Tensor], windows: Sequence[Sequence[int]]) -> float:
    """Return how far the model is from itself with other weights, in nats a token."""

    def says() -> Tensor:
        return torch.log_softmax(model(input_ids=torch.tensor(windows)).logits.double(), -1)

    with torch.no_grad():
        expected, own = says(), dict(model.named_parameters())
        kept = {name: own[name].clone() for name in weights}
        for name, weight in weights.items():
            own[name].copy_(weight)
        found = says()
        for name, weight in kept.items():
            own[name].copy_(weight)
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def write_calm(folder: Path, family: str) -> Any:
    """Write a random checkpoint whose answers change little where its weights do; return its model in float32."""
    model = write_random(folder, family, SMALL | FAMILIES[family])
    with torch.no_grad():
        for name in matrices_of(model):
            model.get_parameter(name).mul_(0.4)
    model.to(torch.bfloat16).save_pretrained(folder)
    return model.float()


def matrices_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.data for name, weight in model.named_parameters() if weight.dim() == 2 and "layers" in name}


def meant_by(quantised: dict[str, Quantised], sources: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: dequantise_rows(each, sources[name].shape[1], 4, 32) for name, each in quantised.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_solved_model_is_nearer_to_its_source_than_a_searched_one(family: str, tmp_path: Path) -> None:
    model = write_calm(tmp_path, family)
    sources, solved = matrices_of(model), solve_checkpoint(tmp_path)
    energy = measure_energy(load_source(tmp_path, "bfloat16"), some_windows(16, seed=1))
    searched = {name: search_zero_points(weight.clone(), energy[name], 32) for name, weight in sources.items()}
    assert solved.keys() == sources.keys()
    for name, quantised in solved.items():
        for found, expected in zip(quantised, searched[name], strict=True):
            assert found is not None
            assert expected is not None
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    others = some_windows(16, seed=2)
    losses = [mean_kl(model, meant_by(each, sources), others) for each in (solved, searched)]
    assert losses[0] < 0.8 * losses[1]


@pytest.mark.slow
def test_a_fold_is_in_the_codes_and_not_in_what_the_source_says(tmp_path: Path) -> None:
    model = write_calm(tmp_path, "Qwen2")
    sources, last = matrices_of(model), "model.layers.1.mlp.down_proj.weight"
    columns = {name: 0.8 + 0.4 * torch.rand(weight.shape[1]) for name, weight in sources.items()}
    plain, folded = (
        solve_checkpoint(tmp_path),
        solve_checkpoint(tmp_path, Fold(columns, {last: torch.full((64,), 8.0)})),
    )
    meant = {name: weight / columns[name] for name, weight in meant_by(folded, sources).items()}
    meant[last] /= 8
    losses = [mean_kl(model, each, some_windows(16, seed=2)) for each in (meant, meant_by(plain, sources))]
    assert losses[0] < 2 * losses[1]


@pytest.mark.slow
def test_matrices_that_stay_as_they_are_are_not_solved(tmp_path: Path) -> None:
    write_calm(tmp_path, "Llama")
    kept = "model.layers.0.mlp.down_proj.weight"
    solved: dict[str, Quantised] = {}
    solve_model(load_source(tmp_path, "bfloat16"), some_windows(4, seed=1), NO_FOLD, solved.__setitem__, {kept})
    assert len(solved) == 13
    assert kept not in solved


def changed(folder: Path, checkpoint: Path, changes: dict[str, float]) -> Path:
    """Copy a checkpoint, with all numbers of some tensors but their last one changed."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, number in changes.items():
        tensors[name].view(-1)[:-1] = number
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def request_for(checkpoint: Path, into: Path) -> GptqRequest:
    (into / TEXT_FILE).write_text("The ships hung in the sky in much the same way that bricks don't. " * 20)
    return GptqRequest(
        snapshot=checkpoint, dtype="bfloat16", context_length=4096, fold=None, int8=(), text_tokens=256,
        random_tokens=0, into=into,
    )  # fmt: skip


GATE_UP = "model.layers.0.mlp.gate_up_proj.weight"


@pytest.mark.slow
def test_a_weight_that_is_not_finite_is_refused_with_its_own_name(tiny_phi3: Path, tmp_path: Path) -> None:
    broken = changed(tmp_path / "broken", tiny_phi3, {GATE_UP: float("nan")})
    with pytest.raises(BuildError, match=rf"{GATE_UP} holds a NaN"):
        run_gptq(request_for(broken, tmp_path))


@pytest.mark.slow
def test_nothing_is_kept_of_a_source_whose_activations_are_not_finite(tiny_phi3: Path, tmp_path: Path) -> None:
    broken = changed(tmp_path / "broken", tiny_phi3, {GATE_UP: 3e38})
    workspace = tmp_path / "workspace"
    snapshot = fetch_snapshot(resolve_source(str(broken)), workspace)
    with pytest.raises(
        BuildError, match=r"the inputs of model\.layers\.0\.mlp\.down_proj\.weight are not finite; finite"
    ):
        quantise_by_gptq(snapshot, None, None, workspace)
    assert not (workspace / "gptq").exists()
    assert not list((workspace / "scratch").iterdir())


@pytest.mark.slow
def test_codes_are_made_once_a_text_and_the_time_is_told_before(
    tiny_snapshot: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "Marvin trudged on down the corridor, still moaning. " * 30
    with caplog.at_level(logging.INFO, logger="slmpack"):
        folder = quantise_by_gptq(tiny_snapshot, None, text, tmp_path)
        assert quantise_by_gptq(tiny_snapshot, None, text, tmp_path) == folder
    times = [re.fullmatch(r"GPTQ of tiny-phi3 will take about \d+ seconds", line) for line in caplog.messages]
    assert len([found for found in times if found]) == 1
    facts = Manifest.read(folder).facts
    assert facts["matrices"] == 8
    matrices = open_gptq(folder)
    assert matrices.keys() == {name for name in read_weights(tiny_snapshot.path) if ".layers." in name} - {
        f"model.layers.{layer}.{norm}_layernorm.weight" for layer in (0, 1) for norm in ("input", "post_attention")
    }
    down = matrices["model.layers.1.mlp.down_proj.weight"].read(0, 128)
    weight = load_file(tiny_snapshot.path / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert (dequantise_rows(down, 256, 4, 32) - weight.float()).abs().mean() < 0.2 * weight.float().abs().mean()


def test_a_text_that_is_too_short_is_refused(tiny_phi3: Path, tmp_path: Path) -> None:
    request = request_for(tiny_phi3, tmp_path)
    (tmp_path / TEXT_FILE).write_text("So long, and thanks for all the fish.")
    with pytest.raises(UsageError, match=r"a calibration text of \d+ tokens; at least 200; give a longer text"):
        run_gptq(request)


def test_the_cost_counts_every_product(tiny_snapshot: Snapshot) -> None:
    tensors = read_weights(tiny_snapshot.path)
    layer = {"qkv": (384, 128), "o": (128, 128), "gate_up": (512, 128), "down": (128, 256)}
    products = sum(n * k * (2 * 100 + k) + 100 * k**2 + k**3 / 3 for n, k in layer.values())
    cost = cost_of(tensors, 100)
    assert cost.operations == pytest.approx(2 * products)
    assert cost.weights == 2 * sum(n * k for n, k in layer.values())
    speed = Speed(operations_a_second=1e6, seconds_a_weight=1e-3)
    assert predicted_seconds(cost, speed) > cost.operations / 1e6 + cost.weights / 1e3


def test_matrices_of_one_input_are_factorised_once_in_the_cost() -> None:
    shapes = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64), "gate": (48, 64), "up": (48, 64)}
    tensors = {f"model.layers.0.x.{n}_proj.weight": Tensors(dtype="F32", shape=shape) for n, shape in shapes.items()}
    tensors["model.embed_tokens.weight"] = Tensors(dtype="F32", shape=(100, 64))
    own = sum(n * k * (20 + k) for n, k in shapes.values())
    assert cost_of(tensors, 10).operations == pytest.approx(own + 3 * (10 * 64**2 + 64**3 / 3))
