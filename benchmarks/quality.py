"""What each recipe of cpu-int4 keeps of SmolLM2-135M-Instruct, what it costs to make, and how fast it answers.

    python benchmarks/quality.py                 the tables and frontier.svg: about half an hour, 3 GB of disk
    python benchmarks/quality.py --recipes small,balanced
    python benchmarks/quality.py --llama         llama.cpp's formats in the same tables; it is built first, once

Two texts of different kinds, neither of them used for calibration: the built-in one (prose, dialogue, data), and Python
code (the standard library's argparse, so it changes with Python). Differences of KL below 0.01 are noise: so much
lies between calibrations that are equally good.

Times are of a machine with other things to do. Decode speed is the median of answers that are given in turn with
stock-small's, as a ratio of it, everything with the same threads. Time and memory are of everything between the
source's snapshot and the package: calibration, fold, sensitivity, GPTQ, build; memory is anonymous memory, children
included. llama.cpp quantises the same snapshot, converted to 16 bits by its own script, with and without an importance
matrix of the text that slmpack calibrates on.
"""

import argparse
import inspect
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnxruntime_genai as og
from llama_build import build_llama
from llama_quality import FORMATS, Quantised, quantise
from memory import AnonymousMemory

from slmpack.build.build import build_package
from slmpack.errors import QualityError
from slmpack.machine.child import run_in_child
from slmpack.prove.quality.compare import ComparisonRequest, Measured, run_package
from slmpack.prove.quality.reference import source_reference
from slmpack.prove.quality.text import CORPUS
from slmpack.records import Package, Recipe, Snapshot, Target
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source
from slmpack.targets import RECIPES

TEXTS = {"built-in text": CORPUS.read_text(encoding="utf-8"), "Python code": inspect.getsource(argparse)}
DECODED_TOKENS = 64
BEGINNING = "Once upon a time there was a machine that"
TURNS = 7
STOCK = (Recipe.STOCK_SMALL, Recipe.STOCK_MIXED)
EQUAL = 1.02  # so much more is as large, or as fast
NOISE = "Differences of KL below 0.01 are noise."
THREADS_NOTE = (
    "All with {threads} threads. Where llama.cpp is closer to the source, and where it is not, by the mean KL:"
)


class Made(NamedTuple):
    """A package and what making it took."""

    package: Package
    seconds: float
    private_bytes: int


def make(snapshot: Snapshot, recipe: Recipe, workspace: Path) -> Made:
    """Build in a workspace of its own, so that nothing is at hand from another recipe."""
    shutil.rmtree(workspace, ignore_errors=True)
    started = time.monotonic()
    with AnonymousMemory() as memory:
        package = build_package(snapshot, Target.CPU_INT4, recipe, workspace)
    return Made(package, time.monotonic() - started, memory.peak_bytes)


def measure(package: Package, reference: Path, log: Path) -> Measured:
    measured, _ = run_in_child(
        run_package, ComparisonRequest(package=package.path, reference=reference), log=log, limit_seconds=3600,
        failure=QualityError, doing="the run of the package",
    )  # fmt: skip
    return measured


def decoder_of(package: Path, threads: int) -> Callable[[], float]:
    """Return what gives an answer and returns the time that tokens after the first take, seconds each."""
    config = og.Config(str(package))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    ids = og.Tokenizer(model).encode(BEGINNING)
    parameters = og.GeneratorParams(model)
    length = len(ids) + 1 + DECODED_TOKENS
    parameters.set_search_options(max_length=length, min_length=length)

    def decode() -> float:
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        generator.generate_next_token()
        started = time.perf_counter()
        for _ in range(DECODED_TOKENS):
            generator.generate_next_token()
        return (time.perf_counter() - started) / DECODED_TOKENS

    return decode


def relative_speed(one: Callable[[], float], other: Callable[[], float]) -> float:
    """Return how many tokens one gives while the other gives one; in turn, and their medians."""
    one(), other()  # the first is slower
    ours, theirs = [], []
    for _ in range(TURNS):  # who comes second pays for the other's threads, which still look for work
        ours.append(one())
        theirs += [other(), other()]
        ours.append(one())
    return statistics.median(theirs) / statistics.median(ours)


def weights_of(package: Package) -> int:
    return sum(file.size_bytes for file in package.files if file.name.startswith("model.onnx"))


class Row(NamedTuple):
    """One way to store the model, as both tables have it.

    Attributes:
        speed: of decoding, stock-small's being 1.
        kl: on each text, nats; `ratio` is of perplexities.
    """

    name: str
    megabytes: float
    speed: float
    kl: tuple[float, ...]
    ratio: tuple[float, ...]

    @property
    def kind(self) -> str:
        return (
            "llama.cpp" if self.name.startswith("llama.cpp") else "stock builder" if "stock" in self.name else "slmpack"
        )


LOOKS = {"slmpack": ("#14713b", "o"), "stock builder": ("#a33", "s"), "llama.cpp": ("#888", "^")}


def draw(rows: list[Row], path: Path) -> None:
    """Draw size against perplexity ratio on the first text: our recipes, the stock builder's, llama.cpp's formats."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="weights, MB", ylabel="perplexity over the source's")
    for label, (color, marker) in LOOKS.items():
        own = sorted((row.megabytes, row.ratio[0], row.name) for row in rows if row.kind == label)
        if not own:
            continue
        line = [(megabytes, ratio) for megabytes, ratio, name in own if name != Recipe.BEST]
        if label != "llama.cpp":
            axes.plot(*zip(*line, strict=True), color=color, linewidth=1, linestyle=":")
        axes.scatter([each[0] for each in own], [each[1] for each in own], c=color, marker=marker, label=label)
        for megabytes, ratio, name in own:
            short = name.removeprefix("llama.cpp ")
            axes.annotate(short, (megabytes, ratio), xytext=(6, 4), textcoords="offset points", color=color)
    axes.margins(x=0.25, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "quality"}):
        figure.savefig(path, metadata={"Date": None})


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell_better(rows: list[Row]) -> None:
    """Say where llama.cpp keeps more than a recipe of ours at the same size, or at the same speed."""
    theirs = [row for row in rows if row.kind == "llama.cpp"]
    for row in (row for row in rows if row.kind == "slmpack"):
        for what, which in (
            ("bytes", [each for each in theirs if each.megabytes <= row.megabytes * EQUAL]),
            ("speed", [each for each in theirs if each.speed >= row.speed / EQUAL]),
        ):
            best = min(which, key=lambda each: statistics.mean(each.kl), default=None)
            if best is None:
                tell(f"- {row.name}: no format of llama.cpp at its {what}")
                continue
            mine, other = statistics.mean(row.kl), statistics.mean(best.kl)
            tell(f"- {row.name}, at no more than its {what}: KL {mine:.3f}, {best.name} {other:.3f}"
                 f" ({'slmpack' if mine < other else 'llama.cpp'} is closer)")  # fmt: skip


class Table:
    """The rows, measured one after the other.

    Args:
        references: of each text, what the source says.
    """

    def __init__(self, references: dict[str, Path], threads: int, folder: Path) -> None:
        self.references, self.threads, self.folder = references, threads, folder
        self.rows: list[Row] = []
        self._costs: list[str] = []
        self._kept: list[str] = []

    def add_package(self, recipe: Recipe, made: Made, baseline: Made) -> None:
        found = [measure(made.package, place, self.folder / f"{recipe}.log") for place in self.references.values()]
        speed = self._speed(decoder_of(made.package.path, self.threads), baseline)
        self._add(recipe, weights_of(made.package), speed, found, made.seconds, f"{made.private_bytes / 1e9:.2f}")

    def add_llama(self, made: Quantised, baseline: Made) -> None:
        with made.running(self.threads, BEGINNING, DECODED_TOKENS) as model:
            found = [model.measure(place, self.folder) for place in self.references.values()]
            speed = self._speed(model.decode, baseline)
        self._add(made.name, made.weight_bytes, speed, found, made.seconds, "")

    def _speed(self, decode: Callable[[], float], baseline: Made) -> float:
        return relative_speed(decode, decoder_of(baseline.package.path, self.threads))

    def _add(self, name: str, size: int, speed: float, found: list[Measured], seconds: float, memory: str) -> None:
        ratio = tuple(each.perplexity / each.source_perplexity for each in found)
        self.rows.append(Row(name, size / 1e6, speed, tuple(each.mean_kl for each in found), ratio))
        of_stock = self.rows[-1].megabytes / self.rows[0].megabytes
        self._costs.append(f"| {name} | {size / 1e6:.1f} | {of_stock:.3f} | {speed:.2f} | {seconds:.0f} | {memory} |")
        cells = [
            f"{each.mean_kl:.3f} | {of:.3f} | {each.top1_agreement:.1%}" for each, of in zip(found, ratio, strict=True)
        ]
        self._kept.append(f"| {name} | {' | '.join(cells)} |")
        sys.stderr.write(f"{self._costs[-1]} {self._kept[-1]}\n")

    def tell(self) -> None:
        tell("\n| recipe | MB | of stock-small | decode speed of stock-small's | made in s | private GB |")
        tell("\n".join(["|---|---|---|---|---|---|", *self._costs]))
        tell(f"\n| recipe | {' | '.join(f'{name}: KL | ratio | top-1' for name in TEXTS)} |")
        tell("\n".join([f"|---{'|---' * 3 * len(TEXTS)}|", *self._kept]))
        if any(row.kind == "llama.cpp" for row in self.rows):
            tell(f"\n{THREADS_NOTE.format(threads=self.threads)}\n")
            tell_better(self.rows)


def main() -> None:
    offered = [recipe.value for recipe in RECIPES[Target.CPU_INT4]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-files"), help="for packages and the plot")
    parser.add_argument("--recipes", default=",".join(offered), help="separated by commas; stock-small is always made")
    parser.add_argument("--llama", action="store_true", help="llama.cpp's formats as well")
    parser.add_argument("--formats", default=",".join(FORMATS), help="those, separated by commas")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve() / "quality"
    recipes = [Recipe(name) for name in arguments.recipes.split(",")]
    snapshot = fetch_snapshot(resolve_source(DEFAULT_SOURCE), folder / "source")
    references = {name: source_reference(snapshot, text, folder / "source") for name, text in TEXTS.items()}
    table = Table(references, arguments.threads, folder)
    baseline = make(snapshot, Recipe.STOCK_SMALL, folder / Recipe.STOCK_SMALL)
    table.add_package(Recipe.STOCK_SMALL, baseline, baseline)
    for recipe in recipes:
        if recipe is not Recipe.STOCK_SMALL:
            table.add_package(recipe, make(snapshot, recipe, folder / recipe), baseline)
    if arguments.llama:
        llama = build_llama(folder.parent / "llama.cpp")
        for made in quantise(llama, snapshot, arguments.formats.split(","), folder / "gguf"):
            table.add_llama(made, baseline)
    table.tell()
    draw(table.rows, folder / "frontier.svg")
    tell(f"\n{NOISE} The plot is {folder / 'frontier.svg'}.")


if __name__ == "__main__":
    main()
