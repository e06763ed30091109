"""Retrain a model on chats, and package what is better for every target.

    resolve -> data -> (the same before? unchanged, or refused as then) -> fetch -> divide -> train -> measure ->
        judge -> register as models:/NAME/VERSION, alias `tuned` -> package-targets from that version

Nothing moves unless the tuned model is better on chats that were held out, and has not forgotten too much of the
general text, both against the model in use. Of two retrainings of one model at once, the one that comes second is not
registered: it was compared with what is no longer in use. A killed run goes on from its last checkpoint when it is
retried; what was registered and not packaged yet is packaged by the next run of the same.
"""

from typing import Any

from prefect import flow

from flows.package_targets import package_targets
from flows.parameters import (
    DataPolicyChoice,
    DataText,
    DispatchChoice,
    Force,
    Name,
    Policy,
    RetrainPolicyChoice,
    SourceText,
    TargetChoices,
    TrainSettingsChoice,
    Waiver,
    Workspace,
)
from slmpack.chats.dataset import ChatParts, DataPolicy
from slmpack.errors import QualityError
from slmpack.log.chat_artifacts import is_artifact
from slmpack.log.datasets import FoundData
from slmpack.log.mlflow_server import check_name
from slmpack.publish.outcome import Stages
from slmpack.publish.request import registered_name, workspace_of
from slmpack.records import Dispatch, Interface, ModelSource, Outcome, QualityPolicy, Recipe, Snapshot, Target
from slmpack.retrain.evaluate import Perplexities, RetrainOutcome, RetrainPolicy, TunedFigures, judge_tuned, retrain_key
from slmpack.retrain.lock import retrain_alone
from slmpack.retrain.mlflow_run import Retraining
from slmpack.retrain.refusals import PackageTerms
from slmpack.retrain.training.settings import TrainSettings
from slmpack.source.resolve import DEFAULT_SOURCE, shown_source
from tasks.fetch import fetch_snapshot
from tasks.outcome import completed_retraining, keep_retraining
from tasks.policies import INTERRUPTIONS
from tasks.registry import require_experiment
from tasks.resolve import chats_of, resolve_source
from tasks.retrain import (
    close_run,
    divide_data,
    find_data,
    find_refusals,
    find_settled,
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
from tasks.run_name import unless_given


def name_of_run(asked: dict[str, Any]) -> str:
    """Name the run by what it was asked for."""
    return f"retrain {shown_source(asked['base'])}"


@flow(name="retrain-model", flow_run_name=unless_given(name_of_run))
def retrain_model(
    data: DataText,
    base: SourceText = DEFAULT_SOURCE,
    name: Name = None,
    training: TrainSettingsChoice = TrainSettings(),  # noqa: B008 - frozen
    retrain_policy: RetrainPolicyChoice = RetrainPolicy(),  # noqa: B008 - frozen
    data_policy: DataPolicyChoice = DataPolicy(),  # noqa: B008 - frozen
    targets: TargetChoices = [Target.CPU_INT4],  # noqa: B006 - Prefect copies it, and the form shows it
    policy: Policy = QualityPolicy(),  # noqa: B008 - frozen
    waive_quality: Waiver = None,
    force: Force = False,
    workspace: Workspace = None,
    dispatch: DispatchChoice = Dispatch.HERE,
) -> Any:
    """Train, compare with what is in use, and package for every target only what is better."""
    stages, folder = Stages(), workspace_of(workspace)
    if name is not None:
        check_name(name)
    with stages("resolve"):
        require_experiment()
        source = resolve_source(base, folder)
        tuned_name = registered_name(name, source)
    with retrain_alone(tuned_name, folder):
        with stages("data"):
            found = find_data(data)
            looked_at = look_at_data(found, data_policy, folder)
        key = retrain_key(source, looked_at, training, retrain_policy)
        retraining = Retraining(name=tuned_name, base=source, data=looked_at, settings=training, key=key)
        with stages("find"):
            settled = None if force else find_settled(tuned_name, key)
        if settled is not None and settled.version is None:
            return ended(RetrainOutcome(
                status="refused", name=tuned_name, data=looked_at.digest, seconds=stages.seconds, reason=settled.reason,
                settled=True,
            ))  # fmt: skip
        if settled is not None:
            outcome = RetrainOutcome(status="unchanged", name=tuned_name, version=settled.version, settled=True)
        else:
            outcome = tune(retraining, found, retrain_policy, folder, stages)
        if outcome.version is None:
            return ended(outcome)
        packaged = package(outcome, targets, policy, waive_quality, workspace, dispatch)
        return ended(packaged.model_copy(update={"data": looked_at.digest, "seconds": stages.seconds}))


def tune(
    retraining: Retraining, found: FoundData, policy: RetrainPolicy, workspace: Any, stages: Stages
) -> RetrainOutcome:
    """Train and judge; what is better is registered."""
    with stages("fetch"):
        snapshot = fetch_snapshot(retraining.base, workspace)
    with stages("data"):
        read, parts = divide_data(found, retraining.data, snapshot, workspace)
        retraining = retraining.model_copy(update={"data": read})
        run_id = open_run(retraining, found.text if is_artifact(found.text) else None)
    try:
        with stages("train"):
            keep_held_out(run_id, parts)
            trained = train_adapter(snapshot, parts, retraining.settings, workspace, run_id)
            log_curve(run_id, trained)
            tuned = tuned_snapshot(trained, snapshot, workspace)
        with stages("measure"):
            beaten = version_in_use(retraining.name)
            in_use = snapshot_in_use(retraining.name, beaten, snapshot, workspace)
            figures = measure(snapshot, in_use, tuned, parts, workspace)
            log_tuned_figures(run_id, figures)
        try:
            judge_tuned(figures, policy)
        except QualityError as refusal:  # of a measurement that failed it would not be the policy's, for ever
            refuse_run(run_id, str(refusal))
            return RetrainOutcome(
                status="refused", name=retraining.name, data=retraining.data.digest, figures=figures,
                seconds=stages.seconds, reason=str(refusal),
            )  # fmt: skip
        with stages("log"):
            model = log_tuned(tuned, retraining, workspace)
            version = register_tuned(model, retraining, run_id, figures, beaten)
    except BaseException as error:  # MLflow that is gone and a cancellation, too
        status = "KILLED" if isinstance(error, INTERRUPTIONS) else "FAILED"
        close_run(run_id, status, return_state=True)  # where that fails as well, the first error is the one to tell
        raise
    return RetrainOutcome(status="published", name=retraining.name, version=version, figures=figures)


def measure(base: Snapshot, in_use: Snapshot, tuned: Snapshot, parts: ChatParts, workspace: Any) -> TunedFigures:
    """Measure the base, what is in use and what is new, each on both texts; the same model is measured once."""
    models = {"base": base, "in_use": in_use, "tuned": tuned}
    held_out: dict[str, float] = {}
    general: dict[str, float] = {}
    for model in {model.digest: model for model in models.values()}.values():
        held_out[model.digest] = held_out_perplexity(model, parts, workspace)
        general[model.digest] = general_perplexity(model, workspace)
    return TunedFigures(
        held_out=Perplexities(**{role: held_out[model.digest] for role, model in models.items()}),
        general=Perplexities(**{role: general[model.digest] for role, model in models.items()}),
    )


def snapshot_in_use(name: str, version: int | None, base: Snapshot, workspace: Any) -> Snapshot:
    """Return the tuned model in use, the base before there is one."""
    if version is None:
        return base
    source: ModelSource = resolve_source(f"models:/{name}/{version}", workspace)
    return fetch_snapshot(source, workspace)


def package(
    outcome: RetrainOutcome, targets: list[Target], policy: QualityPolicy, waiver: str | None, workspace: Any,
    dispatch: Dispatch,
) -> RetrainOutcome:  # fmt: skip
    """Package the tuned version, each package measured on the held-out answers as well; one there is is `unchanged`."""
    name, version = outcome.name, outcome.version
    assert name is not None
    assert version is not None
    uri = f"models:/{name}/{version}"
    asked = PackageTerms(policy=policy, waiver=waiver, chats=chats_of(resolve_source(uri, workspace_of(workspace))))
    known = find_refusals(name, version, targets, asked) if outcome.settled else {}
    made = package_rest(uri, name, [target for target in targets if target not in known], asked, workspace, dispatch)
    remember_refusals(name, version, made, asked)
    became = known | {each.target: each for each in made}
    packages = tuple(became[target] for target in targets)
    bad = [f"{each.target}: {each.reason}" for each in packages if each.reason is not None]
    moved = outcome.status == "published" or any(each.status == "published" for each in packages)
    return outcome.model_copy(update={
        "status": "failed" if bad else "published" if moved else "unchanged",
        "model_uri": uri, "targets": packages, "reason": "; ".join(bad) or None,
        "settled": outcome.settled and all(each.target in known or each.status == "unchanged" for each in packages),
    })  # fmt: skip


def package_rest(
    uri: str, name: str, targets: list[Target], asked: PackageTerms, workspace: Any, dispatch: Dispatch
) -> list[Outcome]:
    """Package the tuned version for what was not refused before."""
    if not targets:
        return []
    state: Any = package_targets(
        uri, targets, Recipe.AUTO, Interface.CHAT, name, False, asked.policy, asked.waiver, None, None, workspace,
        dispatch, asked.chats, return_state=True,
    )  # fmt: skip
    found: list[Outcome] | Exception = state.result(raise_on_failure=False)
    if not isinstance(found, list):
        raise found
    return found


def ended(outcome: RetrainOutcome) -> Any:
    """Keep the outcome with the run, and end with its line."""
    keep_retraining(outcome)
    return completed_retraining(outcome)
