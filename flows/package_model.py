"""Package one model for one target: from a source to a proved version in the registry.

    resolve -> (the same request before? unchanged) -> fetch -> (the same content before? unchanged) -> build -> log ->
        smoke -> measure -> validate -> publish

On a machine without the target's hardware it ends before `publish`: the logged model is left `unproved`, and found
there the next time. `verify-model` goes on with it where the hardware is.

Below the quality policy, or where it cannot be built, the next recipe begins at `build` (`slmpack.publish.attempts`).
The source is read for `measure` while its package is built, where memory allows it. The proofs run one after the
other: a second model in memory would spoil the speed that the smoke test measures.
"""

from typing import Any

from flows.options_flow import options_flow
from flows.parameters import CheckpointUri, Name, OptionsChoice, SourceText, TargetChoice, Workspace
from slmpack.errors import SlmpackError
from slmpack.machine.forks import MLFLOW, TOKENIZER, prepare_children
from slmpack.machine.hardware import require_runtime
from slmpack.publish.attempts import Attempts, Trial
from slmpack.publish.find import PublishedLookup
from slmpack.publish.options import PackageOptions
from slmpack.publish.outcome import StageTimer, previous_outcome, published_outcome, unproved_outcome
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.request import Request, check_request
from slmpack.publish.request_key import content_digests, resolved_request
from slmpack.records import LoggedModel, Package, Snapshot, Target
from slmpack.reports import Outcome, UnprovedModel
from slmpack.source.licences import check_snapshot
from slmpack.source.resolve import DEFAULT_SOURCE, shown_source
from tasks.build import build_package
from tasks.deployment import require_own_target
from tasks.fetch import fetch_snapshot, receive_snapshot
from tasks.find import find_previous
from tasks.log import log_model
from tasks.measure import SourceBeside, measure_quality, reading_source_beside
from tasks.outcome import completed, keeping_failure
from tasks.publish import marking_refused, publish_version
from tasks.registry import require_experiment
from tasks.resolve import chats_of, resolve_source
from tasks.share import source_of_checkpoint
from tasks.sign import require_signing_key, sign_found
from tasks.smoke import smoke_test
from tasks.unproved import leave_unproved
from tasks.validate import validate_model


def name_of_run(parameters: dict[str, Any]) -> str:
    """Name the run by its source and its target."""
    return f"{shown_source(parameters['source'])} for {parameters['target']}"


@options_flow("package-model", name_of_run)
def package_model(
    source: SourceText = DEFAULT_SOURCE,
    target: TargetChoice = Target.CPU_INT4,
    name: Name = None,
    options: OptionsChoice = PackageOptions(),  # noqa: B008 - frozen
    workspace: Workspace = None,
    checkpoint: CheckpointUri = None,
) -> Outcome:
    """Package one model for one target, prove it and publish it, unless the same is published already."""
    with keeping_failure(target, SlmpackError):
        require_own_target(target)
        require_runtime(target)
        request = check_request(target, options, name, workspace)
        outcome = package(source, request, checkpoint)
    return completed(outcome)  # type: ignore[no-any-return]


def package(source: str, request: Request, checkpoint: str | None) -> Outcome:
    """Look for what the same request ended with, first by the source's pin, then by its content; else make it."""
    stages = StageTimer()
    with stages("resolve"):
        require_experiment()
        require_signing_key(request)
        resolved = source_of_checkpoint(checkpoint) if checkpoint else resolve_source(source, request.workspace)
        request = resolved_request(request, resolved, request.options.quality_chats or chats_of(resolved))
    with stages("find"):
        found = find_previous(request)
    if found is not None:
        return previous(found, request, stages)
    folder = request.workspace
    with stages("fetch"):
        snapshot = (
            receive_snapshot(checkpoint, folder)
            if checkpoint
            else fetch_snapshot(resolved, folder, request.options.waive_template)
        )
    check_snapshot(snapshot, request.options.licences)
    with stages("find"):
        found = find_previous(request, content_digests(snapshot, request))
    return try_recipes(snapshot, request, stages) if found is None else previous(found, request, stages)


def previous(found: PublishedLookup | UnprovedModel, request: Request, stages: StageTimer) -> Outcome:
    """Return what the same request ended with before; a version that is not signed by the key yet is signed now."""
    if request.options.signing_key is not None and isinstance(found, PublishedLookup):
        with stages("publish"):
            sign_found(found, request)
    return previous_outcome(found, stages)


def try_recipes(snapshot: Snapshot, request: Request, stages: StageTimer) -> Outcome:
    """Publish the first recipe that passes every proof; a stage's time is that of all attempts."""
    attempts = Attempts(request)
    with reading_source_beside(snapshot, request) as source:
        for trial in attempts:
            with attempts.trying(trial):
                trial.package = build(snapshot, trial, source, stages)
                prepare_children(*MLFLOW, *TOKENIZER)
                with stages("log"):
                    model = log_model(trial.package, request.options.interface, request.registered, request.workspace)
                with marking_refused(model, trial):
                    return publish(model, prove(model, trial, stages), request, stages)
    raise attempts.error()


def build(snapshot: Snapshot, trial: Trial, source: SourceBeside, stages: StageTimer) -> Package:
    """Build the package while the source is read, which is done before a model runs whose speed is measured."""
    request = trial.request
    with stages("build"):
        package = build_package(snapshot, request.target, trial.recipe, request.workspace, request.calibration)
    if not source.is_read():
        with stages("measure"):
            source.wait()
    return package


def prove(model: LoggedModel, trial: Trial, stages: StageTimer) -> Proofs:
    """Run the proofs, cheapest first."""
    request = trial.request
    with stages("smoke"):
        trial.smoke = smoke_test(model, request.workspace)
    with stages("measure"):
        quality = measure_quality(model, request, trial.recipe)
    with stages("validate"):
        validation = validate_model(model, request)
    return trial.proofs(quality, validation)


def publish(model: LoggedModel, proofs: Proofs, request: Request, stages: StageTimer) -> Outcome:
    """Publish the model, or leave it unproved where something stood in for the target's hardware."""
    if not proofs.are_on_hardware:
        with stages("log"):
            return unproved_outcome(leave_unproved(model, proofs, request), stages)
    with stages("publish"):
        version = publish_version(model, proofs, request)
    return published_outcome(version, proofs, stages)
