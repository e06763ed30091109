"""Retrain a model on chats, and package what is better for every target.

    resolve -> data -> (the same before? unchanged, or refused as then) -> fetch -> divide -> train -> measure ->
        judge -> register as models:/NAME/VERSION, alias `tuned` -> package-targets from that version

Nothing moves unless the tuned model is better on chats that were held out, and has not forgotten too much of the
general text, both against the model in use. Of two retrainings of one model at once, the one that comes second is not
registered: it was compared with what is no longer in use. A killed run goes on from its last checkpoint when it is
retried; what was registered and not packaged yet is packaged by the next run of the same.
"""

from pathlib import Path
from typing import Any

from flows.options_flow import options_flow
from flows.package_targets import package_targets
from flows.parameters import (
    DataPolicyChoice,
    DataText,
    DispatchChoice,
    Name,
    OptionsChoice,
    RetrainPolicyChoice,
    SourceText,
    TargetChoices,
    TrainSettingsChoice,
    Workspace,
)
from slmpack.chats.dataset import DataPolicy
from slmpack.chats.parts import ChatParts
from slmpack.log.chat_artifacts import is_artifact
from slmpack.log.datasets import FoundData
from slmpack.machine.private import workspace_of
from slmpack.publish.options import PackageOptions
from slmpack.publish.outcome import StageTimer
from slmpack.publish.request import check_requests, registered_name
from slmpack.records import Dispatch, Snapshot, Target
from slmpack.reports import Outcome
from slmpack.retrain.evaluate import (
    Perplexities,
    RetrainOutcome,
    RetrainPolicy,
    TunedFigures,
    packaged_outcome,
    refusal_reason,
    settled_outcome,
)
from slmpack.retrain.lock import retrain_alone
from slmpack.retrain.retraining import Retraining, judged_outcome, retraining_of
from slmpack.retrain.training.settings import TrainSettings
from slmpack.source.licences import check_snapshot, check_source
from slmpack.source.resolve import DEFAULT_SOURCE, shown_source
from tasks.fetch import fetch_snapshot
from tasks.outcome import completed_retraining
from tasks.registry import require_experiment
from tasks.resolve import chats_of, resolve_source
from tasks.retrain import (
    closing_failed,
    divide_data,
    find_data,
    find_previous_result,
    find_refusals,
    general_perplexity,
    held_out_perplexity,
    keep_held_out,
    log_curve,
    log_tuned,
    log_tuned_figures,
    look_at_data,
    open_run,
    refuse_run,
    register_tuned,
    remember_refusals,
    train_adapter,
    tuned_snapshot,
    version_in_use,
)
from tasks.sign import require_accepted_key, sign_tuned


def name_of_run(parameters: dict[str, Any]) -> str:
    """Name the run by its base."""
    return f"retrain {shown_source(parameters['base'])}"


@options_flow("retrain-model", name_of_run)
def retrain_model(
    data: DataText,
    base: SourceText = DEFAULT_SOURCE,
    name: Name = None,
    training: TrainSettingsChoice = TrainSettings(),  # noqa: B008 - frozen
    retrain_policy: RetrainPolicyChoice = RetrainPolicy(),  # noqa: B008 - frozen
    data_policy: DataPolicyChoice = DataPolicy(),  # noqa: B008 - frozen
    targets: TargetChoices = [Target.CPU_INT4],  # noqa: B006 - Prefect copies it, and the form shows it
    options: OptionsChoice = PackageOptions(),  # noqa: B008 - frozen
    workspace: Workspace = None,
    dispatch: DispatchChoice = Dispatch.HERE,
) -> Any:
    """Train, compare with what is in use, and package for every target only what is better.

    With `options.force` the same data are trained on again; packages of the same content are found all the same.
    """
    stages, folder = StageTimer(), workspace_of(workspace)
    check_requests(targets, options, name, workspace)  # or it would be refused after the training
    with stages("resolve"):
        require_experiment()
        source = resolve_source(base, folder)
        check_source(source, options.licences)
        tuned_name = registered_name(name, source)
        require_accepted_key(tuned_name, options)
    with retrain_alone(tuned_name, folder):
        with stages("data"):
            found = find_data(data)
            looked_at = look_at_data(found, data_policy, folder)
        retraining = retraining_of(tuned_name, source, looked_at, training, retrain_policy)
        with stages("find"):
            settled = None if options.force else find_previous_result(tuned_name, retraining.key)
        if settled is None:
            outcome = tune(retraining, found, retrain_policy, options, folder, stages)
        else:
            outcome = settled_outcome(tuned_name, settled)
        if outcome.version is not None:
            outcome = package(outcome, targets, options, workspace, dispatch)
    return completed_retraining(outcome.finished(looked_at.digest, stages.seconds))


def tune(
    retraining: Retraining,
    found: FoundData,
    policy: RetrainPolicy,
    options: PackageOptions,
    workspace: Path,
    stages: StageTimer,
) -> RetrainOutcome:
    """Train and judge; what is better is registered. A chat template is refused before, not after the training."""
    with stages("fetch"):
        base = fetch_snapshot(retraining.base, workspace, options.waive_template)
    check_snapshot(base, options.licences)
    with stages("data"):
        read, parts = divide_data(found, retraining.data, base, workspace)
        retraining = retraining.model_copy(update={"data": read})
        run_id = open_run(retraining, found.text if is_artifact(found.text) else None)
    with closing_failed(run_id):
        with stages("train"):
            tuned = train(base, parts, retraining, run_id, workspace)
        with stages("measure"):
            beaten = version_in_use(retraining.name)
            in_use = snapshot_in_use(retraining.name, beaten, base, options.waive_template, workspace)
            figures = measure(base, in_use, tuned, parts, workspace)
            log_tuned_figures(run_id, figures)
        if (reason := refusal_reason(figures, policy)) is not None:
            refuse_run(run_id, reason)
            return judged_outcome(retraining, figures, reason=reason)
        with stages("log"):
            model = log_tuned(tuned, retraining, workspace)
            version = register_tuned(model, retraining, run_id, figures, beaten)
    return judged_outcome(retraining, figures, version=version)


def train(base: Snapshot, parts: ChatParts, retraining: Retraining, run_id: str, workspace: Path) -> Snapshot:
    """Train on one part of the chats, keep the other with the run, and return the tuned checkpoint."""
    keep_held_out(run_id, parts)
    trained = train_adapter(base, parts, retraining.settings, workspace, run_id)
    log_curve(run_id, trained)
    return tuned_snapshot(trained, base, workspace)


def measure(base: Snapshot, in_use: Snapshot, tuned: Snapshot, parts: ChatParts, workspace: Path) -> TunedFigures:
    """Measure the base, what is in use and what is new, each on both texts; the same model is measured once."""
    models = {"base": base, "in_use": in_use, "tuned": tuned}
    different = {model.digest: model for model in models.values()}
    held_out = {digest: held_out_perplexity(model, parts, workspace) for digest, model in different.items()}
    general = {digest: general_perplexity(model, workspace) for digest, model in different.items()}
    return TunedFigures(
        held_out=Perplexities(**{role: held_out[model.digest] for role, model in models.items()}),
        general=Perplexities(**{role: general[model.digest] for role, model in models.items()}),
    )


def snapshot_in_use(
    name: str, version: int | None, base: Snapshot, waive_template: str | None, workspace: Path
) -> Snapshot:
    """Return the tuned model in use, the base before there is one."""
    if version is None:
        return base
    return fetch_snapshot(resolve_source(f"models:/{name}/{version}", workspace), workspace, waive_template)


def package(
    outcome: RetrainOutcome, targets: list[Target], options: PackageOptions, workspace: Path | None, dispatch: Dispatch
) -> RetrainOutcome:
    """Package the tuned version, each package measured on the held-out answers as well; one there is is `unchanged`."""
    (name, version), uri = outcome.registered, outcome.tuned_uri
    sign_tuned(name, version, options)
    source = resolve_source(uri, workspace_of(workspace))
    judged = options.with_quality_chats(options.quality_chats or chats_of(source)).model_copy(update={"force": False})
    requests = check_requests(targets, judged, name, workspace)
    refused = find_refusals(name, version, requests) if outcome.settled else {}
    rest = [target for target in targets if target not in refused]
    made = package_rest(uri, rest, name, judged, workspace, dispatch)
    remember_refusals(name, version, made, requests)
    became = refused | {each.target: each for each in made}
    return packaged_outcome(outcome, [became[target] for target in targets], refused)


def package_rest(uri: str, targets: list[Target], *rest: Any) -> list[Outcome]:
    """Package the tuned version for the targets that it was not refused for before."""
    if not targets:
        return []
    state: Any = package_targets(uri, targets, *rest, return_state=True)
    found: list[Outcome] | Exception = state.result(raise_on_failure=False)
    if not isinstance(found, list):
        raise found
    return found
