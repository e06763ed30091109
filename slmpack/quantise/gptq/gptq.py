"""GPTQ over a whole source: every matrix of the decoder solved while the source runs, what it says afterwards with it.

    <workspace>/gptq/<key>/
        text.txt                                  what was read, UTF-8
        <checkpoint tensor name>.safetensors      codes, scales and zero points (see `codes_file`)

The source runs once, in float32, a module at a time (see `checkpoint.forward`), on all windows together, and solved
as it runs (see `layers`). The head is not.

A covariance needs more tokens than energies do, and more than random ones. SmolLM2-135M, head in 8 bits, mean KL on
two texts, prose and packages' descriptions, neither of them read here, from 4,096 tokens, all
with a damping of .01 (see `gptq`, where .1 is what is used):

                                                               no fold        folded
    the built-in text (512 tokens), then random ids            .109  .136     .094  .118
    the same inputs' energies and the search alone             .120  .166     .075  .122
    what the source itself writes, from an empty start         .085  .137     .072  .121
    docstrings of this package                                 .101  .154
    documentation of the standard library                      .115  .163
    random ids                                                 .138  .165

The first is what is read without a text of the user's. The third is better, and writing it would take a source of 4
billion weights, a module at a time, about as long again. Differences below .01 are noise.
"""

import logging
from collections.abc import Collection
from functools import partial
from pathlib import Path

from slmpack.checkpoint.finite import require_finite_weights
from slmpack.checkpoint.forward import load_source, vocabulary_of
from slmpack.checkpoint.headers import read_weights
from slmpack.checkpoint.windows import TEXT_FILE, dtype_of
from slmpack.errors import BuildError
from slmpack.machine.child import run_in_child
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.remember import ChildWork, remembered
from slmpack.machine.store import Facts, log_folder, require_space
from slmpack.quantise.awq.channel_pairs import Fold
from slmpack.quantise.awq.fold import read_fold
from slmpack.quantise.calibrate import BUILT_IN_TEXT, WINDOW_TOKENS, CalibrationRequest, windows_of
from slmpack.quantise.gptq.codes_file import write_solved
from slmpack.quantise.gptq.cost import SampleRequest, cost_of, measure_speed, predicted_seconds
from slmpack.quantise.gptq.layers import BLOCK_SIZE, solve_model
from slmpack.quantise.gptq.solve import DAMPING
from slmpack.records import Record, Snapshot, digest_of

logger = logging.getLogger(__name__)

LAYOUT = 1  # of the folder; another number makes all of them again
GPTQ_LIMIT_SECONDS = 4 * 3600.0
BYTES_PER_WEIGHT = 0.5 + 5 / BLOCK_SIZE  # a code, and of each block a float32 scale and a zero point
SPEED_LIMIT_SECONDS = 300.0
TOKENS = 4096  # of a text; of the built-in one an eighth, and random ids
BUILT_IN_TOKENS = 512
# What the codes depend on beside the snapshot, its fold and a text of the user's.
GPTQ = digest_of([LAYOUT, BUILT_IN_TEXT, BUILT_IN_TOKENS, TOKENS, WINDOW_TOKENS, BLOCK_SIZE, DAMPING])


class GptqRequest(CalibrationRequest):
    """What the source's process is to read, and what of it is to be solved.

    Attributes:
        fold: the folder of a fold, None for none.
        int8: matrices that stay as they are.
    """

    fold: Path | None
    int8: tuple[str, ...]


class GptqResult(Record):
    """What came of it."""

    tokens: int
    matrices: int


def quantise_by_gptq(
    snapshot: Snapshot, fold: Path | None, text: str | None, workspace: Path, int8: Collection[str] = ()
) -> Path:
    """Return the folder of the codes of `snapshot`'s matrices, but for its head; the source runs in a child, once.

    The log tells beforehand how long it will take (see `cost`).

    Args:
        fold: the stored folder of a fold, of whose matrices the codes are to be; None: of the source's own.
        text: what to read, its first 4,096 tokens; None: the built-in text and random token ids.
        int8: matrices, by the checkpoint's names, that will have 8 bits and therefore stay as they are.

    Raises:
        UsageError: the text has fewer than 200 tokens.
        BuildError: activations that are not finite, or the run failed.
        WorkspaceError: the workspace is full.
    """
    key = digest_of([GPTQ, snapshot.digest, fold.name if fold else None, text, sorted(int8)])

    def request(into: Path) -> GptqRequest:
        require_space(workspace, int(snapshot.parameters * BYTES_PER_WEIGHT), "what GPTQ finds")
        _tell_time(snapshot, log_folder(workspace) / f"gptq-speed-{key[:12]}.log")
        (into / TEXT_FILE).write_text(BUILT_IN_TEXT if text is None else text, encoding="utf-8", newline="")
        return GptqRequest(
            snapshot=snapshot.path,
            dtype=dtype_of(snapshot),
            context_length=snapshot.context_length,
            fold=fold,
            int8=tuple(int8),
            text_tokens=BUILT_IN_TOKENS if text is None else TOKENS,
            random_tokens=TOKENS - BUILT_IN_TOKENS if text is None else 0,
            into=into,
        )

    def facts(solved: GptqResult) -> Facts:
        return {"tokens": solved.tokens, "matrices": solved.matrices}

    work = ChildWork(run_gptq, "gptq", GPTQ_LIMIT_SECONDS, BuildError, "GPTQ")
    return remembered("gptq", key, snapshot, workspace, work, request, facts)


def _tell_time(snapshot: Snapshot, log: Path) -> None:
    """Log how long it will take, as fast as this machine is now."""
    speed, _ = run_in_child(
        measure_speed,
        SampleRequest(block_size=BLOCK_SIZE),
        log=log,
        limit_seconds=SPEED_LIMIT_SECONDS,
        failure=BuildError,
        doing="the measurement before GPTQ",
    )
    seconds = predicted_seconds(cost_of(read_weights(snapshot.path), TOKENS), speed)
    about = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    logger.info("GPTQ of %s will take about %s", snapshot.source.name, about)


@forked_with(*TORCH)
def run_gptq(request: GptqRequest) -> GptqResult:
    """Run in a child: tokenise, run the source, solve and write every matrix.

    Raises:
        UsageError: the text has fewer than 200 tokens.
        BuildError: activations or weights that are not finite, or an architecture without a decoder of its own.
    """
    model = load_source(request.snapshot, request.dtype)
    windows = windows_of(request, vocabulary_of(model))
    fold = read_fold(request.fold) if request.fold else Fold()
    try:
        names = solve_model(model, windows, fold, partial(write_solved, request.into), request.int8)
    except BuildError:
        require_finite_weights(request.snapshot)  # a tensor that is to blame is the better answer
        raise
    return GptqResult(tokens=sum(map(len, windows)), matrices=len(names))
