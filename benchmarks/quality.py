"""What each recipe of cpu-int4 keeps of SmolLM2-135M-Instruct, what it costs to make, and how fast it answers.

    python benchmarks/quality.py                 the tables and frontier.svg: about half an hour, 3 GB of disk
    python benchmarks/quality.py --recipes small,balanced

Two texts of different kinds, neither of them used for calibration: the built-in one (prose, dialogue, data), and Python
code (the standard library's argparse, so it changes with Python). Differences of KL below 0.01 are noise: so much
lies between calibrations that are equally good.

Times are of a machine with other things to do. Decode speed is the median of answers that are given in turn with
stock-small's, as a ratio of it. Time and memory are of everything between the source's snapshot and the package:
calibration, fold, sensitivity, GPTQ, build; memory is anonymous memory, children included.
"""

import argparse
import inspect
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime_genai as og
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
FIRST = "built-in text"
DECODED_TOKENS = 64
TURNS = 7
STOCK = (Recipe.STOCK_SMALL, Recipe.STOCK_MIXED)
NOISE = "Differences of KL below 0.01 are noise."


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


def decode_seconds(model: Any) -> float:
    """Return the time that tokens after the first take, seconds each."""
    ids = og.Tokenizer(model).encode("Once upon a time there was a machine that")
    parameters = og.GeneratorParams(model)
    length = len(ids) + 1 + DECODED_TOKENS
    parameters.set_search_options(max_length=length, min_length=length)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    generator.generate_next_token()
    started = time.perf_counter()
    for _ in range(DECODED_TOKENS):
        generator.generate_next_token()
    return (time.perf_counter() - started) / DECODED_TOKENS


def relative_speed(package: Path, baseline: Path) -> float:
    """Return how many tokens one gives while the other gives one; in turn, and their medians."""
    one, other = og.Model(str(package)), og.Model(str(baseline))
    for model in (one, other):
        decode_seconds(model)  # the first is slower
    ours, theirs = [], []
    for _ in range(TURNS):  # who comes second pays for the other's threads, which still look for work
        ours.append(decode_seconds(one))
        theirs += [decode_seconds(other), decode_seconds(other)]
        ours.append(decode_seconds(one))
    return statistics.median(theirs) / statistics.median(ours)


def weights_of(package: Package) -> int:
    return sum(file.size_bytes for file in package.files if file.name.startswith("model.onnx"))


class Point(NamedTuple):
    """A package in the plot."""

    recipe: Recipe
    megabytes: float
    ratio: float


def draw(points: list[Point], path: Path) -> None:
    """Draw size against perplexity ratio, the stock builder's recipes apart from ours."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="weights, MB", ylabel="perplexity over the source's")
    for label, color, marker, stock in (("slmpack", "#14713b", "o", False), ("stock builder", "#a33", "s", True)):
        own = sorted(point for point in points if (point.recipe in STOCK) is stock)
        line = sorted((point.megabytes, point.ratio) for point in own if point.recipe is not Recipe.BEST)
        axes.plot(*zip(*line, strict=True), color=color, linewidth=1, linestyle=":")
        axes.scatter(
            [each.megabytes for each in own], [each.ratio for each in own], c=color, marker=marker, label=label
        )
        for each in own:
            axes.annotate(each.recipe, (each.megabytes, each.ratio), xytext=(6, 4), textcoords="offset points")
    axes.margins(x=0.25, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "quality"}):
        figure.savefig(path, metadata={"Date": None})


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell_cost(recipe: Recipe, made: Made, baseline: Made) -> None:
    size = weights_of(made.package)
    ratio, speed = size / weights_of(baseline.package), relative_speed(made.package.path, baseline.package.path)
    cost = f"{made.seconds:.0f} | {made.private_bytes / 1e9:.2f}"
    tell(f"| {recipe} | {size / 1e6:.1f} | {ratio:.3f} | {speed:.2f} | {cost} |")


def tell_quality(recipe: Recipe, found: dict[str, Measured]) -> None:
    cells = [f"{each.mean_kl:.3f} | {each.perplexity / each.source_perplexity:.3f} | {each.top1_agreement:.1%}"
             for each in found.values()]  # fmt: skip
    tell(f"| {recipe} | {' | '.join(cells)} |")


def main() -> None:
    offered = [recipe.value for recipe in RECIPES[Target.CPU_INT4]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-files"), help="for packages and the plot")
    parser.add_argument("--recipes", default=",".join(offered), help="separated by commas; stock-small is always made")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve() / "quality"
    recipes = [Recipe(name) for name in arguments.recipes.split(",")]
    snapshot = fetch_snapshot(resolve_source(DEFAULT_SOURCE), folder / "source")
    baseline = make(snapshot, Recipe.STOCK_SMALL, folder / Recipe.STOCK_SMALL)
    made: dict[Recipe, Made] = {Recipe.STOCK_SMALL: baseline}
    made |= {recipe: make(snapshot, recipe, folder / recipe) for recipe in recipes if recipe is not Recipe.STOCK_SMALL}
    tell("\n| recipe | MB | of stock-small | decode speed of stock-small's | made in s | private GB |")
    tell("|---|---|---|---|---|---|")
    for recipe, each in made.items():
        tell_cost(recipe, each, baseline)
    references = {name: source_reference(snapshot, text, folder / "source") for name, text in TEXTS.items()}
    tell(f"\n| recipe | {' | '.join(f'{name}: KL | ratio | top-1' for name in TEXTS)} |")
    tell(f"|---{'|---' * 3 * len(TEXTS)}|")
    points = []
    for recipe, each in made.items():
        found = {name: measure(each.package, place, folder / f"{recipe}.log") for name, place in references.items()}
        tell_quality(recipe, found)
        first = found[FIRST]
        points.append(Point(recipe, weights_of(each.package) / 1e6, first.perplexity / first.source_perplexity))
    draw(points, folder / "frontier.svg")
    tell(f"\n{NOISE} The plot is {folder / 'frontier.svg'}.")


if __name__ == "__main__":
    main()
