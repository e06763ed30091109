"""Rollback: an alias goes back to a version that had it before."""

from prefect import task

from slmpack.publish import rollback
from slmpack.publish.find import PublishedLookup
from slmpack.publish.rollback import RollbackPlan
from slmpack.records import Interface, LoggedModel, Target
from tasks.policies import REMOTE
from tasks.progress import progress_artifact
from tasks.trace import trace_of_run


@task(task_run_name="plan the rollback of {name} for {target}", **REMOTE)
def plan_rollback(name: str, target: Target, interface: Interface) -> RollbackPlan:
    """Find who has the alias and who had it before; retried, since the registry is remote."""
    return rollback.plan_rollback(name, target, interface)


@task(task_run_name="read back {name} version {version}", **REMOTE)
@progress_artifact("read-back")
def read_version(name: str, version: int, trust_code: bool) -> LoggedModel:
    """Compare every file of the version with what was built; retried, since the artifact store is remote."""
    return rollback.read_version(name, version, trust_code=trust_code)


@task(task_run_name="move {plan.name}@{plan.alias} back to version {version}", **REMOTE)
def move_alias_back(plan: RollbackPlan, version: int) -> PublishedLookup:
    """Move the alias; retried, since the registry is remote and the same call again changes nothing more."""
    return rollback.move_alias_back(plan, version, trace_of_run())
