"""Damaged files of every kind that strangers write, the same ones every time: each is refused in a line, or used."""

import os
import subprocess
import sys

import pytest
from fuzzed_parsers import PARSERS
from places import PROJECT

pytestmark = pytest.mark.slow
CASES = 40  # of each parser: the same ones on every machine


@pytest.mark.parametrize("parser", PARSERS)
def test_no_damaged_file_crashes_hangs_or_fills_the_memory(parser: str) -> None:
    command = [sys.executable, "benchmarks/fuzz_parsers.py", "--only", parser, "--cases", str(CASES)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    name, cases, refused, *_ = run.stdout.splitlines()[1].split()
    assert name == parser
    assert int(cases) == CASES
    assert int(refused) > 0
