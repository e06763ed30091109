"""Deployment: which one this run is of, and what it is for."""

from uuid import UUID

from prefect import get_client, runtime, task

from slmpack.errors import UsageError
from slmpack.records import Target
from tasks.policies import REMOTE


@task(task_run_name="check that {target} is this deployment's", **REMOTE)
def require_own_target(target: Target) -> None:
    """Refuse another target than the deployment's: the server does, unless somebody switched validation off.

    Raises:
        UsageError: the run is of a deployment for another target.
    """
    if runtime.deployment.id is None:
        return
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment(UUID(runtime.deployment.id))
    own = deployment.parameters.get("target", target)
    if own != target:
        raise UsageError(
            f"the target {target} in a run of {deployment.name}", own, f"start a run of package-{target} instead"
        )
