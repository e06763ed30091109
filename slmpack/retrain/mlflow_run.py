"""A retraining's MLflow run: its data sets, parameters, loss curve and figures, and the tuned model that came of it.

run --inputs--> data sets      run --outputs--> logged model --registered--> version with alias `tuned`
metrics train_loss, learning_rate, tokens_per_second by step; training/loss.svg, training/training.json
data/held-out.jsonl: the chats that every package of the tuned model is measured on, wherever it is made
"""

import io
import logging
import time
from pathlib import Path
from typing import Any

from slmpack.chats.parts import HELD_OUT, ChatParts
from slmpack.errors import PublishError
from slmpack.figures import perplexity_shown
from slmpack.log.chat_artifacts import log_chat_dataset
from slmpack.log.experiment import EXPERIMENT, experiment_id
from slmpack.log.log import PREFECT_RUN
from slmpack.log.tags import REFUSED, RETRAINED, VERSION_OF_LOGGED, version_tags
from slmpack.plain_text import tag_text
from slmpack.records import LoggedModel
from slmpack.retrain.evaluate import (
    TUNED_ALIAS,
    TunedFigures,
    usable_versions,
    version_in_use,
)
from slmpack.retrain.retraining import Retraining
from slmpack.retrain.training.losses import OnPoint, TrainingPoint
from slmpack.retrain.training.train import TRAINING, read_training
from slmpack.source.logged_model import QUALITY_CHATS
from slmpack.source.mlflow_errors import final_errors

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_BATCHES = 5.0
CURVE = "training/loss.svg"
HELD_OUT_FOLDER = "data"
HELD_OUT_CHATS = f"{HELD_OUT_FOLDER}/{HELD_OUT}"


def open_run(retraining: Retraining, data_source: str | None, trace: dict[str, str]) -> str:
    """Return the id of the run, a new one unless this very Prefect run began one before it was killed.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    with final_errors(PublishError, f"to begin retraining {retraining.name}"):
        run_id = _begun_before(client, retraining.key, trace) or _begin(client, retraining, trace)
        facts = {
            "name": retraining.name,
            "base": retraining.base.shown,
            "base_revision": retraining.base.revision,
            "data": retraining.data.name,
            "data_digest": retraining.data.digest,
            **{f"training.{key}": str(value) for key, value in retraining.settings.model_dump().items()},
        }
        client.log_batch(run_id, params=[Param(key, tag_text(str(value))) for key, value in facts.items()])
        log_chat_dataset(run_id, retraining.data, retraining.data.name, data_source)
    return run_id


def _begun_before(client: Any, key: str, trace: dict[str, str]) -> str | None:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or PREFECT_RUN not in trace:
        return None
    filter_string = f"tags.`{RETRAINED}` = '{key}' AND tags.`slmpack.{PREFECT_RUN}` = '{trace[PREFECT_RUN]}'"
    found = client.search_runs([experiment.experiment_id], filter_string)
    return str(found[0].info.run_id) if found else None


def _begin(client: Any, retraining: Retraining, trace: dict[str, str]) -> str:
    tags = {f"slmpack.{key}": value for key, value in trace.items()} | {RETRAINED: retraining.key}
    run = client.create_run(experiment_id(client), run_name=f"retrain {retraining.name}", tags=tags)
    return str(run.info.run_id)


def keep_held_out(run_id: str, parts: ChatParts) -> None:
    """Keep the held-out chats with the run; the same call again changes nothing.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    with final_errors(PublishError, "to keep the held-out chats"):
        MlflowClient().log_artifact(run_id, str(parts.held_out), HELD_OUT_FOLDER)


def tell_losses(run_id: str) -> OnPoint:
    """Return what logs a training's points as metrics, a batch every few seconds and the last one at once.

    Of a run that was killed and goes on, the steps that it had logged are not logged again.
    """
    waiting: list[TrainingPoint] = []
    known: set[int] | None = None
    sent_at = time.monotonic()

    def tell(point: TrainingPoint) -> None:
        nonlocal sent_at, known
        known = _steps_logged(run_id) if known is None else known
        if point.step not in known:
            waiting.append(point)
        if point.step == point.steps or time.monotonic() - sent_at >= SECONDS_BETWEEN_BATCHES:
            _log_points(run_id, waiting)
            waiting.clear()
            sent_at = time.monotonic()

    return tell


def _steps_logged(run_id: str) -> set[int]:
    from mlflow import MlflowClient

    return {point.step for point in MlflowClient().get_metric_history(run_id, "train_loss")}


def _log_points(run_id: str, points: list[TrainingPoint]) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(name, value, now, point.step)
        for point in points
        for name, value in (
            ("train_loss", point.loss),
            ("learning_rate", point.learning_rate),
            ("tokens_per_second", point.tokens_per_second),
        )
    ]
    for start in range(0, len(metrics), 900):  # MLflow takes 1,000 at a time
        MlflowClient().log_batch(run_id, metrics=metrics[start : start + 900])


def log_curve(run_id: str, tuned: Path) -> None:
    """Keep the whole curve with the run, as a drawing and as JSON.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    training = read_training(tuned)
    with final_errors(PublishError, "to keep the loss curve"):
        known = _steps_logged(run_id)
        _log_points(run_id, [point for point in training.curve if point.step not in known])  # where it was at hand
        MlflowClient().log_text(run_id, curve_svg(list(training.curve)), CURVE)
        MlflowClient().log_artifact(run_id, str(tuned / TRAINING), "training")


def curve_svg(points: list[TrainingPoint]) -> str:
    """Draw the loss by step."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.plot([point.step for point in points], [point.loss for point in points], linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.grid(alpha=0.3)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def log_tuned_figures(run_id: str, figures: TunedFigures) -> None:
    """Log the perplexities; the same call again adds nothing.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    with final_errors(PublishError, "to log what was measured"):
        known = client.get_run(run_id).data.metrics
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in figures.metrics().items() if known.get(name) != value]
        client.log_batch(run_id, metrics=metrics)


def refuse_run(run_id: str, reason: str) -> None:
    """Leave on the run why nothing was registered.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    with final_errors(PublishError, "to mark the run as refused"):
        MlflowClient().set_tag(run_id, REFUSED, tag_text(reason)[:1000])
        MlflowClient().set_terminated(run_id, "FAILED")


def close_run(run_id: str, status: str) -> None:
    """Close a run that came to no end as FAILED or KILLED; it may be tried again.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    with final_errors(PublishError, "to close the run"):
        MlflowClient().set_terminated(run_id, status)


def register_tuned(
    model: LoggedModel, retraining: Retraining, run_id: str, figures: TunedFigures, beaten: int | None
) -> int:
    """Register the tuned model as a version and move the alias `tuned` to it; the same call again adds nothing.

    Args:
        beaten: the version in use that it was compared with; None if that was the base.

    Returns:
        The version's number.

    Raises:
        PublishError: MLflow refuses, or another version is in use now.
    """
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    client, name = MlflowClient(), retraining.name
    tags = _tags_of(model, retraining, run_id, figures)
    with final_errors(PublishError, f"to register {name}"):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = usable_versions(name, retraining.key)
        in_use = version_in_use(name)
        if in_use != beaten and in_use not in {int(version.version) for version in known}:
            raise PublishError(
                f"{name} version {in_use} came into use meanwhile",
                f"version {beaten}, which this one was compared with" if beaten else "none",
                "start again: it is compared with the new one, and not trained again",
            )
        # First: a version without it would be packaged without its chats.
        client.set_logged_model_tags(model.model_id, {QUALITY_CHATS: f"runs:/{run_id}/{HELD_OUT_CHATS}"})
        version = (
            known[-1]
            if known
            else client.create_model_version(
                name, model.uri, run_id, tags, description=_description(retraining, figures), model_id=model.model_id
            )
        )
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.set_registered_model_alias(name, TUNED_ALIAS, version.version)
        client.set_tag(run_id, VERSION_OF_LOGGED, version.version)
        client.set_terminated(run_id, "FINISHED")
    logger.info("registered %s version %s, tuned from %s", name, version.version, retraining.parent)
    return int(version.version)


def _tags_of(model: LoggedModel, retraining: Retraining, run_id: str, figures: TunedFigures) -> dict[str, str]:
    data = retraining.data
    return version_tags(
        {
            "retrained": retraining.key,
            "parent": retraining.parent,
            "base": retraining.base.shown,
            "base_revision": retraining.base.revision,
            "data": data.name,
            "data_digest": data.digest,
            "mlflow_run": run_id,
            "licence": model.package.snapshot.licence or "unknown",
            **figures.metrics(),
        }
    )


def _description(retraining: Retraining, figures: TunedFigures) -> str:
    data = retraining.data
    rows = "\n".join(
        f"| {name} | {' | '.join(map(perplexity_shown, (found.base, found.in_use, found.tuned)))} |"
        for name, found in (("held-out answers", figures.held_out), ("general text", figures.general))
    )
    origin = f"Tuned from {retraining.parent} on {data.training} chats of {data.name} ({data.held_out} held out)."
    return f"{tag_text(origin)}\n\n| perplexity | base | in use before | tuned |\n|---|---|---|---|\n{rows}"
