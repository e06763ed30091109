"""An environment of a lock has nothing that the lock gives no hash of."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from slmpack.errors import CheckError
from slmpack.machine.environments import UvError, make_environment

pytestmark = pytest.mark.slow


def write_wheel(folder: Path, name: str, requires: str = "") -> str:
    """Write a wheel of version 1.0 without a module; return its sha256."""
    facts = f"slmpack_{name}-1.0.dist-info"
    more = f"Requires-Dist: slmpack-{requires}\n" if requires else ""
    path = folder / f"slmpack_{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: slmpack-{name}\nVersion: 1.0\n{more}")
        wheel.writestr(
            f"{facts}/WHEEL", "Wheel-Version: 1.0\nGenerator: here\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{facts}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_lock_does_not_name_is_not_installed_even_if_something_in_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheels := tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    outer, inner = write_wheel(wheels, "outer", requires="inner"), write_wheel(wheels, "inner")
    lock = tmp_path / "requirements.txt"
    log = tmp_path / "log"
    lock.write_text(f"slmpack-outer==1.0 --hash=sha256:{outer}\n")
    with pytest.raises(UvError, match=r"(?i)hash.*slmpack-inner|slmpack-inner.*hash"):
        make_environment(tmp_path / "short", lock, log, CheckError, hashed=True)
    lock.write_text(f"{lock.read_text()}slmpack-inner==1.0 --hash=sha256:{inner}\n")
    make_environment(tmp_path / "whole", lock, log, CheckError, hashed=True)
    assert list((tmp_path / "whole").rglob("slmpack_inner-1.0.dist-info"))
