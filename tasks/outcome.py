"""Outcome: what became of a target, an artifact of the run for people and for a run elsewhere that waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import ArtifactSort
from prefect.states import Completed, Failed

from slmpack.errors import SlmpackError
from slmpack.log.links import linked, version_link
from slmpack.publish.outcome import describe_outcome, failed_outcome, is_published, summary_of
from slmpack.records import Record, Target
from slmpack.reports import Outcome
from slmpack.retrain.evaluate import RetrainOutcome, describe_retraining

KEY = "outcome"
BEGIN, END = "```json\n", "\n```\n"


def keep_outcome(outcome: Outcome) -> None:
    """Keep it as the run's artifact; a run that is retried keeps a newer one."""
    _keep(outcome, linked(describe_outcome(outcome), outcome.name, outcome.version))


@contextmanager
def keeping_failure(target: Target, errors: type[SlmpackError] | tuple[type[SlmpackError], ...]) -> Iterator[None]:
    """Keep the outcome of a run that ends with one of `errors`: a run for several targets waits for it."""
    try:
        yield
    except errors as error:
        keep_outcome(failed_outcome(target, error))
        raise


def _keep(outcome: Record, summary: str) -> None:
    text = f"{summary}\n\n{BEGIN}{outcome.model_dump_json(indent=1)}{END}"
    create_markdown_artifact(text, key=KEY, description=summary)


def keep_outcomes(outcomes: list[Outcome]) -> None:
    """Keep a table of what became of each target."""
    table = [
        {
            "target": each.target.value,
            "status": each.status,
            "recipe": each.recipe and each.recipe.value,
            "version": each.version and version_link(str(each.name), each.version),
            "reason": each.reason or "; ".join(each.unhealthy) or None,
        }
        for each in outcomes
    ]
    create_table_artifact(table, key="targets", description=summary_of(outcomes))


def completed(outcome: Outcome) -> Any:
    """Keep the outcome and return the state that the run ends in; the dashboard shows its message: `unchanged: ...`."""
    keep_outcome(outcome)
    return Completed(message=describe_outcome(outcome), data=outcome)


def ended(outcomes: list[Outcome]) -> State[Any]:
    """Keep the outcomes and return the state that the run ends in: Failed unless every target is published."""
    keep_outcomes(outcomes)
    state = Completed if is_published(outcomes) else Failed
    return state(message=summary_of(outcomes), data=outcomes)


def keep_retraining(outcome: RetrainOutcome) -> None:
    """Keep what became of a retraining as the run's artifact, and a table of its perplexities."""
    _keep(outcome, linked(describe_retraining(outcome), outcome.name, outcome.version))
    if outcome.figures is not None:
        table = [
            {"perplexity of": "held-out answers", **outcome.figures.held_out.model_dump()},
            {"perplexity of": "general text", **outcome.figures.general.model_dump()},
        ]
        create_table_artifact(table, key="perplexities", description=outcome.figures.summary)


def completed_retraining(outcome: RetrainOutcome) -> Any:
    """Keep the outcome and return the state that a retraining ends in: Failed unless all of it is published.

    A refusal that is known from a run before wakes nobody a second time, however often the same data are polled.
    """
    keep_retraining(outcome)
    if outcome.settled and outcome.reason is not None:
        return Completed(name="Refused before", message=describe_retraining(outcome), data=outcome)
    state = Completed if outcome.reason is None else Failed
    return state(message=describe_retraining(outcome), data=outcome)


def read_outcome(flow_run_id: UUID) -> Outcome | None:
    """Return the run's latest outcome, wherever it ran; None if it came to no end of its own."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]), key=ArtifactFilterKey(any_=[KEY])
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
    if not found:
        return None
    return Outcome.model_validate_json(str(found[0].data).partition(BEGIN)[2].partition(END)[0])
