"""Registry: whether MLflow can be reached, and whether what is logged there will last."""

from prefect import runtime, task

from slmpack.log import experiment, mlflow_server
from tasks.policies import LOCAL


@task(**LOCAL)
def require_registry() -> None:
    """Look for MLflow before anything expensive; not retried, so that a wrong address fails at once."""
    mlflow_server.require_registry(shared=runtime.deployment.id is not None)


@task(**LOCAL)
def require_experiment() -> None:
    """Look for MLflow, and for a place of artifacts that outlives this run, before anything expensive."""
    on_worker = runtime.deployment.id is not None
    mlflow_server.require_registry(shared=on_worker)
    experiment.require_experiment(on_worker)
