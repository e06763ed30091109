"""How often a stage is tried, when, and what of it a retried run need not do again."""

from typing import Any

from prefect import runtime
from prefect.cache_policies import DEFAULT, NO_CACHE
from prefect.exceptions import TerminationSignal

from slmpack.errors import SlmpackError
from slmpack.machine.expected import why_unreachable
from slmpack.machine.waits import retry_seconds
from slmpack.source.mlflow_errors import FINAL_ERRNOS

# What ends a run from outside: Ctrl-C at a terminal, and a worker whose run is cancelled.
INTERRUPTIONS = (KeyboardInterrupt, TerminationSignal)
MISTAKES = (TypeError, AttributeError, LookupError, AssertionError)


def worth_retrying(_task: object, _run: object, state: Any) -> bool:
    """Retry what may be the network's: our own errors are final, and so are a full disk and mistakes in the code.

    Where no connection can be made at all, a worker tries again, and a person at a terminal sees the error at once.
    """
    error = state.result(raise_on_failure=False)
    if isinstance(error, OSError) and error.errno in FINAL_ERRNOS:
        return False
    if runtime.deployment.id is None and why_unreachable(error):
        return False
    return not isinstance(error, (SlmpackError, *MISTAKES))


# The library's own store is content-addressed and verifies what it holds; Prefect would keep the records only.
LOCAL: dict[str, Any] = {"cache_policy": NO_CACHE}
DELAYS = retry_seconds()
REMOTE: dict[str, Any] = LOCAL | {
    "retries": len(DELAYS),
    "retry_delay_seconds": DELAYS,
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": worth_retrying,
}
# A proof that held is not run again when the same run is retried on the same machine, after a crash or an outage: its
# inputs, its task's code and the run make the key. Its report is kept as JSON in Prefect's storage there; without it
# the proof runs again.
PROOF: dict[str, Any] = {"cache_policy": DEFAULT, "persist_result": True, "result_serializer": "json"}
