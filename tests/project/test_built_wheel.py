"""The wheel: built without a network and installed alone, it has every file of the library and runs.

An editable install takes modules and data from the source tree, so that what the wheel lacks goes unnoticed with it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from places import PROJECT

pytestmark = pytest.mark.slow

PACKAGES = ("flows", "slmpack", "tasks")
OTHER_FILES = ("LICENSE", "README.md", "pyproject.toml")


def run(command: Iterable[str | Path], cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def files_in(folder: Path) -> set[str]:
    """Return the files of the three packages below a folder, as Git would see them."""
    found = (path for name in PACKAGES for path in (folder / name).rglob("*"))
    return {str(path.relative_to(folder)) for path in found if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel in it, built from a copy, since building leaves files beside the source."""
    tree, wheels, folder = (tmp_path_factory.mktemp(name) for name in ("tree", "wheels", "installed"))
    for name in PACKAGES:
        shutil.copytree(PROJECT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in OTHER_FILES:
        shutil.copy(PROJECT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", wheels, tree], tree)
    (wheel,) = wheels.glob("slmpack-*.whl")
    run([*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel], tree)
    return folder


@pytest.fixture(scope="module")
def metadata(installed: Path) -> Message:
    (file,) = installed.glob("slmpack-*.dist-info/METADATA")
    return Parser().parsestr(file.read_text(encoding="utf-8"))


def test_has_every_module_and_data_file_of_the_source_tree(installed: Path) -> None:
    expected = files_in(PROJECT)
    assert {"slmpack/py.typed", "slmpack/log/wrappers.txt", "slmpack/build/optimum/requirements.txt"} <= expected
    assert files_in(installed) == expected


def test_says_its_licence_and_carries_it(installed: Path, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    (licence,) = installed.glob("slmpack-*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (PROJECT / "LICENSE").read_bytes()


def test_the_command_of_the_wheel_runs_from_it(installed: Path, tmp_path: Path) -> None:
    """With the environment's other packages, and with none of the source tree."""
    alone = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    program = "import flows, slmpack, tasks; print(flows.__file__, slmpack.__file__, tasks.__file__)"
    places = run([sys.executable, "-c", program], tmp_path, **alone).stdout.split()
    assert {Path(place).parents[1] for place in places} == {installed}
    command = installed / "bin" / "slmpack"
    assert "package" in run([command, "--help"], tmp_path, **alone).stdout
    targets = run([command, "targets"], tmp_path, **alone).stdout
    assert "cpu-int4" in targets


def test_every_public_name_is_there_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    alone = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    program = (
        "import slmpack; print({getattr(slmpack, name).__name__ for name in slmpack.__all__} == {*slmpack.__all__})"
    )
    assert run([sys.executable, "-c", program], tmp_path, **alone).stdout.strip() == "True"
