"""Report how far a stage is, through stdlib logging.

`report` sends a record to the logger `slmpack.progress`. The command line's live display and a Prefect artifact are
handlers of that logger, and read `record.progress`.
"""

import logging

from slmpack.records import Progress

logger = logging.getLogger("slmpack.progress")
logger.setLevel(logging.INFO)
logger.propagate = False  # a line per tensor would drown the log; stages log their milestones themselves
logger.addHandler(logging.NullHandler())


def report(stage: str, done: int, total: int | None, unit: str) -> None:
    """Report that `stage` has done `done` of `total` (None: not known) `unit`."""
    progress = Progress(stage=stage, done=done, total=total, unit=unit)
    logger.info("%s: %s of %s %s", stage, done, total, unit, extra={"progress": progress})
