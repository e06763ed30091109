"""Mutants: which test notices each of the defects in `mutants.toml`, put into a copy of the tree one at a time.

    .venv/bin/python benchmarks/mutants.py               every defect; a table in Markdown at the end
    .venv/bin/python benchmarks/mutants.py --only 3,17   some of them
    .venv/bin/python benchmarks/mutants.py --list        what there is; runs no test

A defect is a text that is replaced in a function, which is known by its name: it is found wherever its module is moved
to. One that is not found any more, or that names a test which is not there, is an error. The named tests have to pass
on the unchanged tree first.

    tree --git ls-files--> copy --one defect--> pytest, with a home folder of its own --> caught by / NOT CAUGHT

What is built by a broken quantiser has the key of what a sound one builds. So tests have their workspace not in the
user's cache, but in ~/.cache/slmpack-mutants, of which each defect gets links of its own.
"""

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
MUTANTS = Path(__file__).with_suffix(".toml")
PACKAGES = ("slmpack", "tasks", "flows")
LIMIT_SECONDS = 900.0  # for one defect
SOUND_LIMIT_SECONDS = 3600.0  # for all tests of all defects
NAMES = re.compile(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py::\w+)", re.MULTILINE)


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class GoneError(Exception):
    """A defect no longer applies: its text is in no function of that name, in several, or its test is not there."""


@dataclass(frozen=True)
class Mutant:
    """One defect.

    Attributes:
        within: the qualified name of the function or class that it is in; "" for a whole module.
        find: the text that is replaced by `put`.
        tests: `test_file.py::test_name`, with or without parameters.
        missed: no test was known to catch it when it was written down first.
    """

    number: int
    stage: str
    defect: str
    within: str
    find: str
    put: str
    tests: list[str]
    missed: bool = False


def read_mutants(path: Path) -> list[Mutant]:
    """Read the defects, numbered from 1 in their order."""
    with path.open("rb") as file:
        tables: list[dict[str, Any]] = tomllib.load(file)["mutant"]
    plain: list[dict[str, Any]] = [
        {key: each.strip("\n") if isinstance(each, str) else each for key, each in one.items()} for one in tables
    ]
    return [Mutant(number=number, **one) for number, one in enumerate(plain, start=1)]


def apply(mutant: Mutant, root: Path) -> tuple[Path, str]:
    """Return the file that the defect is in and the file's text with it; nothing is written.

    Raises:
        GoneError: the text is not there once, or what comes of it is no Python.
    """
    places = [
        (path, start + found.start())
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        if mutant.find in (text := path.read_text(encoding="utf-8"))
        for start, part in _parts(text, mutant.within)
        for found in re.finditer(re.escape(mutant.find), part)
    ]
    if len(places) != 1:
        raise GoneError(f"{mutant.within or 'a module'} has the text {len(places)} times: {mutant.find.strip()[:80]!r}")
    ((path, at),) = places
    text = path.read_text(encoding="utf-8")
    changed = text[:at] + mutant.put + text[at + len(mutant.find) :]
    try:
        if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text)):
            raise GoneError("it changes nothing")
    except SyntaxError as error:
        raise GoneError(f"it is no Python any more: {error}") from error
    return path, changed


def _parts(text: str, within: str) -> Iterator[tuple[int, str]]:
    """Yield where each function or class of that name begins in the text, in characters, and its own text."""
    if not within:
        yield 0, text
        return
    lines = text.splitlines(keepends=True)
    for name, node in _named(ast.parse(text), ""):
        if name == within:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
            yield sum(map(len, lines[:first])), "".join(lines[first : node.end_lineno])


def _named(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield prefix + child.name, child
            yield from _named(child, f"{prefix}{child.name}.")
        else:
            yield from _named(child, prefix)


def nodes_of(mutant: Mutant, root: Path) -> list[str]:
    """Return the tests as pytest takes them, found by their files' names.

    Raises:
        GoneError: a file or a test is not there.
    """
    return [_node(test, root) for test in mutant.tests]


def _node(test: str, root: Path) -> str:
    file, _, name = test.partition("::")
    found = list((root / "tests").rglob(file))
    if len(found) != 1:
        raise GoneError(f"{len(found)} files of tests are called {file}")
    if f"def {name.partition('[')[0]}(" not in found[0].read_text(encoding="utf-8"):
        raise GoneError(f"{file} has no {name.partition('[')[0]}")
    return f"{found[0].relative_to(root).as_posix()}::{name}"


def gone(mutant: Mutant, root: Path) -> str | None:
    """Return why the defect does not apply; None: it does."""
    try:
        apply(mutant, root)
        nodes_of(mutant, root)
    except GoneError as error:
        return str(error)
    return None


# ---------------------------------------------------------------------------------------------- running


def copy_tree(root: Path, into: Path) -> None:
    """Copy what git knows or would add, with what was changed and not committed."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (root / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, into / name)


def make_home(home: Path) -> Path:
    """Fill a home folder with links to the user's own; return the place of the tests' workspace in it."""
    for real, lent in ((Path.home(), home), (Path.home() / ".cache", home / ".cache")):
        lent.mkdir(parents=True, exist_ok=True)
        for path in real.iterdir() if real.is_dir() else ():
            if path.name not in {".cache", "slmpack-tests", "slmpack-mutants"} and not (lent / path.name).is_symlink():
                (lent / path.name).symlink_to(path)
    return home / ".cache" / "slmpack-tests"


def run_tests(
    copy: Path, nodes: list[str], home: Path, option: str, limit_seconds: float = LIMIT_SECONDS
) -> tuple[int | None, str, float]:
    """Run the tests on the copy; return pytest's exit code, None where it came to no end, what it said, and seconds."""
    path = os.pathsep.join([str(copy), str(copy / "tests" / "harness")])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", option, *nodes]
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": path}
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=limit_seconds
        )
    except subprocess.TimeoutExpired:
        return None, "", time.monotonic() - started
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


@dataclass(frozen=True)
class Result:
    """What became of one defect; `caught_by` is the test that failed, None where none did."""

    mutant: Mutant
    caught_by: str | None
    trouble: str | None
    seconds: float

    @property
    def verdict(self) -> str:
        return self.trouble or self.caught_by or "NOT CAUGHT"


def try_mutant(mutant: Mutant, copy: Path, kept: Path, scratch: Path) -> Result:
    """Put the defect into the copy, run its tests, and take it out again."""
    try:
        path, changed = apply(mutant, copy)
        nodes = nodes_of(mutant, copy)
    except GoneError as error:
        return Result(mutant, None, f"DOES NOT APPLY: {error}", 0.0)
    sound = path.read_text(encoding="utf-8")
    with TemporaryDirectory(dir=scratch) as home:
        shutil.copytree(kept, make_home(Path(home)), symlinks=True, copy_function=os.link)
        try:
            _write(path, changed)
            code, said, seconds = run_tests(copy, nodes, Path(home), "-x")
        finally:
            _write(path, sound)
    if code == 1:
        found = NAMES.search(said)
        return Result(mutant, found[1] if found else "a test", None, seconds)
    trouble = None if code == 0 else "HUNG" if code is None else f"pytest ended with {code}: {said[-300:]}"
    return Result(mutant, None, trouble, seconds)


def command_of(test: str, root: Path) -> str:
    """Return the command that runs a test, which is known by its file's name."""
    file = test.partition("::")[0]
    return "acceptance" if (root / "tests" / "end_to_end" / file).exists() else "test"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):  # known by time and size, which may be the same
        compiled.unlink()


def table(results: list[Result]) -> str:
    """Return the results in Markdown."""
    rows = [
        f"| {each.mutant.number} | {each.mutant.stage} | {each.mutant.defect} | {' '.join(each.verdict.split())} "
        f"| {command_of(each.caught_by, ROOT) if each.caught_by else ''} "
        f"| {'no' if each.mutant.missed else 'yes'} | {each.seconds:.0f} |"
        for each in results
    ]
    head = "| | stage | defect | caught by | make | noticed before | s |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *rows])


def run(mutants: list[Mutant]) -> int:
    """Run the tests of all these defects on the sound tree, then on each broken one; print the table."""
    scratch = Path.home() / ".cache" / "slmpack-mutants"
    scratch.mkdir(parents=True, exist_ok=True)
    kept = make_home(scratch / "home")
    kept.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="slmpack-mutants-") as folder:
        copy = Path(folder) / "tree"
        copy_tree(ROOT, copy)
        nodes = sorted({node for each in mutants if gone(each, copy) is None for node in nodes_of(each, copy)})
        code, said, seconds = run_tests(copy, nodes, scratch / "home", "--durations=15", SOUND_LIMIT_SECONDS)
        sys.stderr.write(f"{said[-2500:]}\n{len(nodes)} tests on the sound tree: {seconds:.0f} s\n")
        if code != 0:
            return 1
        results = []
        for mutant in mutants:
            results.append(try_mutant(mutant, copy, kept, scratch))
            sys.stderr.write(f"{mutant.number:3} {results[-1].seconds:5.0f} s  {results[-1].verdict}\n")
    caught = sum(each.caught_by is not None for each in results)
    missed = sum(each.mutant.missed for each in results)
    sys.stdout.write(
        f"{table(results)}\n\n{caught} of {len(results)} are caught, {missed} by a test that was written for it\n"
    )
    return 0 if caught == len(results) else 1


def tell(mutants: list[Mutant]) -> int:
    """Print the defects, and of each that does not apply why."""
    reasons = {each.number: gone(each, ROOT) for each in mutants}
    for each in mutants:
        reason = reasons[each.number]
        sys.stdout.write(
            f"{each.number:3} {each.stage}: {each.defect}{f'  DOES NOT APPLY: {reason}' if reason else ''}\n"
        )
    return 1 if any(reasons.values()) else 0


def main() -> int:
    """Read the command line, and run or list."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would tests
    parser = argparse.ArgumentParser(description="Which test notices each defect.")
    parser.add_argument("--only", help="their numbers, as in 3,17")
    parser.add_argument("--list", action="store_true", help="say what there is and whether it applies; run no test")
    parser.add_argument("--mutants", type=Path, default=MUTANTS, help="another file of defects")
    options = parser.parse_args()
    mutants = read_mutants(options.mutants)
    if options.only:
        numbers = {int(number) for number in options.only.split(",")}
        mutants = [each for each in mutants if each.number in numbers]
    return tell(mutants) if options.list else run(mutants)


if __name__ == "__main__":
    sys.exit(main())
