"""Requirements lock: pins and hashes of all that a model requires, and nothing else that an installer would obey."""

import logging
import os
import time
from pathlib import Path

import pytest

from slmpack.errors import CheckError
from slmpack.log.requirements import requirements_for
from slmpack.log.requirements_lock import (
    KEPT_SECONDS,
    LARGEST_LOCK,
    Locked,
    lock_of,
    lock_text,
    locked_here,
    locked_pins,
    require_locked,
    system_here,
)
from slmpack.records import Target

PINS = ("jinja2==3.1.6",)
A, B = "a" * 64, "b" * 64


@pytest.mark.slow
def test_a_lock_has_all_that_the_requirements_bring_with_hashes_and_is_made_once_a_day(tmp_path: Path) -> None:
    text = lock_of(PINS, tmp_path)
    assert text is not None
    assert text.startswith(f"{system_here()}\n")
    locked = locked_pins(text.encode())
    assert {pin.partition("==")[0] for pin in locked} == {"jinja2", "markupsafe"}
    (kept,) = (tmp_path / "requirements").iterdir()
    kept.write_text("as it was kept")
    assert lock_of(PINS, tmp_path) == "as it was kept"
    before = time.time() - KEPT_SECONDS - 1
    os.utime(kept, (before, before))
    assert lock_of(PINS, tmp_path) == text
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.slow
def test_without_an_index_there_is_no_lock_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with caplog.at_level(logging.WARNING):
        assert lock_of(("slmpack-absent==1.0",), tmp_path) is None
    assert "the requirements are not locked by hashes: " in caplog.text
    assert "slmpack-absent" in caplog.text
    assert not list((tmp_path / "scratch").iterdir())


def test_a_lock_is_read_back_as_it_is_written() -> None:
    locked = {"numpy==2.4.6": (A, B), "torch==2.13.0+cpu": (B,)}
    assert locked_pins(f"# of here\n{lock_text(locked)}".encode()) == locked
    require_locked(locked, ("numpy==2.4.6", "torch==2.13.0"))
    require_locked({"mlflow-skinny==3.17.2": (A,)}, ("MLflow_Skinny==3.17.2",))


@pytest.mark.parametrize(
    "line",
    [
        "numpy==2.4.6",
        "numpy>=2 --hash=sha256:" + A,
        "--index-url http://127.0.0.1:9/simple",
        "-r other.txt",
        f"numpy==2.4.6 --hash=md5:{A}",
        f"numpy==2.4.6 --hash=sha256:{A} --global-option=x",
        f"evil @ http://127.0.0.1:9/evil.whl --hash=sha256:{A}",
        f"numpy==2.4.6;python_version>'3' --hash=sha256:{A}",
        " --hash=sha256:" + A,
    ],
)
def test_what_is_no_pin_with_hashes_is_refused(line: str) -> None:
    with pytest.raises(CheckError, match=r"in requirements\.lock; a package, its version and hashes of its files"):
        locked_pins(f"pandas==3.1.1 --hash=sha256:{A}\n{line}\n".encode())


def test_a_lock_counts_for_the_python_and_the_system_that_it_was_made_on() -> None:
    locked: Locked = {"numpy==2.4.6": (A,)}
    assert locked_here(f"{system_here()}\n{lock_text(locked)}".encode(), ("numpy==2.4.6",)) == locked
    for other in ("# for Python 3.9 on plan9 mips\n", ""):
        assert locked_here(f"{other}{lock_text(locked)}".encode(), ("numpy==2.4.6",)) == {}


def test_a_lock_of_other_requirements_or_without_end_is_refused() -> None:
    with pytest.raises(CheckError, match=r"requirements.lock without numpy==2.4.6; all of requirements.txt"):
        require_locked({"numpy==2.4.5": (A,)}, ("numpy==2.4.6",))
    with pytest.raises(CheckError, match=r"requirements\.lock is too long"):
        locked_pins(b"#" * (LARGEST_LOCK + 1))


@pytest.mark.slow
def test_the_requirements_of_a_target_can_be_locked(workspace: Path) -> None:
    requirements = requirements_for(Target.CPU_INT4)
    text = lock_of(requirements, workspace)
    assert text is not None
    assert len(locked_pins(text.encode())) > len(requirements)
