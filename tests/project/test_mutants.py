"""Mutants: every defect that is written down still applies, and one that does not says so."""

import subprocess
import sys
from pathlib import Path

from places import PROJECT

PROGRAM = PROJECT / "benchmarks" / "mutants.py"
GONE = """
[[mutant]]
stage = "store"
defect = "a text that no function has"
within = "damage"
find = "if there_is_no_such_text:"
put = "if True:"
tests = ["test_store.py::test_stored_files_are_read_only"]

[[mutant]]
stage = "store"
defect = "a test that nobody wrote"
within = "damage"
find = "if name not in found:"
put = "if False:"
tests = ["test_store.py::test_that_nobody_wrote"]
"""


def listed(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(PROGRAM), "--list", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_defect_applies_once_and_its_tests_are_there() -> None:
    done = listed()
    assert done.returncode == 0, [line for line in done.stdout.splitlines() if "DOES NOT APPLY" in line]
    assert len(done.stdout.splitlines()) >= 40


def test_a_defect_that_applies_no_longer_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.toml").write_text(GONE)
    done = listed("--mutants", str(tmp_path / "gone.toml"))
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert "DOES NOT APPLY: damage has the text 0 times" in first
    assert "DOES NOT APPLY: test_store.py has no test_that_nobody_wrote" in second
