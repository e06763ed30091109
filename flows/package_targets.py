"""Package one model for several targets; one that fails does not stop the others.

    here:   resolve -> package-model for one target after the other, each a run below this one
    pools:  resolve -> handed over before? -> fetch -> hand over to MLflow -> start every target's deployment -> wait
                -> verify what is unproved, in the pool of its hardware -> wait

In pools each target runs on a worker that has its hardware, and takes the checkpoint from MLflow: workers need neither
the source's site nor its token, and the machines share no disk. Targets for GPUs are built by workers without one.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Failed

from flows.package_model import package_model
from flows.parameters import (
    CalibrationText,
    DispatchChoice,
    Force,
    InterfaceChoice,
    Name,
    Policy,
    QualityChats,
    QualityText,
    RecipeChoice,
    SourceText,
    TargetChoices,
    Waiver,
    Workspace,
)
from slmpack.errors import SlmpackError
from slmpack.publish.outcome import Stages, failed_outcome, summary_of, verified_outcome
from slmpack.publish.request import check_request, registered_name, workspace_of
from slmpack.records import Dispatch, Interface, ModelSource, Outcome, QualityPolicy, Recipe, Target
from slmpack.source.resolve import DEFAULT_SOURCE, shown_source
from slmpack.targets import recipe_for
from tasks.dispatch import await_target, cancel_started, start_target, start_verifying
from tasks.fetch import fetch_snapshot
from tasks.hand_over import find_checkpoint, hand_over_snapshot
from tasks.outcome import keep_outcomes
from tasks.registry import require_experiment
from tasks.resolve import chats_of, resolve_source
from tasks.run_name import unless_given


def name_of_run(asked: dict[str, Any]) -> str:
    """Name the run by what it was asked for."""
    return f"{shown_source(asked['source'])} for {', '.join(asked['targets'])}"


@flow(name="package-targets", flow_run_name=unless_given(name_of_run))
def package_targets(
    source: SourceText = DEFAULT_SOURCE,
    targets: TargetChoices = [Target.CPU_INT4],  # noqa: B006 - Prefect copies it, and the form shows it
    recipe: RecipeChoice = Recipe.AUTO,
    interface: InterfaceChoice = Interface.CHAT,
    name: Name = None,
    force: Force = False,
    policy: Policy = QualityPolicy(),  # noqa: B008 - frozen
    waive_quality: Waiver = None,
    quality_text: QualityText = None,
    calibration_text: CalibrationText = None,
    workspace: Workspace = None,
    dispatch: DispatchChoice = Dispatch.HERE,
    quality_chats: QualityChats = None,
) -> State[Any]:
    """Package one model for every target; Failed, with how many were published, unless all were."""
    for target in targets:
        check_request(
            target, recipe_for(target, recipe), interface, name, workspace,
            policy=policy, quality_text=quality_text, waive_quality=waive_quality,
            calibration_text=calibration_text, quality_chats=quality_chats,
        )  # fmt: skip
    with Stages()("resolve"):
        require_experiment()
        resolved = resolve_source(source, workspace_of(workspace))  # what is wrong with it is wrong for every target
    registered = registered_name(name, resolved)
    rest = {
        "recipe": recipe, "interface": interface, "name": name, "force": force, "policy": policy,
        "waive_quality": waive_quality, "quality_text": quality_text, "calibration_text": calibration_text,
        "quality_chats": quality_chats or chats_of(resolved),
    }  # fmt: skip
    if dispatch is Dispatch.HERE:
        outcomes = package_here(source, targets, rest | {"workspace": workspace})
    else:
        outcomes = package_in_pools(resolved, targets, rest | {"name": registered}, workspace_of(workspace))
    keep_outcomes(outcomes)
    state = Completed if all(outcome.reason is None for outcome in outcomes) else Failed
    return state(message=summary_of(outcomes), data=outcomes)


def package_here(source: str, targets: list[Target], rest: dict[str, Any]) -> list[Outcome]:
    """Run the targets one after the other; what one fetched and measured of the source, the next finds."""
    outcomes: list[Outcome] = []
    for target in targets:
        asked = rest | {"recipe": recipe_for(target, rest["recipe"])}
        state: Any = package_model(source, target, **asked, return_state=True)
        result = state.result(raise_on_failure=False)
        outcomes.append(result if isinstance(result, Outcome) else failed_outcome(target, result))
    return outcomes


def package_in_pools(source: ModelSource, targets: list[Target], rest: dict[str, Any], workspace: Any) -> list[Outcome]:
    """Fetch once, start every target on a worker of its pool, then wait for all of them."""
    handed = find_checkpoint(source)
    if handed is None:
        handed = hand_over_snapshot(fetch_snapshot(source, workspace), rest["name"], workspace)
    parameters = rest | {"source": handed.source, "checkpoint": handed.checkpoint}
    started = {target: start(target, parameters | {"recipe": recipe_for(target, rest["recipe"])}) for target in targets}
    outcomes: dict[Target, Outcome] = {}
    verifying: dict[Target, Any] = {}
    for target in sorted(targets, key=lambda each: each.provider == "cpu"):  # those that need another run come first
        outcomes[target] = ended(target, started[target])
        if outcomes[target].status == "unproved":
            verifying[target] = verify(target, outcomes[target], rest | {"checkpoint": handed.checkpoint})
    for target, run in verifying.items():
        outcomes[target] = verified_outcome(outcomes[target], ended(target, run))
    return [outcomes[target] for target in targets]


def start(target: Target, parameters: dict[str, Any]) -> Any:
    """Return the id of the target's run, or its outcome if it cannot be started."""
    try:
        return start_target(target, parameters)
    except SlmpackError as error:
        return failed_outcome(target, error)


def verify(target: Target, unproved: Outcome, rest: dict[str, Any]) -> Any:
    """Return the id of the run that verifies a logged model, or its outcome if it cannot be started."""
    asked = {name: rest[name] for name in ("policy", "waive_quality", "quality_text", "quality_chats", "checkpoint")}
    try:
        return start_verifying(target, str(unproved.model_uri), asked)
    except SlmpackError as error:
        return failed_outcome(target, error)


def ended(target: Target, run: Any) -> Outcome:
    """Return what became of a run; one that could not be started is its own outcome."""
    return run if isinstance(run, Outcome) else await_target(target, run)


@package_targets.on_cancellation
def cancel_targets(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # names are Prefect's
    """Cancel the runs that were started in pools."""
    cancel_started(flow_run.id)
