"""Empty databases in sqlite, each migrated once a machine and copied from then on: migrations take seconds."""

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from slmpack.machine.store import lock

WORKSPACE = Path.home() / ".cache" / "slmpack-tests"


@cache
def migrated_database(package: str, migrate: Callable[[Path], None]) -> Path:
    """Return the file that `migrate` has made of nothing for the installed version of `package`."""
    file = WORKSPACE / "databases" / f"{package}-{version(package)}.db"
    with lock(WORKSPACE, file.stem):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".unfinished")
            unfinished.unlink(missing_ok=True)
            migrate(unfinished)
            unfinished.replace(file)
    return file
