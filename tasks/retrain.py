"""Retrain: data, training, figures and the tuned version, each a call of the library."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import task

from slmpack.chats.dataset import ChatData, DataPolicy
from slmpack.chats.parts import ChatParts
from slmpack.log import checkpoint, datasets
from slmpack.log.datasets import FoundData
from slmpack.prove.quality import general_text
from slmpack.publish.request import Request
from slmpack.records import LoggedModel, Snapshot, Target
from slmpack.reports import Outcome
from slmpack.retrain import data, evaluate, mlflow_run, refusals, tuned_model
from slmpack.retrain.evaluate import PreviousResult, TunedFigures
from slmpack.retrain.retraining import Retraining
from slmpack.retrain.training import train
from slmpack.retrain.training.settings import TrainSettings
from slmpack.retrain.training.train import Tuned
from tasks.policies import INTERRUPTIONS, LOCAL, REMOTE
from tasks.progress import progress_artifact
from tasks.trace import trace_of_run


@task(task_run_name="look for {text}", **REMOTE)
def find_data(text: str) -> FoundData:
    """Find what a dataset's name stands for now; retried, since MLflow is remote."""
    return datasets.find_data(text)


@task(task_run_name="look at {found.text}", **REMOTE)
def look_at_data(found: FoundData, policy: DataPolicy, workspace: Path) -> ChatData:
    """Read every line; retried, since the data may be in MLflow."""
    return data.look_at_data(found, policy, workspace)


@task(task_run_name="divide {found.text}", **REMOTE)
def divide_data(
    found: FoundData, looked_at: ChatData, snapshot: Snapshot, workspace: Path
) -> tuple[ChatData, ChatParts]:
    """Read every line as the model does, and put the two parts into the workspace."""
    return data.divide_data(found, looked_at, snapshot, workspace)


@task(task_run_name="look for the same retraining of {name}", **REMOTE)
def find_previous_result(name: str, key: str) -> PreviousResult | None:
    """Look for a run that ended; retried, since MLflow is remote."""
    return evaluate.find_previous_result(name, key)


@task(task_run_name="look for what is in use of {name}", **REMOTE)
def version_in_use(name: str) -> int | None:
    """Return the tuned version in use; retried, since the registry is remote."""
    return evaluate.version_in_use(name)


@task(task_run_name="begin the MLflow run of {retraining.name}", **REMOTE)
def open_run(retraining: Retraining, data_source: str | None) -> str:
    """Begin the run, or find the one that this run began before; retried, since MLflow is remote."""
    return mlflow_run.open_run(retraining, data_source, trace_of_run())


@task(task_run_name="keep the held-out chats", **REMOTE)
def keep_held_out(run_id: str, parts: ChatParts) -> None:
    """Keep what packages are measured on with the run; retried, since MLflow is remote."""
    mlflow_run.keep_held_out(run_id, parts)


@task(task_run_name="look for refusals of {name} {version}", **REMOTE)
def find_refusals(name: str, version: int, requests: list[Request]) -> dict[Target, Outcome]:
    """Look for targets that were refused before; retried, since the registry is remote."""
    return refusals.find_refusals(name, version, requests)


@task(task_run_name="remember refusals of {name} {version}", **REMOTE)
def remember_refusals(name: str, version: int, outcomes: list[Outcome], requests: list[Request]) -> None:
    """Leave them on the version; retried, since the registry is remote."""
    refusals.remember_refusals(name, version, outcomes, requests)


@task(task_run_name="train {snapshot.source.name}", **LOCAL)
@progress_artifact("train")
def train_adapter(snapshot: Snapshot, parts: ChatParts, settings: TrainSettings, workspace: Path, run_id: str) -> Tuned:
    """Train, or go on where a killed run was; not retried by itself."""
    return train.train_adapter(snapshot, parts.training, settings, workspace, mlflow_run.tell_losses(run_id))


@task(task_run_name="keep the loss curve", **REMOTE)
def log_curve(run_id: str, trained: Tuned) -> None:
    """Keep the curve with the run; retried, since MLflow is remote."""
    mlflow_run.log_curve(run_id, trained.path)


@task(task_run_name="take the tuned model", **LOCAL)
def tuned_snapshot(trained: Tuned, base: Snapshot, workspace: Path) -> Snapshot:
    """Check the tuned checkpoint as any other."""
    return tuned_model.tuned_snapshot(trained, base, workspace)


@task(task_run_name="held-out perplexity of {snapshot.source.name}", **LOCAL)
@progress_artifact("measure")
def held_out_perplexity(snapshot: Snapshot, parts: ChatParts, workspace: Path) -> float:
    """Run the model on the held-out chats."""
    return tuned_model.held_out_perplexity(snapshot, parts, workspace)


@task(task_run_name="general perplexity of {snapshot.source.name}", **LOCAL)
@progress_artifact("measure")
def general_perplexity(snapshot: Snapshot, workspace: Path) -> float:
    """Run the model on the general text."""
    return general_text.general_perplexity(snapshot, workspace)


@task(task_run_name="log the figures", **REMOTE)
def log_tuned_figures(run_id: str, figures: TunedFigures) -> None:
    """Log the perplexities; retried, since MLflow is remote."""
    mlflow_run.log_tuned_figures(run_id, figures)


@task(task_run_name="log the tuned {retraining.name}", **REMOTE)
@progress_artifact("log")
def log_tuned(snapshot: Snapshot, retraining: Retraining, workspace: Path) -> LoggedModel:
    """Log the tuned checkpoint; retried, since MLflow is remote."""
    return checkpoint.log_checkpoint(snapshot, retraining.name, workspace, trace_of_run())


@task(task_run_name="register the tuned {retraining.name}", **REMOTE)
def register_tuned(
    model: LoggedModel, retraining: Retraining, run_id: str, figures: TunedFigures, beaten: int | None
) -> int:
    """Register the version and move its alias; retried, since the registry is remote."""
    return mlflow_run.register_tuned(model, retraining, run_id, figures, beaten)


@task(task_run_name="refuse the tuned model", **LOCAL)
def refuse_run(run_id: str, reason: str) -> None:
    """Leave the reason on the run."""
    mlflow_run.refuse_run(run_id, reason)


@task(task_run_name="close the MLflow run", **LOCAL)
def close_run(run_id: str, status: str) -> None:
    """Close the run of a retraining that failed."""
    mlflow_run.close_run(run_id, status)


@contextmanager
def closing_failed(run_id: str) -> Iterator[None]:
    """Close the MLflow run if the block fails: MLflow that is gone and a cancellation count, too."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, INTERRUPTIONS) else "FAILED"
        close_run(run_id, status, return_state=True)  # where that fails as well, the first error is the one to tell
        raise
