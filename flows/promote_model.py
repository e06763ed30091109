"""Promote a version: an alias such as `production` moves once a person has approved.

    look -> suspended until somebody approves in the dashboard -> compare every file, check who signed -> move the alias

A suspended run has no process, so it may wait for days and holds no place of its pool. It begins anew when it is
resumed. Where another version stands behind the alias by then, it asks for an approval of that one.
"""

from typing import Any

from prefect import flow, suspend_flow_run
from prefect.input import RunInput
from prefect.states import Cancelled, Completed
from pydantic import Field

from flows.parameters import AcceptWaiver, AliasName, PromotedSource, PublishedName, TrustCode
from slmpack.publish.promote import check_promotion, describe_promotion, what_is_approved
from tasks.promote import plan_promotion, promote_version
from tasks.registry import require_registry
from tasks.run_name import unless_given

APPROVAL_SECONDS = 14 * 24 * 3600


class Approval(RunInput):
    """What a person says about a promotion; the form shows these fields."""

    approved: bool = Field(False, title="Approve", description="The alias moves; without it the run is cancelled.")
    approver: str = Field(..., min_length=1, max_length=200, title="Your name", description="Stays on the version.")


@flow(
    name="promote-model",
    flow_run_name=unless_given(lambda parameters: f"promote {parameters['name']} to {parameters['alias']}"),
    persist_result=False,
)
def promote_model(
    name: PublishedName,
    source: PromotedSource = "cpu-int4",
    alias: AliasName = "production",
    accept_waiver: AcceptWaiver = False,
    trust_code: TrustCode = False,
) -> Any:
    """Move an alias to a proved version, once a person has approved."""
    check_promotion(name, source, alias)
    require_registry()
    plan = plan_promotion(name, source, alias, accept_waiver)
    if plan.before == plan.version:
        return Completed(message=describe_promotion(plan.model_copy(update={"status": "unchanged"})))
    asked = Approval.with_initial_data(description=what_is_approved(plan))
    approval = suspend_flow_run(asked, timeout=APPROVAL_SECONDS, key=f"approve-{plan.version}")
    if not approval.approved:
        return Cancelled(message=f"{approval.approver} did not approve version {plan.version}")
    return Completed(message=describe_promotion(promote_version(plan, approval.approver, trust_code)))
