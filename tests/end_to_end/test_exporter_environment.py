"""The exporter's environment: made once a workspace, whoever is killed meanwhile, and what is told where it cannot be.

The packages are tiny wheels in a folder, so that nothing but uv itself is asked.
"""

import logging
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from live_folder import seen

from slmpack import progress
from slmpack.build.optimum.environment import exporter_python
from slmpack.errors import BuildError

pytestmark = pytest.mark.slow

REQUIREMENTS = "# tiny\nslmpack-tiny==1.0\n"
MAKE = """
import sys
from pathlib import Path
from slmpack.build.optimum.environment import exporter_python
exporter_python(Path(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with one wheel, of one module."""
    folder, facts = tmp_path / "wheels", "slmpack_tiny-1.0.dist-info"
    folder.mkdir()
    with zipfile.ZipFile(folder / "slmpack_tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("slmpack_tiny.py", "NAME = 'tiny'\n")
        wheel.writestr(f"{facts}/METADATA", "Metadata-Version: 2.1\nName: slmpack-tiny\nVersion: 1.0\n")
        wheel.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{facts}/RECORD", f"slmpack_tiny.py,,\n{facts}/METADATA,,\n{facts}/WHEEL,,\n{facts}/RECORD,,\n")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def only_wheels(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))


def left_behind(workspace: Path) -> list[Path]:
    return list((workspace / "scratch").iterdir())


@pytest.mark.usefixtures("only_wheels")
def test_it_is_made_once_and_has_what_it_should_and_no_more(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, int | None]] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.progress.done, record.progress.total))  # type: ignore[attr-defined]

    listener = Listen()
    progress.logger.addHandler(listener)
    try:
        with caplog.at_level(logging.INFO, logger="slmpack"), ThreadPoolExecutor(3) as pool:
            pythons = set(pool.map(lambda _: exporter_python(workspace, REQUIREMENTS), range(3)))
    finally:
        progress.logger.removeHandler(listener)
    (python,) = pythons
    assert caplog.text.count("making the exporter's environment, once for this workspace: slmpack-tiny 1.0") == 1
    assert seen == [(0, 2), (1, 2), (2, 2)]
    code = "import slmpack_tiny, importlib.util as u; print(slmpack_tiny.NAME, u.find_spec('slmpack'))"
    said = subprocess.run([str(python), "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "tiny None\n"
    assert not left_behind(workspace)


@pytest.mark.usefixtures("only_wheels")
def test_other_requirements_make_another_one(workspace: Path) -> None:
    first = exporter_python(workspace, REQUIREMENTS)
    assert exporter_python(workspace, REQUIREMENTS + "# another\n") != first


@pytest.mark.usefixtures("only_wheels")
def test_one_whose_python_is_gone_is_made_again(workspace: Path) -> None:
    python = exporter_python(workspace, REQUIREMENTS)
    python.unlink()
    python.symlink_to(workspace / "gone")
    assert exporter_python(workspace, REQUIREMENTS).exists()


@pytest.mark.usefixtures("only_wheels")
def test_without_an_index_it_is_told_what_is_missing(workspace: Path) -> None:
    told = (
        r"^the exporter's environment cannot be made: .*slmpack-absent.*; a package index, as pip is set up with, that "
        r"has slmpack-absent 1\.0 and what it needs; set one up, or use --target transformers; the log is .*exporter-"
    )
    with pytest.raises(BuildError, match=told) as caught:
        exporter_python(workspace, "slmpack-absent==1.0\n")
    assert "\n" not in str(caught.value)
    assert not (workspace / "environments").exists()
    assert not left_behind(workspace)


def test_an_index_that_cannot_be_reached_is_told_too(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(BuildError, match=r"cannot be made: .*127\.0\.0\.1:9.*; a package index, as pip"):
        exporter_python(workspace, REQUIREMENTS)


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The address of an index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def test_a_maker_that_is_killed_blocks_nobody(
    workspace: Path, wheels: Path, silent_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = os.environ | {"PIP_INDEX_URL": silent_index, "PIP_RETRIES": "0"}
    maker = subprocess.Popen([sys.executable, "-c", MAKE, str(workspace), REQUIREMENTS], env=environment)
    deadline = time.monotonic() + 600
    while not seen(workspace, "scratch/environments-*/environment/bin/python"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = psutil.Process(maker.pid).children(recursive=True)
    maker.kill()
    maker.wait()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    try:
        assert exporter_python(workspace, REQUIREMENTS).exists()
        assert not left_behind(workspace)
    finally:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
