"""Package one model for one target: from a source to a proved version in the registry.

    resolve -> (wanted before? unchanged) -> fetch -> (published already? unchanged) -> build -> log -> smoke ->
        measure -> validate -> publish

On a machine without the target's hardware it ends before `publish`: the logged model is left `unproved`, and found
there the next time. `verify-model` goes on with it where the hardware is.

Below the quality policy, or where it cannot be built, the next recipe begins at `build`. The source is read for
`measure` while its package is built, where memory allows it. The proofs run one after the other: a second model in
memory would spoil the speed that the smoke test measures.
"""

from typing import Any

from prefect import flow

from flows.parameters import (
    CalibrationText,
    CheckpointUri,
    Force,
    InterfaceChoice,
    Name,
    Policy,
    QualityChats,
    QualityText,
    RecipeChoice,
    SourceText,
    TargetChoice,
    Waiver,
    Workspace,
)
from slmpack.build.build import package_digest
from slmpack.errors import NetworkError, PublishError, QualityError, RecipeError, SlmpackError
from slmpack.log.log import logged_digest
from slmpack.machine.forks import MLFLOW, TOKENIZER, TORCH, prepare_children
from slmpack.machine.hardware import require_runtime
from slmpack.publish.find import alias_of
from slmpack.publish.outcome import (
    Stages,
    failed_outcome,
    last_refused,
    published_outcome,
    refusal_of,
    rung_of,
    unbuilt_rung,
    unchanged_outcome,
    unproved_outcome,
)
from slmpack.publish.page.frontier import Rung
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.request import Request, check_request, on_chats, registered_name
from slmpack.publish.wanted import wanted_key
from slmpack.records import Interface, Outcome, Package, QualityPolicy, Recipe, Snapshot, Target
from slmpack.source.resolve import DEFAULT_SOURCE, shown_source
from tasks.build import build_package
from tasks.deployment import require_own_target
from tasks.fetch import fetch_snapshot, receive_snapshot
from tasks.hand_over import source_of_checkpoint
from tasks.log import log_model
from tasks.measure import SourceBeside, measure_quality, reading_source_beside
from tasks.outcome import completed, keep_outcome
from tasks.policies import INTERRUPTIONS
from tasks.publish import find_rung, find_wanted, mark_refused, publish_version
from tasks.registry import require_experiment
from tasks.resolve import chats_of, resolve_source
from tasks.run_name import unless_given
from tasks.smoke import smoke_test
from tasks.unproved import find_unproved, find_unproved_wanted, leave_unproved
from tasks.validate import validate_model


def name_of_run(asked: dict[str, Any]) -> str:
    """Name the run by what it was asked for."""
    return f"{shown_source(asked['source'])} for {asked['target']}"


@flow(name="package-model", flow_run_name=unless_given(name_of_run))
def package_model(
    source: SourceText = DEFAULT_SOURCE,
    target: TargetChoice = Target.CPU_INT4,
    recipe: RecipeChoice = Recipe.AUTO,
    interface: InterfaceChoice = Interface.CHAT,
    name: Name = None,
    force: Force = False,
    policy: Policy = QualityPolicy(),  # noqa: B008 - frozen
    waive_quality: Waiver = None,
    quality_text: QualityText = None,
    calibration_text: CalibrationText = None,
    workspace: Workspace = None,
    checkpoint: CheckpointUri = None,
    quality_chats: QualityChats = None,
) -> Outcome:
    """Package one model for one target, prove it and publish it, unless the same is published already."""
    try:
        require_own_target(target)
        require_runtime(target)
        request = check_request(
            target, recipe, interface, name, workspace,
            policy=policy, quality_text=quality_text, waive_quality=waive_quality, calibration_text=calibration_text,
            quality_chats=quality_chats,
        )  # fmt: skip
        outcome = package(source, target, interface, request, force, checkpoint)
    except SlmpackError as error:
        keep_outcome(failed_outcome(target, error))
        raise
    keep_outcome(outcome)
    return completed(outcome)  # type: ignore[no-any-return]


def package(
    source: str, target: Target, interface: Interface, request: Request, force: bool, checkpoint: str | None
) -> Outcome:
    """Look for what is wanted, first by the source's pin, then by its content; else make it."""
    stages = Stages()
    with stages("resolve"):
        require_experiment()
        resolved = source_of_checkpoint(checkpoint) if checkpoint else resolve_source(source, request.workspace)
        name = registered_name(request.name, resolved)
        if request.quality_chats is None and (chats := chats_of(resolved)):
            request = on_chats(request, chats)
    alias = alias_of(target, interface)
    wanted = wanted_key(resolved, target, interface, request)
    with stages("find"):
        found = None if force else find_wanted(name, wanted, alias)
        waiting = None if force or found else find_unproved_wanted(name, target, wanted)
    if found is not None:
        return unchanged_outcome(found, stages)
    if waiting is not None:
        return unproved_outcome(waiting, stages)
    prepare_children(*TORCH)
    with stages("fetch"):
        snapshot = (
            receive_snapshot(checkpoint, request.workspace)
            if checkpoint
            else fetch_snapshot(resolved, request.workspace)
        )
    packages = [package_digest(snapshot, target, rung, request.calibration_text) for rung in request.ladder]
    digests = [logged_digest(digest, interface, target) for digest in packages]
    with stages("find"):
        found = None if force else find_rung(name, digests, alias, request.asked, wanted)
        waiting = None if force or found else find_unproved(name, target, digests, request.asked, wanted)
    if found is not None:
        return unchanged_outcome(found, stages)
    if waiting is not None:
        return unproved_outcome(waiting, stages)
    return climb(snapshot, target, interface, name, request.model_copy(update={"wanted": wanted}), stages, force)


def climb(
    snapshot: Snapshot, target: Target, interface: Interface, name: str, request: Request, stages: Stages, force: bool
) -> Outcome:
    """Try the recipes, cheapest first, and publish the first that passes every proof; each stage's time adds up."""
    with reading_source_beside(snapshot, target, request) as source:
        return climb_beside(source, snapshot, target, interface, name, request, stages, force)


def climb_beside(
    source: SourceBeside, snapshot: Snapshot, target: Target, interface: Interface, name: str, request: Request,
    stages: Stages, force: bool,
) -> Outcome:  # fmt: skip
    """Climb while the source is read; it is done before the first model is run, whose speed is measured."""
    rungs: tuple[Rung, ...] = ()
    for recipe in request.ladder:
        try:
            with stages("build"):
                package = build_package(snapshot, target, recipe, request.workspace, request.calibration_text)
            if not source.is_read():
                with stages("measure"):
                    source.wait()
        except RecipeError as error:
            if recipe is None or len(request.ladder) == 1:
                raise
            rungs = (*rungs, unbuilt_rung(recipe, error))
            continue
        ended = prove(package, interface, name, request, stages, force, rungs)
        if isinstance(ended, Outcome):
            return ended
        rungs = (*rungs, ended)
    refused = last_refused(rungs)
    if request.waiver is not None and refused is not None and refused is not rungs[-1]:
        # The waiver was kept for the last recipe, which could not be built: it counts for the last one that was.
        last = Recipe(refused.recipe)
        package = build_package(  # at hand from before
            snapshot, target, last, request.workspace, request.calibration_text
        )
        others = tuple(rung for rung in rungs if rung is not refused)
        waived = request.model_copy(update={"ladder": (last,)})
        ended = prove(package, interface, name, waived, stages, force, others)
        if isinstance(ended, Outcome):
            return ended
    raise refusal_of(rungs)


def prove(
    package: Package, interface: Interface, name: str, request: Request, stages: Stages, force: bool,
    rungs: tuple[Rung, ...],
) -> Outcome | Rung:  # fmt: skip
    """Log one package, prove it and publish it; return it as a rung if the quality policy refuses it.

    What ran on something that stands in for the target's hardware proves too little: the model is left unproved.
    """
    prepare_children(*MLFLOW, *TOKENIZER)
    with stages("log"):
        model = log_model(package, interface, name, request.workspace)
    try:
        with stages("smoke"):
            smoke = smoke_test(model, request.workspace)
        with stages("measure"):
            quality = measure_quality(model, request, package.recipe)
        with stages("validate"):
            validation = validate_model(model, request.workspace)
        tried = (*rungs, rung_of(package, "published", smoke.own_speed, quality.quality))
        proofs = Proofs(validation=validation, quality=quality, smoke=smoke, rungs=tried)
        if smoke.device.provider != package.target.provider:
            with stages("log"):
                return unproved_outcome(leave_unproved(model, proofs, request), stages)
        with stages("publish"):
            version = publish_version(model, proofs, request.asked, force, request.wanted)
        return published_outcome(version, proofs, stages)
    except QualityError as refusal:
        mark_refused(model, str(refusal), smoke.own_speed, refusal.quality)
        return rung_of(package, "refused", smoke.own_speed, refusal.quality, str(refusal))
    except (PublishError, NetworkError):
        raise  # the registry that refuses is the one to be told, and a network that is away says nothing of the model
    except SlmpackError as refusal:
        mark_refused(model, str(refusal))
        raise
    except INTERRUPTIONS:
        mark_refused(model, "interrupted", status="KILLED")
        raise
