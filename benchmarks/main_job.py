"""The main job beside an earlier commit: `slmpack package` of the default model, then what a person waits for.

    .venv/bin/python benchmarks/main_job.py [--against 0828e67] [--times 3]

Both trees are run by this interpreter, in turn. Each run has a workspace, an MLflow store and a Prefect home of its
own, all empty; downloads of pip and uv are in their caches, which a first run that is not counted fills. For each
stage: wall seconds as the command says them, CPU seconds of all processes meanwhile, and seconds in which one of them
imported modules.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

BOTH = 2
QUESTION = "What is the capital of France?"
MODEL = "models:/smollm2-135m-instruct@cpu-int4"
ENDED = re.compile(r"^(?!that )(\w+) took ([\d.]+) s")  # "that took" is a step of a stage
WAITS = {
    "slmpack --help": ["--help"],
    "slmpack targets": ["targets"],
    "slmpack chat, first character": ["chat", MODEL, QUESTION],
}
# Each process notes when its outermost imports began and ended; Python runs this file before anything else.
SITECUSTOMIZE = """
import _frozen_importlib, os, time
_depth, _find, _notes = [0], _frozen_importlib._find_and_load, os.environ["IMPORT_NOTES"]
def _find_and_load(name, import_):
    _depth[0] += 1
    begun = time.time()
    try:
        return _find(name, import_)
    finally:
        _depth[0] -= 1
        if not _depth[0] and time.time() - begun > 0.01:
            with open(_notes, "a") as notes:
                notes.write(f"{begun} {time.time()}\\n")
_frozen_importlib._find_and_load = _find_and_load
"""


@dataclass
class Tree:
    """A working tree of slmpack and what was measured of it: seconds, each a list with an entry a run."""

    name: str
    folder: Path
    walls: list[float] = field(default_factory=list)
    stages: dict[str, list[tuple[float, float, float]]] = field(default_factory=lambda: defaultdict(list))
    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", "from flows.cli import main; raise SystemExit(main())", *arguments]


class CpuWatch(threading.Thread):
    """CPU seconds of a process and all that it started, ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.by_process = psutil.Process(pid), dict[int, float]()
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        while self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE:
            for process in _with_children(self.root):
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                self.by_process[process.pid] = times.user + times.system
            self.samples.append((time.time(), sum(self.by_process.values())))
            time.sleep(0.1)

    def until(self, moment: float) -> float:
        """Return the CPU seconds up to a moment."""
        return max((used for at, used in self.samples if at <= moment), default=0.0)


def _with_children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def run_main_job(tree: Tree, folder: Path) -> None:
    """Package the default model in an empty folder and add the figures to the tree's."""
    notes, site = folder / "imports", folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    environment = environment_of(tree, folder) | {"IMPORT_NOTES": str(notes)}
    environment["PYTHONPATH"] = os.pathsep.join((str(site), environment["PYTHONPATH"]))
    command = tree.command("package", "--workspace", str(folder / "workspace"), "--json")
    begun, ends = time.time(), list[tuple[str, float, float]]()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        watch = CpuWatch(done.pid)
        watch.start()
        assert done.stderr is not None
        assert done.stdout is not None
        for line in done.stderr:
            if found := ENDED.search(line.decode(errors="replace")):
                ends.append((found[1], time.time(), float(found[2])))
        outcome = json.loads(done.stdout.read() or b"null")
    ended = time.time()
    watch.join()
    if done.returncode or outcome["status"] != "published":
        raise SystemExit(f"{tree.name} ended with {done.returncode}: {outcome}")
    tree.walls.append(ended - begun)
    imports = list(_imports(notes))
    windows = [(name, end - seconds, end) for name, end, seconds in ends]
    windows += [("before the first stage", begun, windows[0][1]), ("after the last stage", windows[-1][2], ended)]
    for name, start, end in windows:
        cpu = watch.until(end) - watch.until(start)
        tree.stages[name].append((end - start, cpu, _covered(imports, start, end)))
    tree.stages["all"].append((ended - begun, watch.until(ended), _covered(imports, begun, ended)))


def environment_of(tree: Tree, folder: Path) -> dict[str, str]:
    """Return the environment of a command of the tree, which keeps all that it leaves in the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
    return kept | {"PYTHONPATH": str(tree.folder), "PREFECT_HOME": str(folder / "prefect")}


def _imports(notes: Path) -> Iterator[tuple[float, float]]:
    for line in notes.read_text().splitlines():
        begun, ended = line.split()
        yield float(begun), float(ended)


def _covered(spans: list[tuple[float, float]], start: float, end: float) -> float:
    """Return how many seconds of a window at least one of the spans covers."""
    covered, reached = 0.0, start
    for begun, ended in sorted(spans):
        first, last = max(begun, reached), min(ended, end)
        if last > first:
            covered, reached = covered + last - first, last
    return covered


def measure_waits(tree: Tree, folder: Path) -> None:
    """Measure the seconds up to the first character of each of WAITS, or to its end where it ends sooner."""
    for name, arguments in WAITS.items():
        begun = time.monotonic()
        with subprocess.Popen(
            tree.command(*arguments), cwd=folder, env=environment_of(tree, folder), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as done:  # fmt: skip
            assert done.stdout is not None
            done.stdout.read(1)
            tree.waits[name].append(time.monotonic() - begun)
            done.stdout.read()


def measure(tree: Tree, folder: Path) -> None:
    """Do all of it once, in a folder that is gone afterwards."""
    folder.mkdir()
    run_main_job(tree, folder)
    measure_waits(tree, folder)
    shutil.rmtree(folder)


def show(trees: list[Tree]) -> None:
    """Write the tables, in Markdown: medians of all runs."""
    for tree in trees:
        _write(f"\n{tree.name}: `slmpack package`, {len(tree.walls)} runs; seconds, medians\n")
        _write("| stage | seconds | CPU seconds | importing |\n|---|---:|---:|---:|")
        for name, rows in tree.stages.items():
            _write(
                f"| {name} | {' | '.join(f'{statistics.median(column):.1f}' for column in zip(*rows, strict=True))} |"
            )
    _write(f"\n| | {' | '.join(tree.name for tree in trees)} |\n|---|{'---:|' * len(trees)}")
    _write(_row("slmpack package", [tree.walls for tree in trees]))
    for name in WAITS:
        _write(_row(name, [tree.waits[name] for tree in trees]))
    if len(trees) == BOTH:
        pairs = ", ".join(f"{mine / other:.2f}" for other, mine in zip(trees[0].walls, trees[1].walls, strict=True))
        _write(f"\nWall time of `slmpack package`, pair by pair: {pairs} of {trees[0].name}'s.")


def _row(name: str, columns: list[list[float]]) -> str:
    cells = (f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in columns)
    return f"| {name} | {' | '.join(cells)} |"


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", help="a commit to run beside this tree")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    project = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as place:
        trees = [Tree("this tree", project)]
        if options.against:
            other = Path(place) / "other"
            subprocess.run(["git", "clone", "-q", "--no-checkout", project, other], check=True)
            subprocess.run(["git", "-C", other, "checkout", "-q", options.against], check=True)
            trees.insert(0, Tree(options.against, other))
        for count in range(options.times + 1):
            for tree in trees:
                measure(tree, Path(place) / "run")
                _write(f"{tree.name}: {tree.walls[-1]:.1f} s{'' if count else ', not counted'}")
            if not count:
                trees = [Tree(tree.name, tree.folder) for tree in trees]
        show(trees)


if __name__ == "__main__":
    main()
