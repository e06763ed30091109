"""`make setup`: quiet, and where pip fails, a few lines that name its log."""

import os
import shutil
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from places import PROJECT

pytestmark = pytest.mark.slow


def test_a_pip_that_fails_is_told_in_a_few_lines_with_the_place_of_its_log(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(PROJECT / name, tmp_path)
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    cleared = {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "MAKEFLAGS": "", "MAKELEVEL": "0"}
    done = subprocess.run(
        ["make", "setup", f"PYTHON={sys.executable}"], cwd=tmp_path, env=os.environ | unreachable | cleared,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    log = tmp_path / ".venv" / "setup.log"
    assert done.returncode != 0
    assert not (tmp_path / ".venv" / "ready").exists()
    assert len((done.stdout + done.stderr).splitlines()) < 8, done.stdout + done.stderr
    assert f"all that pip said is in {log}" in done.stderr
    assert "ERROR: " in done.stderr
    assert "127.0.0.1" in log.read_text()


def test_uv_is_told_where_pip_looks(tmp_path: Path) -> None:
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "slmpack.machine.uv_install", "--dry-run", "--no-cache", "no-such-package"],
        env=os.environ | unreachable | {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "UV_HTTP_RETRIES": "0"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "127.0.0.1:9" in done.stderr


def test_what_was_set_up_is_compiled_once_and_not_by_every_process() -> None:
    """Also a module that nobody imports, which only an installer can have compiled."""
    import transformers

    module = Path(transformers.__file__).parent / "models" / "zamba2" / "modeling_zamba2.py"
    assert module.exists()
    assert Path(cache_from_source(str(module))).exists()
