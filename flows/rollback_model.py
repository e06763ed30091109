"""Roll a model back: its alias returns to the version that had it before, after that one has answered here.

    find -> (interrupted when all was moved? complete) -> read back -> smoke -> give back
                                                          ^               |
                                                          +-- the version before it, where one does not hold

The registry is written to only at the end. Quality and parity are not measured again: the version was proved when it
was published, and its files are those of then.
"""

import logging

from prefect import flow

from flows.parameters import InterfaceChoice, PublishedName, TargetChoice, TrustCode, Workspace
from slmpack.errors import SlmpackError
from slmpack.machine.private import workspace_of
from slmpack.publish.outcome import StageTimer
from slmpack.publish.rollback import UNUSABLE, check_rollback, failed_candidates, rolled_back_outcome
from slmpack.records import Interface, Target
from slmpack.reports import Outcome
from tasks.outcome import completed, keeping_failure
from tasks.registry import require_registry
from tasks.rollback import move_alias_back, plan_rollback, read_version
from tasks.run_name import unless_given
from tasks.smoke import smoke_test

logger = logging.getLogger("slmpack.rollback")  # the library's, so that a run's log and the command line show it


@flow(
    name="rollback-model",
    flow_run_name=unless_given(lambda parameters: f"roll {parameters['name']} back for {parameters['target']}"),
)
def rollback_model(
    name: PublishedName,
    target: TargetChoice,
    interface: InterfaceChoice = Interface.CHAT,
    workspace: Workspace = None,
    trust_code: TrustCode = False,
) -> Outcome:
    """Return the alias of a target to the version that had it before, if that one still is whole and answers."""
    with keeping_failure(target, SlmpackError):
        check_rollback(name, target)
        outcome = roll_back(name, target, interface, workspace, trust_code)
    return completed(outcome)  # type: ignore[no-any-return]


def roll_back(name: str, target: Target, interface: Interface, workspace: Workspace, trust_code: TrustCode) -> Outcome:
    """Try those that had the alias before, the last one first, and give it to the first that holds."""
    stages = StageTimer()
    with stages("find"):
        require_registry()
        plan = plan_rollback(name, target, interface)
    if plan.interrupted:
        logger.info("the last rollback was interrupted when the alias had moved: it is completed, and goes no further")
        return rolled_back_outcome(move_alias_back(plan, plan.holder), None, stages)
    reasons: dict[int, str] = {}
    for version in plan.candidates:
        try:
            with stages("read back"):
                model = read_version(name, version, trust_code)
            with stages("smoke"):
                smoke = smoke_test(model, workspace_of(workspace))
        except UNUSABLE as error:
            logger.warning("version %d cannot be used: %s", version, error)
            reasons[version] = str(error)
            continue
        with stages("give back"):
            found = move_alias_back(plan, version)
        return rolled_back_outcome(found, smoke, stages)
    raise failed_candidates(plan, reasons)
