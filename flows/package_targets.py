"""Package one model for several targets, each in a run of its own; one that fails does not stop the others."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.package_model import package_model
from slmpack.outcome import failed_outcome, summary_of
from slmpack.records import Interface, Outcome, QualityPolicy, Recipe, Target
from slmpack.request import check_request, workspace_of
from slmpack.resolve import DEFAULT_SOURCE
from tasks.registry import require_registry
from tasks.resolve import resolve_source


@flow(name="package-targets", flow_run_name="{source} for {targets}")
def package_targets(
    source: str = DEFAULT_SOURCE,
    targets: list[Target] = [Target.CPU_INT4],  # noqa: B006 - Prefect copies it, and the form shows it
    recipe: Recipe = Recipe.AUTO,
    interface: Interface = Interface.CHAT,
    name: str | None = None,
    force: bool = False,
    workspace: Path | None = None,
    policy: QualityPolicy = QualityPolicy(),  # noqa: B008 - frozen
    quality_text: Path | None = None,
    waive_quality: str | None = None,
    calibration_text: Path | None = None,
) -> State[Any]:
    """Package `source` for every target; Failed, with how many were published, unless all were.

    Args:
        source: as in package-model.
        targets: the hardware and precisions to build for.
        recipe: how to quantise; auto is the cheapest recipe of each target that passes the quality policy.
        interface: chat (MLflow's llm/v1/chat) or prompt (one string in, one out).
        name: the registered model; taken from the source if empty.
        force: build, prove and publish even if the same is published already.
        workspace: where work files live; the user's cache folder if empty.
        policy: what a package may lose of its source.
        quality_text: a UTF-8 file to measure the quality on; the built-in text if empty.
        waive_quality: the reason for publishing even below the policy.
        calibration_text: a UTF-8 file of the kind of text the model is for; built-in text and random tokens if empty.
    """
    for target in targets:
        check_request(
            target, recipe, interface, name, workspace,
            policy=policy, quality_text=quality_text, waive_quality=waive_quality,
            calibration_text=calibration_text,
        )  # fmt: skip
    require_registry()
    resolve_source(source, workspace_of(workspace))  # what is wrong with the source is wrong for every target
    outcomes: list[Outcome] = []
    for target in targets:
        state = package_model(
            source, target, recipe, interface, name, force, workspace, policy, quality_text, waive_quality,
            calibration_text, return_state=True,
        )  # fmt: skip
        result = state.result(raise_on_failure=False)
        outcomes.append(result if isinstance(result, Outcome) else failed_outcome(target, result))
    ended = Completed if all(outcome.reason is None for outcome in outcomes) else Failed
    return ended(message=summary_of(outcomes), data=outcomes)
