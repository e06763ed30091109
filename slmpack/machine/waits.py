"""Read how long a run waits for others, in seconds, from the environment: the one place that does.

SLMPACK_RETRY_SECONDS      before each further attempt at a remote stage: 2,10,30
SLMPACK_NO_WORKER_SECONDS  for a worker of a pool that has none: 600
"""

import math
import os

from slmpack.errors import UsageError

RETRY_SECONDS = "2,10,30"
NO_WORKER_SECONDS = "600"  # a worker that restarts is back before that


def retry_seconds() -> list[float]:
    """Return the delay before each further attempt at a stage that uses the network; as many attempts as delays.

    Raises:
        UsageError: SLMPACK_RETRY_SECONDS is not such a list.
    """
    return _read("SLMPACK_RETRY_SECONDS", RETRY_SECONDS, "numbers of 0 or more, separated by commas")


def no_worker_seconds() -> float:
    """Return how long a run that no worker takes is left waiting while its pool has no worker.

    Raises:
        UsageError: SLMPACK_NO_WORKER_SECONDS is not a number of seconds.
    """
    found = _read("SLMPACK_NO_WORKER_SECONDS", NO_WORKER_SECONDS, expected := "one number of 0 or more")
    if len(found) != 1:
        raise _refusal("SLMPACK_NO_WORKER_SECONDS", expected, NO_WORKER_SECONDS)
    return found[0]


def _read(variable: str, default: str, expected: str) -> list[float]:
    try:
        found = [float(each) for each in os.environ.get(variable, default).split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= each < math.inf for each in found):
        raise _refusal(variable, expected, default)
    return found


def _refusal(variable: str, expected: str, default: str) -> UsageError:
    found = os.environ.get(variable, default)
    return UsageError(f"{variable} is {found!r}", expected, f"unset it for the default, {default}")
