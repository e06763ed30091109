"""Lifetime: whether a place for artifacts lasts as long as the database that names them.

A version is a row in a database and a folder somewhere else. MLflow's own default for that folder is relative to the
working folder of the process that makes the experiment; a worker's run has a temporary one, which is deleted when the
run ends. Two places below the same temporary folder are deleted together, and that is all that is expected of them.
"""

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from slmpack.log.artifacts import is_local, local_path

ROOT = "mlruns"  # Source: MLflow 3.17.2, store/tracking/__init__.py; relative to the working folder
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - they are looked for, nothing is written there


def sqlite_file(uri: str) -> Path | None:
    """Return the path of the SQLite database that `uri` names, as it is written there; None for any other store.

    A database in memory has the empty path.
    """
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    from sqlalchemy.engine import make_url  # a consumer of an MLflow server has none

    parsed = make_url(uri)
    name = (parsed.database or "").removeprefix("file:")
    return Path("" if name == ":memory:" or parsed.query.get("mode") == "memory" else name)


def database_folder(uri: str, working: Path) -> Path | None:
    """Return the folder of a database that is a file of this machine; None where it is a server."""
    file = sqlite_file(uri)
    return None if file is None else (working / file).resolve().parent


def is_on_this_machine(uri: str) -> bool:
    """Tell whether the server at `uri` runs here, where its folders may well be as temporary as ours."""
    host = urlsplit(uri).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def why_temporary(location: str, uri: str, working: Path, on_worker: bool = False) -> str | None:
    """Return why artifacts at `location` will be gone before the database at `uri`; None if they will not.

    Args:
        location: where MLflow puts artifacts: a path or a URI of any scheme.
        uri: of the tracking store or the registry.
        working: the working folder of this process.
        on_worker: that folder belongs to one run, wherever it is.
    """
    if not is_local(location):
        return None
    database, working = database_folder(uri, working), working.resolve()
    path = local_path(location)
    if not path.is_absolute() and database != working:
        return "relative to the working folder"
    place = (working / path).resolve()
    if database is not None and place.is_relative_to(database / ROOT):
        return None
    if on_worker and _is_left_behind(place, working, database):
        return "in the working folder of this run"
    temporary = temporary_folder(place)
    if temporary is not None and not is_on_this_machine(uri) and _is_left_behind(place, temporary, database):
        return f"in the temporary folder {temporary}"
    return None


def temporary_folder(path: Path) -> Path | None:
    """Return the folder right below the system's temporary one that has `path` in it; None if no such has it."""
    roots = sorted({Path(each).resolve() for each in (*TEMPORARY, tempfile.gettempdir())}, key=lambda root: root.parts)
    inside = [root for root in roots if path.is_relative_to(root)]
    if not inside:
        return None
    deepest = inside[-1]
    return deepest.joinpath(*path.relative_to(deepest).parts[:1])


def _is_left_behind(place: Path, folder: Path, database: Path | None) -> bool:
    """Tell whether the place goes when `folder` is deleted, and the database stays."""
    return place.is_relative_to(folder) and (database is None or not database.is_relative_to(folder))
