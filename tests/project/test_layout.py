"""The layout: tests lie where the library's chapters do, all are found, and none takes its parts from another."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from places import PROJECT

TESTS = PROJECT / "tests"
FILES = sorted(TESTS.rglob("test_*.py"))
BESIDE_THE_CHAPTERS = {"end_to_end", "ground", "project", "runs"}


def chapters() -> set[str]:
    return {path.parent.name for path in (PROJECT / "slmpack").glob("*/__init__.py")}


def test_every_folder_of_tests_is_a_chapter_of_the_library_or_one_of_four() -> None:
    assert {path.parent.relative_to(TESTS).as_posix() for path in FILES} == chapters() | BESIDE_THE_CHAPTERS


def test_pytest_looks_into_every_folder_of_tests(pytestconfig: pytest.Config) -> None:
    patterns = pytestconfig.getini("norecursedirs")
    assert not [path for path in FILES for pattern in patterns if fnmatch(path.parent.name, pattern)]


def test_two_files_of_tests_have_two_names() -> None:
    assert len({path.name for path in FILES}) == len(FILES)


def test_no_file_takes_its_parts_from_a_file_of_tests() -> None:
    files = [path for folder in ("tests", "benchmarks") for path in (PROJECT / folder).rglob("*.py")]
    takes = re.compile(r"^\s*(from|import) test_", re.MULTILINE)
    assert not [path for path in files if takes.search(Path(path).read_text(encoding="utf-8"))]
