"""Fold: scale the channels that 4 bits treat worst, and divide by the same where they come from: AWQ's fold.

    <workspace>/folds/<key>/
        fold.safetensors    float32: columns/<matrix> [K], rows/<matrix> [N], norms/<norm's weight> [H]

    snapshot --channel_pairs--> pairs --channel_scales, by the calibration--> scales --check--> stored, or empty

A folded model is the source but for rounding. An architecture without a map, or a fold that changes what the source
says, gives an empty fold with the reason among the folder's facts; the package is then made without.
"""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.forward import load_source, tensor_names
from slmpack.checkpoint.headers import read_weights
from slmpack.checkpoint.mapped_rows import Maps
from slmpack.checkpoint.windows import MIN_TOKENS, TEXT_FILE, cut_windows, dtype_of, first_ids, prefix_of
from slmpack.errors import BuildError
from slmpack.machine.child import limited
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.remember import ChildWork, remembered
from slmpack.machine.store import Facts
from slmpack.quantise.awq.channel_pairs import VERSION, Fold, FoldMap, NoFoldError, Pair, Shapes, fold_map
from slmpack.quantise.awq.channel_scales import (
    BLOCK_SIZE,
    LARGEST_SCALE,
    POWERS,
    SAMPLED_ROWS,
    Choice,
    choose_scales,
    to_columns,
)
from slmpack.quantise.awq.check import LARGEST_DIFFERENCE, LARGEST_KL, compare_folded
from slmpack.quantise.calibrate import read_energy
from slmpack.records import Record, Snapshot, digest_of

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

LAYOUT = 1  # of the folder, and of how scales are chosen; another number makes every fold again
FOLD_FILE = "fold.safetensors"
FOLD_LIMIT_SECONDS = 3600.0
CHECK_TOKENS = 96
# What a fold depends on beside the snapshot and its calibration.
FOLD = digest_of(
    [LAYOUT, VERSION, POWERS, LARGEST_SCALE, SAMPLED_ROWS, BLOCK_SIZE, CHECK_TOKENS, LARGEST_DIFFERENCE, LARGEST_KL]
)


class FoldRequest(Record):
    """What the child is to fold.

    Attributes:
        calibration: what `calibrate` stored.
        into: an empty folder.
    """

    snapshot: Path
    dtype: str
    calibration: Path
    into: Path


class FoldResult(Record):
    """What came of it.

    Attributes:
        pairs: whose channels are scaled; 0 where the fold is not used.
        of_pairs: that the architecture has.
        loss_ratio: what is lost of all matrices with a fold, over what is lost without.
        largest_difference: of a folded logit, as a part of the logits' standard deviation.
        mean_kl: in nats a token.
        reason: why there is no fold, else None.
    """

    pairs: int = 0
    of_pairs: int = 0
    loss_ratio: float = 1.0
    largest_difference: float = 0.0
    mean_kl: float = 0.0
    reason: str | None = None


def fold_channels(snapshot: Snapshot, calibration: Path, workspace: Path) -> Path:
    """Return the folder of `snapshot`'s fold, which is empty where none can be used; made in a child, once.

    Args:
        calibration: what `calibrate` stored for this snapshot.

    Raises:
        BuildError: the child failed, was killed or took too long.
        WorkspaceError: the workspace is full.
    """
    key = digest_of([FOLD, snapshot.digest, calibration.name])

    def request(into: Path) -> FoldRequest:
        logger.info("choosing the channels' scales of %s", snapshot.source.name)
        return FoldRequest(snapshot=snapshot.path, dtype=dtype_of(snapshot), calibration=calibration, into=into)

    def facts(folded: FoldResult) -> Facts:
        if folded.reason:
            logger.warning("no channels are folded, since %s", folded.reason)
        return {
            "pairs": folded.pairs,
            "of_pairs": folded.of_pairs,
            "loss_ratio": f"{folded.loss_ratio:.3f}",
            "largest_difference": f"{folded.largest_difference:.1e}",
            "mean_kl": f"{folded.mean_kl:.1e}",
            "reason": folded.reason,
        }

    work = ChildWork(run_fold, "fold", FOLD_LIMIT_SECONDS, BuildError, "the fold")
    return remembered("folds", key, snapshot, workspace, work, request, facts)


def read_fold(folder: Path) -> Fold:
    """Return the fold that `fold_channels` stored; one that is not used is empty."""
    from safetensors.torch import load_file

    fold = Fold()
    for key, factors in load_file(folder / FOLD_FILE).items():
        kind, name = key.split("/", 1)
        {"columns": fold.columns, "rows": fold.rows, "norms": fold.norms}[kind][name] = factors
    return fold


@forked_with(*TORCH)
def run_fold(request: FoldRequest) -> FoldResult:
    """Run in a child: choose the scales, compare the folded source with the source, write the fold."""
    return fold_by(fold_map, request)


def fold_by(map_of: Callable[[Any, Shapes], FoldMap], request: FoldRequest) -> FoldResult:
    """Do so by the pairs that `map_of` gives for a checkpoint's config and its tensors' shapes."""
    fold, folded = Fold(), FoldResult()
    try:
        fold, folded = _folded(request, map_of)
    except NoFoldError as error:
        folded = FoldResult(reason=str(error))
    _write(Fold() if folded.reason else fold, request.into / FOLD_FILE)
    return folded


def _folded(request: FoldRequest, map_of: Callable[[Any, Shapes], FoldMap]) -> tuple[Fold, FoldResult]:
    """Return the fold and what the check found.

    Raises:
        NoFoldError: the architecture has none, or not for this checkpoint.
    """
    import torch

    model = load_source(request.snapshot, request.dtype)
    found = map_of(model.config, {name: each.shape for name, each in read_weights(request.snapshot).items()})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads share pairs meanwhile, not the arithmetic of one
    choices = _choices(model, found, request.calibration)
    torch.set_num_threads(threads)
    fold = fold_of(found.pairs, [choice.scales for choice in choices])
    if not fold.columns:
        raise NoFoldError("no scale of any channel would lose less")
    difference = compare_folded(
        request.snapshot, request.dtype, fold, found.norm_offset, _windows(request, model.config)
    )
    return fold, FoldResult(
        pairs=0 if difference.reason else sum(_scaled(choice.scales) for choice in choices),
        of_pairs=len(found.pairs),
        loss_ratio=sum(choice.loss for choice in choices) / sum(choice.unfolded for choice in choices),
        largest_difference=difference.largest,
        mean_kl=difference.mean_kl,
        reason=difference.reason,
    )


def _choices(model: Any, found: FoldMap, calibration: Path) -> list[Choice]:
    """Return the scales of every pair.

    Raises:
        NoFoldError: a matrix has another name in the checkpoint's files.
    """
    names = tensor_names(model)
    with Maps() as maps:
        weights = {name: module.get_parameter(own) for module, owns in names.items() for own, name in owns.items()}
        rows = {name: maps.rows_of(weight, name) for name, weight in weights.items() if weight.dim() == 2}
        if strange := sorted({name for pair in found.pairs for name in pair.readers} - rows.keys()):
            raise NoFoldError(f"{strange[0]} is none of the model's weights")
        return choose_scales(found.pairs, rows, read_energy(calibration), len(os.sched_getaffinity(0)))


def _windows(request: FoldRequest, config: Any) -> list[tuple[int, ...]]:
    """Return two windows of the calibration's text, 96 tokens together."""
    from transformers import AutoTokenizer

    with limited(f"the tokenizer of {request.snapshot}"):
        tokenizer = AutoTokenizer.from_pretrained(request.snapshot, local_files_only=True)
        ids = first_ids(tokenizer, request.calibration / TEXT_FILE, MIN_TOKENS, "calibration")
        prefix = prefix_of(tokenizer)
    size = min(CHECK_TOKENS // 2, config.max_position_embeddings)
    return list(cut_windows(ids, size, prefix))[:2]


def fold_of(pairs: Iterable[Pair], scales: "Iterable[Tensor]") -> Fold:
    """Return the fold that multiplies every pair's readers by `scales`, float32 `[channels]`; ones are left out."""
    import torch

    fold = Fold()
    for pair, chosen in zip(pairs, scales, strict=True):
        if not _scaled(chosen):
            continue
        for reader in pair.readers:
            fold.columns[reader] = to_columns(pair, chosen).clone()  # a file holds no tensor twice
        divided = torch.ones(pair.rows)
        divided[pair.start : pair.start + pair.channels] = chosen.reciprocal()
        (fold.norms if pair.norm else fold.rows)[pair.giver] = divided
    return fold


def _scaled(scales: "Tensor") -> bool:
    return bool((scales != 1).any())


def _write(fold: Fold, path: Path) -> None:
    from safetensors.torch import save_file

    kinds = {"columns": fold.columns, "rows": fold.rows, "norms": fold.norms}
    save_file({f"{kind}/{name}": each for kind, of_kind in kinds.items() for name, each in of_kind.items()}, path)
