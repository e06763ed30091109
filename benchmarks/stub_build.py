"""A flow that takes as long as Prefect takes for it, and hardly longer: what the fan-out benchmark queues."""

import time

from prefect import flow

WORK_SECONDS = 0.2


@flow(name="stub-build", flow_run_name="{model} for {target}")
def stub_build(model: str, target: str) -> str:
    """Stand for the packaging of one model for one target."""
    time.sleep(WORK_SECONDS)
    return f"{model} for {target}"
