"""How often a stage is tried, and when."""

from typing import Any

from prefect.cache_policies import NO_CACHE

from slmpack.errors import SlmpackError

MISTAKES = (TypeError, AttributeError, LookupError, AssertionError)


def worth_retrying(_task: object, _run: object, state: Any) -> bool:
    """Retry what may be the network's: our own errors are final, and so are mistakes in the code."""
    return not isinstance(state.result(raise_on_failure=False), (SlmpackError, *MISTAKES))


# The library's own store is content-addressed and verifies what it holds; Prefect would keep the records only.
LOCAL: dict[str, Any] = {"cache_policy": NO_CACHE}
REMOTE: dict[str, Any] = LOCAL | {
    "retries": 3,
    "retry_delay_seconds": [2.0, 10.0, 30.0],
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": worth_retrying,
}
