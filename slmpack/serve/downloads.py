"""Downloads: a temporary folder of the server's own, which goes with it.

MLflow downloads a model into the temporary folder and leaves it there: a server that is restarted every night would
fill the disk. So the temporary folder is one in the workspace while a server runs, locked by it. What a server that was
killed has left, the next one removes.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmpack.machine.private import folder_in, open_lock, try_lock, wait_for_lock
from slmpack.machine.store import lock

PREFIX = "serve-"
HELD = ".lock"


@contextmanager
def temporary_downloads(workspace: Path) -> Iterator[Path]:
    """Have everything of this process that is temporary in a folder of the workspace, and remove it at the end."""
    scratch = folder_in(workspace, "scratch")
    with lock(workspace, "served-downloads"):  # between making a folder and locking it, it looks like one left behind
        _remove_left(scratch)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch))
        held = open_lock(folder / HELD)
        wait_for_lock(held)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def remove_download(folder: Path) -> None:
    """Remove a model that was downloaded while a server runs; one that lies elsewhere stays."""
    downloads = Path(tempfile.gettempdir())
    if downloads.name.startswith(PREFIX) and folder != downloads and folder.is_relative_to(downloads):
        shutil.rmtree(downloads / folder.relative_to(downloads).parts[0], ignore_errors=True)


def _remove_left(scratch: Path) -> None:
    for folder in scratch.glob(f"{PREFIX}*/"):
        held = open_lock(folder / HELD)
        try:
            if try_lock(held):  # else it is of a server that runs
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(held)
