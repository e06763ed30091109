"""An empty MLflow database in sqlite: migrated once a machine, and not synced to the disk at every commit.

MLflow's migrations take 2 seconds of a processor for each new database, and a test commits hundreds of times. A test's
database need not outlive a power cut; all else is as MLflow has it.
"""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from migrated_database import migrated_database


def write_empty_database(file: Path) -> None:
    """Write what MLflow itself makes of a database at its first use, but for the default experiment."""
    _stop_syncing()
    shutil.copyfile(migrated_database("mlflow", _migrate), file)


def _migrate(unfinished: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(f"sqlite:///{unfinished}")  # type: ignore[no-untyped-call]
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()


@cache
def _stop_syncing() -> None:
    """Have every later connection of this process to sqlite leave it to the kernel when its files are written."""
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "connect")
    def stop(connection: Any, _: object) -> None:
        if "sqlite" in type(connection).__module__:
            connection.execute("PRAGMA synchronous=OFF")
