"""Allow one retraining of a registered model at a time on a machine; a second one fails before it fetches anything.

    <workspace>/locks/retrain-<digest of the registry and the name>.lock    its time: since when it is held

The kernel gives the lock back when its holder ends, however it ends, so a killed run is in nobody's way. Retrainings
that share a registry and no workspace do not see each other here: the second of them is refused when it registers.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from slmpack.errors import WorkspaceError
from slmpack.machine.private import folder_in, open_lock, try_lock
from slmpack.records import digest_of
from slmpack.source.mlflow_errors import final_errors


@contextmanager
def retrain_alone(name: str, workspace: Path) -> Iterator[None]:
    """Hold the lock of the registered model `name` until the block ends.

    Raises:
        WorkspaceError: another retraining of it runs, or the workspace cannot be written.
    """
    import mlflow

    key = digest_of([mlflow.get_registry_uri(), name])[:24]
    with final_errors(WorkspaceError, "to use the workspace"):
        handle = open_lock(folder_in(workspace, "locks") / f"retrain-{key}.lock")
    try:
        _take(handle, name)
        yield
    finally:
        os.close(handle)


def _take(handle: int, name: str) -> None:
    if not try_lock(handle):
        since = datetime.fromtimestamp(os.fstat(handle).st_mtime, UTC)
        raise WorkspaceError(
            f"another retraining of {name} runs here, since {since:%Y-%m-%d %H:%M:%S} UTC",
            "one at a time",
            "wait for it or stop it",
        )
    os.utime(handle)
