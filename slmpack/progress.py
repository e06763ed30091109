"""How far a stage is, told through stdlib logging.

`report` sends a record to the logger `slmpack.progress`; whoever shows it (the command line's live display,
a Prefect artifact) adds a `logging.Handler` there and reads `record.progress`.
"""

import logging

from slmpack.records import Progress

logger = logging.getLogger("slmpack.progress")
logger.setLevel(logging.INFO)
logger.propagate = False  # a line per tensor would drown the log; stages log their milestones themselves
logger.addHandler(logging.NullHandler())


def report(stage: str, done: int, total: int | None, unit: str) -> None:
    """Tell whoever listens that `stage` has done `done` of `total` (None: not known) `unit`."""
    progress = Progress(stage=stage, done=done, total=total, unit=unit)
    logger.info("%s: %s of %s %s", stage, done, total, unit, extra={"progress": progress})
