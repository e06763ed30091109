"""Promote: an alias that people give moves to a proved version."""

from prefect import task

from slmpack.publish import promote
from slmpack.publish.promote import Promotion
from tasks.policies import REMOTE
from tasks.progress import progress_artifact


@task(task_run_name="look at {source} of {name}", **REMOTE)
def plan_promotion(name: str, source: str, alias: str, accept_waiver: bool) -> Promotion:
    """Find the version; retried, since the registry is remote."""
    return promote.plan_promotion(name, source, alias, accept_waiver=accept_waiver)


@task(task_run_name="move {plan.name}@{plan.alias} to version {plan.version}", **REMOTE)
@progress_artifact("read-back")
def promote_version(plan: Promotion, approver: str, trust_code: bool) -> Promotion:
    """Compare the version's files, and move the alias; retried, since both are remote."""
    return promote.promote(plan, approver, trust_code=trust_code)
