"""Package one model for one target: from a source to a proved version in the registry.

    resolve -> fetch -> (published already? unchanged) -> build -> log -> smoke -> measure -> validate -> publish
                                                            ^                         |
                                                            +--- the next recipe <----+ below the quality policy,
                                                                                        or it cannot be built

The proofs run one after the other: a second model in memory would spoil the speed that the smoke test measures.
"""

from pathlib import Path

from prefect import flow

from slmpack.build import package_digest
from slmpack.errors import PublishError, QualityError, RecipeError, SlmpackError
from slmpack.find import alias_of
from slmpack.frontier import Rung
from slmpack.log import logged_digest
from slmpack.outcome import (
    Stages,
    last_refused,
    published_outcome,
    refusal_of,
    rung_of,
    unbuilt_rung,
    unchanged_outcome,
)
from slmpack.proof import Proofs
from slmpack.records import Interface, Outcome, Package, QualityPolicy, Recipe, Snapshot, Target
from slmpack.request import Request, check_request
from slmpack.resolve import DEFAULT_SOURCE
from tasks.build import build_package
from tasks.fetch import fetch_snapshot
from tasks.log import log_model
from tasks.measure import measure_quality
from tasks.publish import find_rung, mark_refused, publish_version
from tasks.registry import require_registry
from tasks.resolve import resolve_source
from tasks.smoke import smoke_test
from tasks.validate import validate_model


@flow(name="package-model", flow_run_name="{source} for {target}")
def package_model(
    source: str = DEFAULT_SOURCE,
    target: Target = Target.CPU_INT4,
    recipe: Recipe = Recipe.AUTO,
    interface: Interface = Interface.CHAT,
    name: str | None = None,
    force: bool = False,
    workspace: Path | None = None,
    policy: QualityPolicy = QualityPolicy(),  # noqa: B008 - frozen
    quality_text: Path | None = None,
    waive_quality: str | None = None,
    calibration_text: Path | None = None,
) -> Outcome:
    """Package `source` for `target` and publish it, unless the same is published already.

    Args:
        source: hf://OWNER/NAME[@REVISION], a folder, a .gguf file, pypi://NAME==VERSION/FILE, models:/... or runs:/...
        target: the hardware and precision to build for.
        recipe: how to quantise; auto is the cheapest recipe that passes the quality policy.
        interface: chat (MLflow's llm/v1/chat) or prompt (one string in, one out).
        name: the registered model; taken from the source if empty.
        force: build, prove and publish even if the same is published already.
        workspace: where work files live; the user's cache folder if empty.
        policy: what the package may lose of its source.
        quality_text: a UTF-8 file to measure the quality on; the built-in text if empty.
        waive_quality: the reason for publishing even below the policy.
        calibration_text: a UTF-8 file of the kind of text the model is for; built-in text and random tokens if empty.
    """
    request = check_request(
        target, recipe, interface, name, workspace,
        policy=policy, quality_text=quality_text, waive_quality=waive_quality, calibration_text=calibration_text,
    )  # fmt: skip
    stages = Stages()
    with stages("resolve"):
        require_registry()
        resolved = resolve_source(source, request.workspace)
    with stages("fetch"):
        snapshot = fetch_snapshot(resolved, request.workspace)
    name, alias = request.name or resolved.name, alias_of(target, interface)
    packages = [package_digest(snapshot, target, rung, request.calibration_text) for rung in request.ladder]
    digests = [logged_digest(digest, interface, target) for digest in packages]
    with stages("find"):
        found = None if force else find_rung(name, digests, alias, request.asked)
    if found is not None:
        return unchanged_outcome(found, stages)
    return climb(snapshot, target, interface, name, request, stages, force)


def climb(
    snapshot: Snapshot, target: Target, interface: Interface, name: str, request: Request, stages: Stages, force: bool
) -> Outcome:
    """Try the recipes, cheapest first, and publish the first that passes every proof; each stage's time adds up."""
    rungs: tuple[Rung, ...] = ()
    for recipe in request.ladder:
        try:
            with stages("build"):
                package = build_package(snapshot, target, recipe, request.workspace, request.calibration_text)
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
    """Log one package, prove it and publish it; return it as a rung if the quality policy refuses it."""
    with stages("log"):
        model = log_model(package, interface, name, request.workspace)
    try:
        with stages("smoke"):
            smoke = smoke_test(model, request.workspace)
        with stages("measure"):
            quality = measure_quality(model, request, package.recipe)
        with stages("validate"):
            validation = validate_model(model, request.workspace)
        tried = (*rungs, rung_of(package, "published", smoke.speed, quality.quality))
        proofs = Proofs(validation=validation, quality=quality, smoke=smoke, rungs=tried)
        with stages("publish"):
            version = publish_version(model, proofs, request.asked, force)
        return published_outcome(version, proofs, stages)
    except QualityError as refusal:
        mark_refused(model, str(refusal), smoke.speed, refusal.quality)
        return rung_of(package, "refused", smoke.speed, refusal.quality, str(refusal))
    except PublishError:
        raise  # the registry that refuses is the one to be told
    except (SlmpackError, KeyboardInterrupt) as refusal:
        mark_refused(model, str(refusal) or "interrupted")
        raise
