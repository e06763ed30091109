r"""Remember: what a child process finds out about a snapshot is stored by all that it depends on, and found out once.

    <workspace>/<kind>/<key>/ is there and whole -------------------------------------------------------> its path
                              is not --request(into)--> work.run(...) in a child --facts--> manifest.json ---^

The snapshot must not change while the child reads it (see `at_rest`). What needs two processes before its folder is
whole (a package, an export) or no snapshot at all (chats, a snapshot) uses `derive_folder` and `store_folder` itself.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple

from slmpack.errors import SlmpackError
from slmpack.machine.at_rest import derive_folder
from slmpack.machine.child import Argument, ChildRun, Result, run_in_child
from slmpack.machine.limits import limit_seconds
from slmpack.machine.store import Facts, log_folder
from slmpack.records import Snapshot

logger = logging.getLogger(__name__)


class ChildWork(NamedTuple, Generic[Argument, Result]):
    """A function that a child process runs on a snapshot, and what its caller has to know about that.

    Attributes:
        run: a module-level function of the library.
        log: first part of the log file's name; the key follows.
        small_limit_seconds: time limit for up to 4 GB of weights (see `limit_seconds`).
        failure: class of the error for a child that died, hung or failed in a way that nobody foresaw.
        doing: what the child does, for that error: "the calibration".
    """

    run: Callable[[Argument], Result]
    log: str
    small_limit_seconds: float
    failure: type[SlmpackError]
    doing: str


def run_work(
    work: ChildWork[Argument, Result], argument: Argument, key: str, snapshot: Snapshot, workspace: Path
) -> tuple[Result, ChildRun]:
    """Run `work` in a child, with a time limit by the snapshot's size and the log `<workspace>/logs/<log>-<key>.log`.

    Raises:
        SlmpackError: of the class that the child raised, or `work.failure`.
    """
    return run_in_child(
        work.run,
        argument,
        log=log_folder(workspace) / f"{work.log}-{key[:12]}.log",
        limit_seconds=limit_seconds(work.small_limit_seconds, snapshot.size_bytes),
        failure=work.failure,
        doing=work.doing,
    )


def remembered(
    kind: str,
    key: str,
    snapshot: Snapshot,
    workspace: Path,
    work: ChildWork[Argument, Result],
    request: Callable[[Path], Argument],
    facts: Callable[[Result], Facts],
) -> Path:
    """Return the folder `<workspace>/<kind>/<key>` that `work` filled, in this run or in an earlier one.

    Its manifest has the snapshot's digest, `facts`, and the child's seconds and peak private memory in bytes.

    Args:
        kind: one of the store's folders.
        key: digest of all that the result depends on, the snapshot's digest included.
        work: writes its result into the folder that its argument names.
        request: puts what the child reads into the empty folder, and returns the child's argument.
        facts: picks from the child's result what the manifest has of it.

    Raises:
        SlmpackError: of the class that the child raised, or `work.failure`; nothing is stored.
        SourceError: a file of the snapshot changed meanwhile.
        WorkspaceError: the snapshot is gone, or the workspace is full.
    """

    def make(into: Path) -> Facts:
        result, run = run_work(work, request(into), key, snapshot, workspace)
        logger.info("that took %.0f s and %.1f GB", run.seconds, run.peak_private_bytes / 1e9)
        cost: Facts = {"seconds": round(run.seconds), "peak_private_bytes": run.peak_private_bytes}
        return {"snapshot": snapshot.digest, **facts(result), **cost}

    return derive_folder(snapshot, workspace, kind, key, make)
