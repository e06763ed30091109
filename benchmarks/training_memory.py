"""What a training takes in memory: measured beside what is predicted before it starts.

    python benchmarks/training_memory.py                   SmolLM2-135M: an adapter, and all its weights
    python benchmarks/training_memory.py --layers 4 8      an adapter beside Phi-3's shape of so many layers, too

Two steps each: the first makes Adam's moments, the second has them beside everything else. Chats differ in length by a
token, so that there is padding. Private memory is psutil's unique set size, children included, as a run records it:
with the pages of the mapped checkpoint, which every step reads; in brackets what is anonymous.

All 32 layers take 8 GB of disk, and 9 GB of memory in bfloat16. Have nothing else on the machine that loads torch:
pages that two processes share are nobody's own, and the unique set size leaves them out.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from memory import AnonymousMemory
from phi3_shape import write_phi3_shape

from slmpack.checkpoint.sizes import sizes_of
from slmpack.checkpoint.windows import dtype_of
from slmpack.errors import TrainError
from slmpack.machine.child import run_in_child
from slmpack.progress import logger as progress_logger
from slmpack.retrain.training.losses import LOSSES, read_points
from slmpack.retrain.training.memory import FLOAT_BYTES, Plan, chats_at_a_time, predicted_bytes
from slmpack.retrain.training.settings import TrainSettings
from slmpack.retrain.training.trainer import TrainRequest, run_training
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source

STEPS = 2
LIMIT_SECONDS = 3600.0
HEAD = ("model", "rank", "batch", "at a time", "base", "recomputed", "predicted GB", "measured GB", "ratio", "tokens/s")


class Base(NamedTuple):
    """A checkpoint: its name, its folder, and the precision that its weights are in."""

    name: str
    path: Path
    dtype: str


class Case(NamedTuple):
    """A training: `batch_size` chats of `longest` tokens, with a plan that is not left to chance."""

    rank: int
    batch_size: int
    longest: int
    plan: Plan


KEEPING = Plan(dtype="float32", recomputes=False)
AGAIN = Plan(dtype="float32", recomputes=True)
SHORT = Plan(dtype="bfloat16", recomputes=True)
SMALL_CASES = tuple(
    Case(rank, batch_size, longest, plan)
    for rank in (16, 0)
    for batch_size, longest, plan in (
        (8, 60, KEEPING), (8, 60, AGAIN), (8, 256, AGAIN), (4, 1024, AGAIN),
    )
)  # fmt: skip
LARGE_CASES = (Case(16, 8, 60, KEEPING), Case(16, 1, 512, AGAIN), Case(16, 1, 512, SHORT))
WHOLE_CASES = (Case(16, 1, 128, SHORT),)  # float32 does not fit into 24 GB
WHOLE = 32


def write_chats(path: Path, chats: int, longest: int) -> None:
    """Write chats of about so many tokens."""
    with path.open("w") as file:
        for number in range(chats):
            said = "very " * (longest - 36 - number % 2) + "far"  # 36: what SmolLM2's template and the rest take
            turns = [{"role": "user", "content": "How far?"}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"messages": turns}) + "\n")


def measure(base: Base, case: Case, folder: Path) -> Iterator[str]:
    """Train two steps in a process of its own; yield the row's cells."""
    write_chats(folder / "chats.jsonl", STEPS * case.batch_size, case.longest)
    request = TrainRequest(
        checkpoint=base.path, dtype=base.dtype, base_name=base.name, base_revision="", chats=folder / "chats.jsonl",
        settings=TrainSettings(epochs=1, rank=case.rank, batch_size=case.batch_size), max_length=2 * case.longest,
        folder=folder, resume=None, save_seconds=LIMIT_SECONDS, plan=case.plan,
    )  # fmt: skip
    with AnonymousMemory() as memory:
        trained, run = run_in_child(
            run_training, request, log=folder / "log", limit_seconds=LIMIT_SECONDS, failure=TrainError,
            doing="training",
        )  # fmt: skip
    sizes = sizes_of(base.path)
    chats = chats_at_a_time(sizes, case.batch_size, trained.longest)
    kept = 1 if case.plan.recomputes else sizes.layers
    predicted = predicted_bytes(sizes, case.rank, chats * trained.longest, FLOAT_BYTES[case.plan.dtype], kept)
    measured = run.peak_private_bytes
    yield from (base.name, str(case.rank or "all"), f"{case.batch_size} x {trained.longest:,}", str(chats))
    yield from (case.plan.dtype, "yes" if case.plan.recomputes else "no", f"{predicted / 1e9:.2f}")
    yield from (f"{measured / 1e9:.2f} ({memory.peak_bytes / 1e9:.2f})", f"{predicted / measured:.2f}")
    yield f"{read_points(folder / LOSSES)[-1].tokens_per_second:.0f}"


def tell_cases(base: Base, cases: tuple[Case, ...], scratch: Path) -> None:
    for case in cases:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            tell_row(measure(base, case, Path(folder)))


def tell_row(cells: Iterator[str]) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def tell_progress() -> None:
    """Write every step to the standard error."""

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen = record.progress  # type: ignore[attr-defined]
            sys.stderr.write(f"{seen.stage}: {seen.done} of {seen.total} {seen.unit}\n")

    progress_logger.addHandler(Tell())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-files"), help="for checkpoints")
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="of Phi-3's shape; 32 is all of it")
    parser.add_argument("--only-phi3", action="store_true")
    arguments = parser.parse_args()
    scratch = arguments.folder.resolve()
    small = fetch_snapshot(resolve_source(DEFAULT_SOURCE), scratch / "workspace")
    tell_progress()
    tell_row(iter(HEAD))
    tell_row(iter(["---"] * len(HEAD)))
    if not arguments.only_phi3:
        tell_cases(Base("SmolLM2-135M", small.path, dtype_of(small)), SMALL_CASES, scratch)
    for layers in arguments.layers:
        path = scratch / f"training-phi3-{layers}"
        write_phi3_shape(path, layers, small.path)
        tell_cases(Base(f"Phi-3, {layers}", path, "bfloat16"), WHOLE_CASES if layers == WHOLE else LARGE_CASES, scratch)
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
