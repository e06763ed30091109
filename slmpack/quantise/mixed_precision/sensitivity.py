"""Sensitivity: how much of the source each group of matrices loses in 4 bits, so that 8 bits go where they matter.

    <workspace>/sensitivities/<key>/
        sensitivity.json    `Sensitivity`: the groups, what each loses, and how that is known

Measured where that takes some minutes on two cores (see `perturbed_forward`), on the first tokens of the calibration's
text; else estimated from the calibration alone (see `estimate`).
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from slmpack.checkpoint.finite import require_finite_weights
from slmpack.checkpoint.forward import load_source
from slmpack.checkpoint.headers import Tensor as Header
from slmpack.checkpoint.headers import read_weights
from slmpack.checkpoint.windows import MIN_TOKENS, TEXT_FILE, dtype_of, first_ids, prefix_of
from slmpack.errors import BuildError
from slmpack.machine.child import limited
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.remember import ChildWork, remembered
from slmpack.machine.store import Facts
from slmpack.progress import report
from slmpack.quantise.awq.fold import read_fold
from slmpack.quantise.calibrate import read_energy
from slmpack.quantise.mixed_precision.estimate import estimate_losses
from slmpack.quantise.mixed_precision.groups import Group, groups_of, layer_of, weights_in
from slmpack.quantise.mixed_precision.perturbed_forward import Int4, UnfitError, measure_losses
from slmpack.records import Record, Snapshot, digest_of

logger = logging.getLogger(__name__)

LAYOUT = 1  # of the folder; another number measures every sensitivity again
SENSITIVITY_FILE = "sensitivity.json"
SENSITIVITY_LIMIT_SECONDS = 3 * 3600.0
# SmolLM2-135M, in 4 bits with the head in 8 and 10.5 MB for more: mean KL on the built-in text .053 if what has 8 bits
# was chosen by 256 tokens, .054 by 128 or 32, .055 by 16; .072 by the estimate. Differences below .01 are noise.
MOST_TOKENS = 128
LEAST_TOKENS = 32
MOST_OPERATIONS = 2e13
OPERATIONS_A_SECOND = 5e10  # of a core: 5.2e12 for SmolLM2-135M took one 90 s; for the forecast only
# What the measurement depends on beside the snapshot, the calibration and the fold.
SENSITIVITY = digest_of([LAYOUT, MOST_TOKENS, LEAST_TOKENS, MOST_OPERATIONS])


class Sensitivity(Record):
    """What each group of matrices loses in 4 bits.

    Attributes:
        groups: of the decoder's layers, in order.
        measured: whether `loss` is nats a token; otherwise it is an estimate, of use to compare groups.
        reason: why it was not measured, else None.
    """

    groups: tuple[Group, ...]
    measured: bool
    reason: str | None = None


class SensitivityRequest(Record):
    """What the child is to measure: `into` is where the file goes.

    Attributes:
        tokens: that the source is run on; 0: it is not, for `reason`.
    """

    snapshot: Path
    dtype: str
    calibration: Path
    fold: Path
    tokens: int
    reason: str | None
    into: Path


class Work(NamedTuple):
    """What a measurement takes.

    Attributes:
        tokens: that the source is run on; 0 where it would take too long.
        operations: multiplications and additions.
    """

    tokens: int
    operations: float


def measure_sensitivity(snapshot: Snapshot, calibration: Path, fold: Path, workspace: Path) -> Path:
    """Return the folder of what each group of matrices of `snapshot` loses in 4 bits; a child works it out, once.

    Args:
        calibration: the folder that `calibrate` stored.
        fold: the folder of the fold that goes before the quantisation.

    Raises:
        BuildError: activations that are not finite, or the run failed.
        WorkspaceError: the workspace is full.
    """
    key = digest_of([SENSITIVITY, snapshot.digest, calibration.name, fold.name])

    effort = plan_work(read_weights(snapshot.path), snapshot.layers, snapshot.context_length)

    def request(into: Path) -> SensitivityRequest:
        _tell(snapshot, effort)
        return SensitivityRequest(
            snapshot=snapshot.path,
            dtype=dtype_of(snapshot),
            calibration=calibration,
            fold=fold,
            tokens=effort.tokens,
            reason=None if effort.tokens else _too_long(effort),
            into=into,
        )

    def facts(found: Sensitivity) -> Facts:
        if found.reason:
            logger.warning("what each matrix loses in 4 bits is an estimate: %s", found.reason)
        tokens = effort.tokens if found.measured else 0
        return {"measured": found.measured, "reason": found.reason, "tokens": tokens}

    work = ChildWork(
        run_sensitivity, "sensitivity", SENSITIVITY_LIMIT_SECONDS, BuildError, "the measurement of what 4 bits cost"
    )
    return remembered("sensitivities", key, snapshot, workspace, work, request, facts)


def read_sensitivity(folder: Path) -> Sensitivity:
    """Return what `measure_sensitivity` stored."""
    return Sensitivity.model_validate_json((folder / SENSITIVITY_FILE).read_text())


def plan_work(headers: Mapping[str, Header], layers: int, context_length: int) -> Work:
    """Return on how many tokens the sensitivity is measured, and what that takes: at most 2e13 operations.

    Of four groups a layer; half of their rows are there in a layer on average, and all of them before the head.

    Args:
        headers: every tensor of the checkpoint.
    """
    inside = sum(header.parameters for name, header in headers.items() if layer_of(name) and len(header.shape) == 2)
    head = max((header.parameters for name, header in headers.items() if not layer_of(name)), default=0)
    a_token = 2.0 * (inside * (3 + 2 * layers) + head * (1 + 4 * layers))
    tokens = min(MOST_TOKENS, context_length, int(MOST_OPERATIONS / a_token))
    enough = tokens >= min(LEAST_TOKENS, context_length)
    return Work(tokens, tokens * a_token) if enough else Work(0, LEAST_TOKENS * a_token)


def _tell(snapshot: Snapshot, work: Work) -> None:
    """Say how long it will take, before it does."""
    if work.tokens:
        cores = os.cpu_count() or 1
        logger.info(
            "measuring what each group of matrices of %s loses in 4 bits, on %d tokens: %.1f trillion operations, "
            "about %.0f minutes on these %d cores",
            snapshot.source.name,
            work.tokens,
            work.operations / 1e12,
            max(1.0, work.operations / OPERATIONS_A_SECOND / cores / 60),
            cores,
        )


def _too_long(work: Work) -> str:
    return (
        f"{LEAST_TOKENS} tokens would take {work.operations / 1e12:.0f} trillion operations to measure, "
        f"which is more than {MOST_OPERATIONS / 1e12:.0f}"
    )


@forked_with(*TORCH)
def run_sensitivity(request: SensitivityRequest) -> Sensitivity:
    """Run in a child: measure or estimate, and write the file.

    Raises:
        BuildError: an activation or a weight that is not finite.
    """
    energy = read_energy(request.calibration)
    groups, int4 = groups_of(energy), Int4(energy, read_fold(request.fold))
    losses, reason = _measured(request, groups, int4)
    measured = losses is not None
    if losses is None:
        losses = estimate_losses(request.snapshot, groups, int4)
    headers = read_weights(request.snapshot)
    sensitivity = Sensitivity(
        groups=tuple(
            Group(tensors=group, weights=weights_in(group, headers), loss=loss)
            for group, loss in zip(groups, losses, strict=True)
        ),
        measured=measured,
        reason=reason,
    )
    (request.into / SENSITIVITY_FILE).write_text(sensitivity.model_dump_json(indent=1))
    return sensitivity


def _measured(
    request: SensitivityRequest, groups: tuple[tuple[str, ...], ...], int4: Int4
) -> tuple[tuple[float, ...] | None, str | None]:
    """Return what each group loses, or None and why it cannot be measured."""
    if request.reason:
        return None, request.reason

    def on_progress(done: int, total: int) -> None:
        report("build", done, total, "layers measured")

    try:
        model = load_source(request.snapshot, request.dtype)
        return measure_losses(model, _window(request), groups, int4, on_progress), None
    except UnfitError as error:
        return None, str(error)
    except BuildError:
        require_finite_weights(request.snapshot)  # a tensor that is to blame is the better answer
        raise


def _window(request: SensitivityRequest) -> list[int]:
    """Return the calibration text's first tokens, begun as the tokenizer begins a text."""
    from transformers import AutoTokenizer

    with limited(f"the tokenizer of {request.snapshot}"):
        tokenizer = AutoTokenizer.from_pretrained(request.snapshot, local_files_only=True)
        ids = first_ids(tokenizer, request.calibration / TEXT_FILE, max(MIN_TOKENS, request.tokens), "calibration")
        return [*prefix_of(tokenizer), *ids][: request.tokens]
