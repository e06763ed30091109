"""`slmpack --version`: what a report of a defect begins with, without what takes seconds to import."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import slmpack

from flows.cli import run

HEAVY = ("mlflow", "numpy", "prefect", "pydantic", "torch", "transformers")
PROGRAM = f"""
import sys
from flows.cli import main
try:
    main(["--version"])
finally:
    sys.stderr.write(repr([name for name in {HEAVY!r} if name in sys.modules]))
"""


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_release_is_alone_on_the_first_line(option: str, tmp_path: Path) -> None:
    done = slmpack(option, cwd=tmp_path)
    first, interpreter, packages = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert first == f"slmpack {version('slmpack')}"
    assert interpreter.startswith(f"Python {sys.version.split()[0]}, ")
    assert {f"mlflow {version('mlflow')}", f"prefect {version('prefect')}"} <= set(packages.split(", "))


def test_the_versions_are_told_without_importing_what_they_are_of(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]")
    assert re.match(r"slmpack \d", done.stdout)


def test_the_version_comes_before_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--version", "targets"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("slmpack ")
