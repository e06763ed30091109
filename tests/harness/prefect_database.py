"""A Prefect server's database in sqlite, migrated once a machine: migrations take 4 seconds of a processor for each."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from migrated_database import migrated_database

from slmpack.telemetry import SWITCHES


def write_empty_database(home: Path) -> None:
    """Write what a server makes of its database at its first start, where one with that PREFECT_HOME looks for it."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(migrated_database("prefect", _migrate), home / "prefect.db")


def _migrate(unfinished: Path) -> None:
    url = f"sqlite+aiosqlite:///{unfinished}"
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    environment = os.environ | SWITCHES | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    with closing(sqlite3.connect(unfinished)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it in the one file that is copied
