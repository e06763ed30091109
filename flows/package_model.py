"""Package one model for one target: from a source to a proved version in the registry.

    resolve -> fetch -> (published already? unchanged) -> build -> log -> validate -> smoke -> publish

The proofs run one after the other: a second model in memory would spoil the speed that the smoke test measures.
"""

from pathlib import Path

from prefect import flow

from slmpack.build import package_digest
from slmpack.errors import SlmpackError
from slmpack.log import logged_digest
from slmpack.outcome import Stages, published_outcome, unchanged_outcome
from slmpack.publish import alias_of
from slmpack.records import Interface, Outcome, Recipe, Target
from slmpack.request import check_request
from slmpack.resolve import DEFAULT_SOURCE
from tasks.build import build_package
from tasks.fetch import fetch_snapshot
from tasks.log import log_model
from tasks.publish import find_published, mark_refused, publish_version
from tasks.registry import require_registry
from tasks.resolve import resolve_source
from tasks.smoke import smoke_test
from tasks.validate import validate_model


@flow(name="package-model", flow_run_name="{source} for {target}")
def package_model(
    source: str = DEFAULT_SOURCE,
    target: Target = Target.CPU_INT4,
    recipe: Recipe | None = None,
    interface: Interface = Interface.CHAT,
    name: str | None = None,
    force: bool = False,
    workspace: Path | None = None,
) -> Outcome:
    """Package `source` for `target` and publish it, unless the same is published already.

    Args:
        source: hf://OWNER/NAME[@REVISION], a folder, a .gguf file, pypi://NAME==VERSION/FILE, models:/... or runs:/...
        target: the hardware and precision to build for.
        recipe: how to quantise; the target's cheapest if empty.
        interface: chat (MLflow's llm/v1/chat) or prompt (one string in, one out).
        name: the registered model; taken from the source if empty.
        force: build, prove and publish even if the same is published already.
        workspace: where work files live; the user's cache folder if empty.
    """
    request = check_request(target, recipe, interface, name, workspace)
    stages = Stages()
    with stages("resolve"):
        require_registry()
        resolved = resolve_source(source)
    with stages("fetch"):
        snapshot = fetch_snapshot(resolved, request.workspace)
    name = request.name or resolved.name
    digest = logged_digest(package_digest(snapshot, target, request.recipe), interface, target)
    with stages("find"):
        found = None if force else find_published(name, digest, alias_of(target, interface))
    if found is not None:
        return unchanged_outcome(found, stages)
    with stages("build"):
        package = build_package(snapshot, target, request.recipe, request.workspace)
    with stages("log"):
        model = log_model(package, interface, name, request.workspace)
    try:
        with stages("validate"):
            validation = validate_model(model, request.workspace)
        with stages("smoke"):
            smoke = smoke_test(model, request.workspace)
    except (SlmpackError, KeyboardInterrupt) as refusal:
        mark_refused(model, str(refusal) or "interrupted")
        raise
    with stages("publish"):
        version = publish_version(model, validation, smoke, force)
    return published_outcome(version, smoke, stages)
