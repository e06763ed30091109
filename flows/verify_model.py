"""Verify a logged model: prove it again on this machine, wherever it was made, and publish it.

    (checkpoint, from MLflow) -> restore -> smoke -> measure -> validate -> (published already? unchanged) -> publish

The registry is written to only at the end: a proof that does not hold on this machine moves no alias, and leaves a
version that was published as it is.
"""

import logging
from collections.abc import Iterable

from flows.options_flow import options_flow
from flows.parameters import CheckpointUri, ModelUri, ProofOptionsChoice, TrustCode, Workspace
from slmpack.log.provenance import source_of
from slmpack.machine.hardware import require_hardware
from slmpack.publish.attempts import refusal_mark
from slmpack.publish.options import ProofOptions
from slmpack.publish.outcome import REFUSALS, StageTimer, published_outcome, verified_before
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.request import Request, verify_request, with_quality_chats
from slmpack.records import LoggedModel
from slmpack.reports import Check, Outcome, SmokeReport
from slmpack.source.licences import check_licence
from tasks.fetch import receive_snapshot
from tasks.measure import measure_quality
from tasks.outcome import completed, keeping_failure
from tasks.policies import INTERRUPTIONS
from tasks.publish import mark_refused, publish_version
from tasks.registry import require_experiment
from tasks.resolve import chats_of
from tasks.restore import find_logged, registry_status, restore_model
from tasks.sign import require_signing_key
from tasks.smoke import smoke_test
from tasks.validate import validate_model

logger = logging.getLogger("slmpack.verify")  # the library's, so that a run's log and the command line show it


@options_flow("verify-model", lambda parameters: f"verify {parameters['model_uri']}")
def verify_model(
    model_uri: ModelUri,
    options: ProofOptionsChoice = ProofOptions(),  # noqa: B008 - frozen
    workspace: Workspace = None,
    checkpoint: CheckpointUri = None,
    trust_code: TrustCode = False,
) -> Outcome:
    """Run every proof of a logged model again on this machine, and publish it unless that was done before."""
    stages = StageTimer()
    with stages("find"):
        require_experiment()
        logged = find_logged(model_uri).provenance
    require_hardware(logged.package.target)
    check_licence(model_uri, logged.snapshot.licence, options.licences)
    request = verify_request(logged, options, workspace)
    require_signing_key(request)
    request = with_quality_chats(request, request.options.quality_chats or chats_of(source_of(logged)))
    if checkpoint is not None:
        with stages("fetch"):
            receive_snapshot(checkpoint, request.workspace)  # where restoring finds it
    with stages("restore"):
        model = restore_model(model_uri, request.workspace, trust_code)
    with keeping_failure(request.target, REFUSALS):
        outcome = publish(model, prove(model, request, stages), request, stages)
    return completed(outcome)  # type: ignore[no-any-return]


def prove(model: LoggedModel, request: Request, stages: StageTimer) -> Proofs:
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
            validation = validate_model(model, request)
        tell((*validation.checks, *validation.parity, *validation.clean_environment))
    except (*REFUSALS, *INTERRUPTIONS) as error:
        if registry_status(model).published is None and (mark := refusal_mark(error, smoke)) is not None:
            mark_refused(model, mark)
        raise
    return Proofs(validation=validation, quality=quality, smoke=smoke)


def publish(model: LoggedModel, proofs: Proofs, request: Request, stages: StageTimer) -> Outcome:
    """Publish the model unless this very model was; `published` says that the alias moved."""
    before = registry_status(model)
    if before.published is not None and before.holder is not None:
        return verified_before(before.published, proofs, stages)
    with stages("publish"):
        version = publish_version(model, proofs, request)
    has_moved = registry_status(model).holder != before.holder
    return published_outcome(version, proofs, stages) if has_moved else verified_before(version, proofs, stages)


def tell(checks: Iterable[Check]) -> None:
    """Say what holds, a line a check."""
    for check in checks:
        logger.info("holds: %s: %s", check.name, " ".join(check.found.split())[:160])
