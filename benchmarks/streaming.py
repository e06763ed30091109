"""What building takes: the stock builder and the streaming one, side by side, and the whole run at full size.

    python benchmarks/streaming.py            tables 1 and 2: about 10 minutes, 12 GB of disk
    python benchmarks/streaming.py --run      table 3 too: `slmpack package` and `chat` at full size

Times are of a machine with other things to do: trust the ratios, which are of one run, stock and streaming in turn.
Memory is private: what is anonymous in the process and its children at its highest, without the pages of the mapped
checkpoint, which the kernel takes back when it wants them; in brackets with them (psutil's unique set size).
"""

import argparse
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from memory import AnonymousMemory
from phi3_shape import write_phi3_shape
from whole_run import tell_whole_run

from slmpack.build.genai.builder import BUILD_LIMIT_SECONDS
from slmpack.build.genai.data_file import JOB_WEIGHTS
from slmpack.build.genai.memory import predicted_stock_peak
from slmpack.build.genai.run_builder import BuildRequest, run_builder
from slmpack.checkpoint.blocks import quantise_rows
from slmpack.checkpoint.headers import read_weights
from slmpack.errors import BuildError
from slmpack.machine.child import run_in_child
from slmpack.progress import logger as progress_logger
from slmpack.records import Recipe, Target
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source
from slmpack.targets import RECIPES

OPTIONS = RECIPES[Target.CPU_INT4][Recipe.STOCK_SMALL]  # the builder's own int4, block 32
THREADS = len(os.sched_getaffinity(0))
BLOCK_BYTES = 1 << 24


class Build(NamedTuple):
    seconds: float
    private_bytes: int
    with_maps_bytes: int
    phases: dict[str, float]
    package_bytes: int


def build(checkpoint: Path, layers: int, into: Path, streamed: bool) -> Build:
    """Build in a process of its own, the checkpoint not in the page cache."""
    forget(checkpoint)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    request = BuildRequest(
        snapshot=checkpoint,
        architecture="Phi3ForCausalLM",
        layers=layers,
        options=OPTIONS,
        streamed=streamed,
        into=into,
    )
    with phases_of_a_build() as phases, AnonymousMemory() as memory:
        _, run = run_in_child(
            run_builder, request, log=into.with_suffix(".log"), limit_seconds=BUILD_LIMIT_SECONDS, failure=BuildError,
            doing="the build",
        )  # fmt: skip
        started = time.monotonic()
        sync(into)
        synced = time.monotonic() - started
    phases["to disk"] = synced
    size = sum(path.stat().st_size for path in into.iterdir())
    return Build(run.seconds + synced, memory.peak_bytes, run.peak_private_bytes, phases, size)


@contextmanager
def phases_of_a_build() -> Iterator[dict[str, float]]:
    """Tell how long a build takes until its layers are read, its weights quantised, and after that."""
    started = time.monotonic()
    marks: dict[str, float] = {}

    class Mark(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            marks[record.progress.unit] = time.monotonic() - started  # type: ignore[attr-defined]

    phases: dict[str, float] = {}
    handler = Mark()
    progress_logger.addHandler(handler)
    try:
        yield phases
    finally:
        progress_logger.removeHandler(handler)
        read, quantised = marks.get("layers read", 0.0), marks.get("weights quantised", 0.0)
        phases |= {"libraries and graph": read, "quantise and write": max(0.0, quantised - read)}


def forget(folder: Path) -> None:
    """Let the kernel drop a folder's files from its page cache, so that they come from the disk again."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def seconds_to_read(folder: Path) -> float:
    forget(folder)
    started = time.monotonic()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass
    return time.monotonic() - started


def seconds_to_write(folder: Path, size_bytes: int) -> float:
    block = os.urandom(BLOCK_BYTES)
    path = folder / "written"
    started = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(size_bytes // BLOCK_BYTES):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    path.unlink()
    return seconds


def seconds_to_quantise(weights: int) -> float:
    """Time the arithmetic alone on weights that are in memory already, one thread a core, and scale it up."""
    torch.set_num_threads(1)
    piece = torch.randn(JOB_WEIGHTS // 3072, 3072).to(torch.bfloat16)
    jobs = 400

    def job(_: int) -> None:
        quantise_rows(piece.to(torch.float32), 4, 32)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(job, range(2 * THREADS)))
        started = time.monotonic()
        list(pool.map(job, range(jobs)))
        seconds = time.monotonic() - started
    return seconds * weights / (jobs * piece.numel())


def private(built: Build) -> str:
    return f"{built.private_bytes / 1e9:.2f} ({built.with_maps_bytes / 1e9:.2f})"


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def compare(checkpoint: Path, layers: int, scratch: Path, repeats: int) -> None:
    """Print table 1."""
    tell(f"\n1. Phi-3's shape, {layers} layers, cpu-int4, recipe stock-small: stock and streaming in turn\n")
    tell("| build | wall s | private GB | of stock: wall | of stock: memory |\n|---|---|---|---|---|")
    walls, memories = [], []
    for _ in range(repeats):
        stock = build(checkpoint, layers, scratch / "stock", streamed=False)
        streaming = build(checkpoint, layers, scratch / "streaming", streamed=True)
        walls.append(streaming.seconds / stock.seconds)
        memories.append(streaming.private_bytes / stock.private_bytes)
        tell(f"| stock | {stock.seconds:.1f} | {private(stock)} | | |")
        tell(f"| streaming | {streaming.seconds:.1f} | {private(streaming)} | {walls[-1]:.2f} | {memories[-1]:.3f} |")
    same = (scratch / "stock/model.onnx.data").read_bytes() == (scratch / "streaming/model.onnx.data").read_bytes()
    tell(f"| median of {repeats} | | | {statistics.median(walls):.2f} (at most 0.30) |"
         f" {statistics.median(memories):.3f} (at most 0.18) |")  # fmt: skip
    predicted = predicted_stock_peak(read_weights(checkpoint), 4, OPTIONS.block_size, OPTIONS.algo_config)
    tell(f"\nmodel.onnx.data equal: {'yes' if same else 'NO'}. Stock peak predicted: {predicted / 1e9:.2f} GB.")


def full_size(checkpoint: Path, layers: int, scratch: Path, repeats: int) -> None:
    """Print table 2."""
    weights = sum(tensor.parameters for tensor in read_weights(checkpoint).values())
    tell(f"\n2. {layers} layers, {weights / 1e9:.2f} billion weights, {THREADS} threads, nothing in the page cache\n")
    tell("| | read s | write and sync s | arithmetic s | floor s | streaming s | of floor | private GB (at most 2.5) |")
    tell("|---|---|---|---|---|---|---|---|")
    ratios = []
    built = None
    for _ in range(repeats):
        built = build(checkpoint, layers, scratch / "streaming", streamed=True)
        read = seconds_to_read(checkpoint)
        write = seconds_to_write(scratch, built.package_bytes)
        arithmetic = seconds_to_quantise(weights)
        floor = read + write + arithmetic
        ratios.append(built.seconds / floor)
        tell(f"| | {read:.1f} | {write:.1f} | {arithmetic:.1f} | {floor:.1f} | {built.seconds:.1f} | {ratios[-1]:.2f} |"
             f" {private(built)} |")  # fmt: skip
    assert built is not None
    tell(f"| median of {repeats} | | | | | | {statistics.median(ratios):.2f} (at most 1.5) | |")
    tell("\nWhere the last build's time went: " + ", ".join(f"{name} {s:.1f} s" for name, s in built.phases.items()))
    predicted = predicted_stock_peak(read_weights(checkpoint), 4, OPTIONS.block_size, OPTIONS.algo_config)
    tell(f"The stock builder would take {predicted / 1e9:.1f} GB, by its prediction.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-files"), help="for checkpoints and packages")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", action="store_true", help="measure the whole run too")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    tokenizer = fetch_snapshot(resolve_source(DEFAULT_SOURCE), folder / "workspace").path
    for layers in (8, 32):
        if not (folder / f"phi3-{layers}" / "model.safetensors.index.json").exists():
            tell(f"writing {layers} layers ...")
            write_phi3_shape(folder / f"phi3-{layers}", layers, tokenizer)
    compare(folder / "phi3-8", 8, folder / "packages", arguments.repeats)
    full_size(folder / "phi3-32", 32, folder / "packages", arguments.repeats)
    shutil.rmtree(folder / "packages")
    if arguments.run:
        tell_whole_run(folder / "phi3-32", folder / "run")


if __name__ == "__main__":
    main()
