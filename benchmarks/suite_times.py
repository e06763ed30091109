"""Say where the time of the test suite goes, by file: a plugin of pytest.

    PYTHONPATH=benchmarks .venv/bin/pytest -p suite_times -n 2 --dist loadfile [--suite-times FILE]

A row a file: its tests, its seconds, the CPU seconds of the tests' process and of the children that it waited for, and
what the seconds were spent on: importing modules, starting servers, sleeping, work in children
(`slmpack.machine.child`), commands (`subprocess.run`), and the rest, which is arithmetic and files in the tests' own
process. An activity that happens within another counts as the outer one. What children import counts as their work.
"""

import builtins
import functools
import importlib
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

ACTIVITIES = ("importing", "servers", "sleeping", "children", "commands")
# Where an activity begins: module, function, activity. Functions are replaced wherever they were imported by name.
FUNCTIONS = (
    ("time", "sleep", "sleeping"),
    ("subprocess", "run", "commands"),
    ("slmpack.machine.child", "run_in_child", "children"),
    ("server_health", "wait_until_healthy", "servers"),
    ("postgres", "_initialise", "servers"),
    ("postgres", "_wait_until_it_answers", "servers"),
)

spent: defaultdict[str, float] = defaultdict(float)
_current: list[str] = []


def timed(activity: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, whose seconds count as that activity where it is the outermost one."""

    @functools.wraps(function)
    def measured(*args: Any, **options: Any) -> Any:
        if _current:
            return function(*args, **options)
        _current.append(activity)
        begun = time.monotonic()
        try:
            return function(*args, **options)
        finally:
            spent[activity] += time.monotonic() - begun
            _current.pop()

    return measured


def measure_functions() -> None:
    """Replace each of FUNCTIONS in every module that has it."""
    for module_name, name, activity in FUNCTIONS:
        try:
            function = getattr(importlib.import_module(module_name), name)
        except ImportError:
            continue
        measured = timed(activity, function)
        for module in list(sys.modules.values()):
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if value is function and module is not sys.modules[__name__]:
                    setattr(module, attribute, measured)
    builtins.__import__ = timed("importing", builtins.__import__)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite-times", default="suite-times.md", help="the file that the table is written to")


def pytest_collection_finish() -> None:
    measure_functions()


def cpu_seconds() -> float:
    """Return what this process and the children that it waited for have used."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    spent.clear()
    item.stash[_BEGUN] = cpu_seconds()
    return (yield)


_BEGUN = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Generator[None, Any, Any]:
    report = yield
    if call.when == "teardown":
        report.user_properties.append(("spent", dict(spent) | {"cpu": cpu_seconds() - item.stash[_BEGUN]}))
    return report


Row = defaultdict[str, float]


def new_row() -> Row:
    return defaultdict(float)


def add(row: Row, more: Row) -> None:
    for name, value in more.items():
        row[name] += value


class Table:
    """What the reports of all processes say, by file."""

    def __init__(self) -> None:
        self.files: defaultdict[str, Row] = defaultdict(new_row)

    def add(self, report: pytest.TestReport) -> None:
        row = self.files[report.nodeid.partition("::")[0]]
        row["seconds"] += report.duration
        if report.when == "teardown":
            row["tests"] += 1
            for name, value in report.user_properties:
                if name == "spent":
                    add(row, cast(Row, value))

    def lines(self) -> Iterator[str]:
        heads = ("file", "tests", "seconds", "CPU", *ACTIVITIES, "rest")
        yield f"| {' | '.join(heads)} |"
        yield "|---|" + "---:|" * (len(heads) - 1)
        whole = new_row()
        for name, row in sorted(self.files.items(), key=lambda each: -each[1]["seconds"]):
            add(whole, row)
            yield _line(Path(name).stem, row)
        yield _line("all", whole)


def _line(name: str, row: Row) -> str:
    rest = row["seconds"] - sum(row[each] for each in ACTIVITIES)
    seconds = (row["seconds"], row["cpu"], *(row[each] for each in ACTIVITIES), rest)
    return f"| {name} | {row['tests']:.0f} | {' | '.join(f'{each:.1f}' for each in seconds)} |"


_table = Table()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _table.add(report)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    Path(config.getoption("--suite-times")).write_text("\n".join(_table.lines()) + "\n")
    terminalreporter.write_line(f"the table of times is in {config.getoption('--suite-times')}")


if __name__ == "__main__":
    raise SystemExit(subprocess.call([sys.executable, "-m", "pytest", "-p", "suite_times", *sys.argv[1:]]))
