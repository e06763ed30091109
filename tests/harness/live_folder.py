"""A folder in which another process or thread makes and removes files while a test looks."""

from pathlib import Path


def seen(folder: Path, pattern: str) -> list[Path]:
    """Return what matches; a folder that is gone before it is read has nothing, where pathlib may raise."""
    while True:
        try:
            return list(folder.glob(pattern))
        except FileNotFoundError:  # nothing is known of the others then: look again
            continue


def content_of(path: Path) -> bytes:
    """Return what a file holds; nothing if it is gone by now, or no file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return b""
