"""Verify a logged model: prove it again on this machine, whoever made it and wherever, and publish it.

    (checkpoint, from MLflow) -> recall -> smoke -> measure -> validate -> (published already? unchanged) -> publish

The registry is written to only at the end: a proof that does not hold on this machine moves no alias, and leaves a
version that was published as it is.
"""

import logging
from collections.abc import Iterable

from prefect import flow

from flows.parameters import CheckpointUri, ModelUri, Policy, QualityChats, QualityText, TrustCode, Waiver, Workspace
from slmpack.errors import QualityError
from slmpack.log.provenance import source_of
from slmpack.machine.hardware import require_hardware
from slmpack.publish.outcome import REFUSALS, Stages, failed_outcome, published_outcome
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.request import Request, check_request, on_chats
from slmpack.records import Check, LoggedModel, Outcome, Quality, QualityPolicy, Recipe, SmokeReport
from tasks.fetch import receive_snapshot
from tasks.measure import measure_quality
from tasks.outcome import completed, keep_outcome
from tasks.policies import INTERRUPTIONS
from tasks.publish import mark_refused, publish_version
from tasks.recall import find_logged, recall_model, standing_of
from tasks.registry import require_experiment
from tasks.resolve import chats_of
from tasks.run_name import unless_given
from tasks.smoke import smoke_test
from tasks.validate import validate_model

logger = logging.getLogger("slmpack.verify")  # the library's, so that a run's log and the command line show it


@flow(name="verify-model", flow_run_name=unless_given(lambda asked: f"verify {asked['model_uri']}"))
def verify_model(
    model_uri: ModelUri,
    policy: Policy = QualityPolicy(),  # noqa: B008 - frozen
    waive_quality: Waiver = None,
    quality_text: QualityText = None,
    workspace: Workspace = None,
    checkpoint: CheckpointUri = None,
    quality_chats: QualityChats = None,
    trust_code: TrustCode = False,
) -> Outcome:
    """Run every proof of a logged model again on this machine, and publish it unless that was done before."""
    stages = Stages()
    with stages("find"):
        require_experiment()
        told = find_logged(model_uri).told
    require_hardware(told.package.target)
    request = check_request(
        told.package.target, told.package.recipe or Recipe.AUTO, told.interface, told.name, workspace,
        policy=policy, quality_text=quality_text, waive_quality=waive_quality,
        quality_chats=quality_chats,
    )  # fmt: skip
    if request.quality_chats is None and (chats := chats_of(source_of(told))):
        request = on_chats(request, chats)
    if checkpoint is not None:
        with stages("fetch"):
            receive_snapshot(checkpoint, request.workspace)  # where recalling finds it
    with stages("recall"):
        model = recall_model(model_uri, request.workspace, trust_code)
    try:
        outcome = publish(model, prove(model, request, stages), request, stages)
    except REFUSALS as refusal:
        keep_outcome(failed_outcome(told.package.target, refusal))  # a run for several targets waits for it
        raise
    keep_outcome(outcome)
    return completed(outcome)  # type: ignore[no-any-return]


def prove(model: LoggedModel, request: Request, stages: Stages) -> Proofs:
    """Run the proofs of package-model in its order, and tell each check that holds.

    A model that was never published keeps the reason of a refusal, as it does when it is packaged. One that was
    published is left alone: it was proved, and what does not hold may be this machine's.
    """
    smoke: SmokeReport | None = None
    try:
        with stages("smoke"):
            smoke = smoke_test(model, request.workspace)
        tell(smoke.checks)
        with stages("measure"):
            quality = measure_quality(model, request, model.package.recipe)
        tell(quality.checks)
        with stages("validate"):
            validation = validate_model(model, request.workspace)
        tell((*validation.checks, *validation.parity, *validation.clean_environment))
    except REFUSALS as refusal:
        if standing_of(model).published is None:
            measured: Quality | None = refusal.quality if isinstance(refusal, QualityError) else None
            mark_refused(model, str(refusal), smoke.own_speed if smoke else None, measured)
        raise
    except INTERRUPTIONS:
        if standing_of(model).published is None:
            mark_refused(model, "interrupted", status="KILLED")
        raise
    return Proofs(validation=validation, quality=quality, smoke=smoke)


def publish(model: LoggedModel, proofs: Proofs, request: Request, stages: Stages) -> Outcome:
    """Publish the model unless this very model was; `published` says that the alias moved."""
    before = standing_of(model)
    if before.published is not None and before.holder is not None:
        return published_outcome(before.published, proofs, stages).model_copy(update={"status": "unchanged"})
    with stages("publish"):
        version = publish_version(model, proofs, request.asked, False)
    outcome = published_outcome(version, proofs, stages)
    has_moved = standing_of(model).holder != before.holder
    return outcome if has_moved else outcome.model_copy(update={"status": "unchanged"})


def tell(checks: Iterable[Check]) -> None:
    """Say what holds, a line a check."""
    for check in checks:
        logger.info("holds: %s: %s", check.name, " ".join(check.found.split())[:160])
