"""Registry: whether MLflow can be reached."""

from prefect import runtime, task

from slmpack import registry
from tasks.policies import LOCAL


@task(**LOCAL)
def require_registry() -> None:
    """Look for MLflow before anything expensive; not retried, so that a wrong address is told at once."""
    registry.require_registry(shared=runtime.deployment.id is not None)
