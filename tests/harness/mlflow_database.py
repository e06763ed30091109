"""An empty MLflow database in sqlite: migrated once a machine, and not synced to the disk at every commit.

MLflow's migrations take 2 seconds of a processor for each new database, and a test commits hundreds of times. A test's
database need not outlive a power cut; all else is as MLflow has it.
"""

import shutil
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slmpack.machine.store import lock

WORKSPACE = Path.home() / ".cache" / "slmpack-tests"


def write_empty_database(file: Path) -> None:
    """Write what MLflow itself makes of a database at its first use, but for the default experiment."""
    _stop_syncing()
    shutil.copyfile(_migrated(), file)


@cache
def _migrated() -> Path:
    file = WORKSPACE / "databases" / f"mlflow-{version('mlflow')}.db"
    with lock(WORKSPACE, file.stem):
        if not file.exists():
            _migrate(file)
    return file


def _migrate(file: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    engine = create_sqlalchemy_engine(f"sqlite:///{unfinished}")  # type: ignore[no-untyped-call]
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
    unfinished.replace(file)


@cache
def _stop_syncing() -> None:
    """Have every later connection of this process to sqlite leave it to the kernel when its files are written."""
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "connect")
    def stop(connection: Any, _: object) -> None:
        if "sqlite" in type(connection).__module__:
            connection.execute("PRAGMA synchronous=OFF")
