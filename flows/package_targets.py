"""Package one model for several targets; one that fails does not stop the others.

    here:   resolve -> package-model for one target after the other, each a run below this one
    pools:  resolve -> shared before? -> fetch -> share through MLflow -> start every target's deployment -> wait
                -> verify what is unproved, in the pool of its hardware -> wait

In pools each target runs on a worker that has its hardware, and takes the checkpoint from MLflow: workers need neither
the source's site nor its token, and the machines share no disk. Targets for GPUs are built by workers without one.
"""

from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun, State

from flows.options_flow import options_flow
from flows.package_model import package_model
from flows.parameters import DispatchChoice, Name, OptionsChoice, SourceText, TargetChoices, Workspace
from slmpack.errors import SlmpackError
from slmpack.machine.private import workspace_of
from slmpack.publish.options import PackageOptions, ProofOptions
from slmpack.publish.outcome import StageTimer, failed_outcome, needs_other_hardware, verified_outcome
from slmpack.publish.request import check_requests, registered_name
from slmpack.records import Dispatch, ModelSource, Target
from slmpack.reports import Outcome
from slmpack.source.licences import check_snapshot, check_source
from slmpack.source.resolve import DEFAULT_SOURCE, shown_source
from tasks.dispatch import await_target, cancel_started, start_target, start_verifying
from tasks.fetch import fetch_snapshot
from tasks.outcome import ended
from tasks.registry import require_experiment
from tasks.resolve import chats_of, resolve_source
from tasks.share import find_checkpoint, share_snapshot


def name_of_run(parameters: dict[str, Any]) -> str:
    """Name the run by its source and its targets."""
    return f"{shown_source(parameters['source'])} for {', '.join(parameters['targets'])}"


@options_flow("package-targets", name_of_run)
def package_targets(
    source: SourceText = DEFAULT_SOURCE,
    targets: TargetChoices = [Target.CPU_INT4],  # noqa: B006 - Prefect copies it, and the form shows it
    name: Name = None,
    options: OptionsChoice = PackageOptions(),  # noqa: B008 - frozen
    workspace: Workspace = None,
    dispatch: DispatchChoice = Dispatch.HERE,
) -> State[Any]:
    """Package one model for every target; Failed, with how many were published, unless all were."""
    check_requests(targets, options, name, workspace)
    with StageTimer()("resolve"):
        require_experiment()
        resolved = resolve_source(source, workspace_of(workspace))  # what is wrong with it is wrong for every target
    check_source(resolved, options.licences)
    registered = registered_name(name, resolved)
    options = options.with_quality_chats(options.quality_chats or chats_of(resolved))
    if dispatch is Dispatch.HERE:
        return ended(package_here(source, targets, name, options, workspace))
    return ended(package_in_pools(resolved, targets, registered, options, workspace_of(workspace)))


def package_here(
    source: str, targets: list[Target], name: str | None, options: PackageOptions, workspace: Path | None
) -> list[Outcome]:
    """Run the targets one after the other; what one fetched and measured of the source, the next finds."""
    outcomes: list[Outcome] = []
    for target in targets:
        state: Any = package_model(source, target, name, options.for_target(target), workspace, return_state=True)
        result = state.result(raise_on_failure=False)
        outcomes.append(result if isinstance(result, Outcome) else failed_outcome(target, result))
    return outcomes


def package_in_pools(
    source: ModelSource, targets: list[Target], name: str, options: PackageOptions, workspace: Path
) -> list[Outcome]:
    """Fetch once, start every target on a worker of its pool, wait for all, and verify what is unproved."""
    handed = find_checkpoint(source, workspace)
    if handed is None:
        snapshot = fetch_snapshot(source, workspace, options.waive_template)
        check_snapshot(snapshot, options.licences)
        handed = share_snapshot(snapshot, name, workspace)
    rest = {"source": handed.source, "name": name, "checkpoint": handed.checkpoint}
    started = {target: start(target, rest | {"options": options.for_target(target)}) for target in targets}
    outcomes: dict[Target, Outcome] = {}
    verifying: dict[Target, Any] = {}
    for target in sorted(targets, key=lambda each: each.provider == "cpu"):  # those that need another run come first
        outcomes[target] = awaited(target, started[target])
        if needs_other_hardware(outcomes[target]):
            verifying[target] = verify(target, outcomes[target], options.proof, handed.checkpoint)
    for target, run in verifying.items():
        outcomes[target] = verified_outcome(outcomes[target], awaited(target, run))
    return [outcomes[target] for target in targets]


def start(target: Target, parameters: dict[str, Any]) -> Any:
    """Return the id of the target's run, or its outcome if it cannot be started."""
    try:
        return start_target(target, parameters)
    except SlmpackError as error:
        return failed_outcome(target, error)


def verify(target: Target, unproved: Outcome, options: ProofOptions, checkpoint: str | None) -> Any:
    """Return the id of the run that verifies a logged model, or its outcome if it cannot be started."""
    try:
        return start_verifying(target, str(unproved.model_uri), {"options": options, "checkpoint": checkpoint})
    except SlmpackError as error:
        return failed_outcome(target, error)


def awaited(target: Target, run: Any) -> Outcome:
    """Return what became of a run; one that could not be started is its own outcome."""
    return run if isinstance(run, Outcome) else await_target(target, run)


@package_targets.on_cancellation
def cancel_targets(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # names are Prefect's
    """Cancel the runs that were started in pools."""
    cancel_started(flow_run.id)
