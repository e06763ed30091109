"""Chats that MLflow knows by name: `datasets:/NAME` becomes the path or the artifact that its newest dataset is.

    datasets:/NAME --> the run that began last of those with an input NAME --> its artifact of the file's name
                                                                           +-> else the dataset's source

What MLflow calls a dataset is an input of a run, and that is what somebody has who logs chats:

    dataset = mlflow.data.from_pandas(chats, source="chats.jsonl", name="help-desk")
    with mlflow.start_run():
        mlflow.log_artifact("chats.jsonl")
        mlflow.log_input(dataset)

MLflow keeps its name, its digest and where it is, not the chats. `from_pandas` takes a path for a source and no
artifact's URI, and a path is of the machine that logged it; hence the run's own artifact comes first. A source can be
an artifact's URI where the input was logged otherwise, as a retraining's own inputs are. Those are no news: they are
what was learnt from already, and are passed over.

The datasets of `mlflow.genai` are others: questions and what is expected of an answer, to evaluate by, and no chats.

Source: MLflow 3.17.2, mlflow/data/artifact_dataset_sources.py; `search_runs` with `dataset.name` gives all inputs of
the runs that it finds.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from slmpack.errors import DataError, UsageError
from slmpack.log.trace_chats import SCHEME as TRACES
from slmpack.log.trace_chats import at_this_moment
from slmpack.machine.bounded_file import parse_json
from slmpack.records import Record
from slmpack.source.mlflow_errors import final_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, Experiment, Run

logger = logging.getLogger(__name__)

SCHEME = "datasets:/"
OURS = "slmpack.data_digest"  # the tag of an input that a retraining logged
RUNS_A_PAGE = 100
_NAME = re.compile(r"[^'\"`\\\s]([^'\"`\\\r\n]*[^'\"`\\\s])?")  # quotes end a search
_ADVICE = "name the file as its source, and log it with mlflow.log_artifact in the same run"


class FoundData(Record):
    """Where a retraining's data are.

    Attributes:
        text: a path, or the URI of an artifact in MLflow.
        name: of the dataset in MLflow; None where the data were not named by one.
        digest: what MLflow has for its digest, as the logging program gave it.
    """

    text: str
    name: str | None = None
    digest: str | None = None


def find_data(text: str) -> FoundData:
    """Return where the data are that `text` names; a dataset is looked up, and traces are those of now.

    Raises:
        UsageError: no name that a dataset can be found by.
        DataError: no run has such a dataset, or what it is cannot be read.
    """
    if text.startswith(TRACES):
        return FoundData(text=at_this_moment(text), name=text.partition("?")[0])
    if not text.startswith(SCHEME):
        return FoundData(text=text)
    name = text.removeprefix(SCHEME)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{text!r} names no dataset", f"{SCHEME}NAME, without quotes", "correct the name")
    from mlflow import MlflowClient

    client = MlflowClient()
    with final_errors(DataError, f"to look for {text}"):
        run, dataset = _newest(client, name)
        found = FoundData(text=_place_of(client, run, dataset), name=name, digest=dataset.digest)
    logger.info("%s is %s, digest %s in MLflow", text, found.text, found.digest)
    return found


def _newest(client: "MlflowClient", name: str) -> "tuple[Run, Dataset]":
    for run in _runs_with(client, name):
        inputs = run.inputs.dataset_inputs if run.inputs else []
        found = [each.dataset for each in inputs if each.dataset.name == name and not _is_ours(each)]
        if len(found) > 1:
            raise DataError(
                f"run {run.info.run_id} has {len(found)} datasets of the name {name}",
                "one",
                "log them under names of their own, or name the file as runs:/ID/PATH",
            )
        if found:
            return run, found[0]
    raise DataError(
        f"no run in MLflow has a dataset {name} for its input",
        "one that was logged with mlflow.log_input",
        "check the name, and MLFLOW_TRACKING_URI",
    )


def _runs_with(client: "MlflowClient", name: str) -> "Iterator[Run]":
    """Yield the runs of all experiments that have it, the last to begin first."""
    experiments = [each.experiment_id for each in _experiments(client)]
    token = None
    while experiments and token != "":
        page = client.search_runs(
            experiments,
            f"dataset.name = '{name}'",
            max_results=RUNS_A_PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from page
        token = page.token or ""


def _experiments(client: "MlflowClient") -> "Iterator[Experiment]":
    token = None
    while token != "":
        page = client.search_experiments(page_token=token)
        yield from page
        token = page.token or ""


def _is_ours(found: "DatasetInput") -> bool:
    return any(tag.key == OURS for tag in found.tags)


def _place_of(client: "MlflowClient", run: "Run", dataset: "Dataset") -> str:
    """Return the artifact or the path that the dataset is.

    Raises:
        DataError: it is neither, or not on this machine.
    """
    subject = f"the dataset {dataset.name} of run {run.info.run_id}"
    source = _uri_of(dataset)
    if source is None:
        raise DataError(
            f"{subject} has a source of type {dataset.source_type}", "a file or an artifact in MLflow", _ADVICE
        )
    if urlsplit(source).scheme not in {"", "file"}:
        return source
    path = Path(unquote(urlsplit(source).path) if source.startswith("file:") else source)
    if any(each.path == path.name for each in client.list_artifacts(run.info.run_id)):
        return f"runs:/{run.info.run_id}/{path.name}"
    if not path.exists():
        raise DataError(
            f"{subject} is {path}, which is not here", "an artifact in MLflow, or a file of this machine", _ADVICE
        )
    return str(path.absolute())


def _uri_of(dataset: "Dataset") -> str | None:
    """Return the URI of a source that is a file or an artifact; MLflow has no type for its own artifacts."""
    try:
        source = parse_json(dataset.source.encode())
    except ValueError:
        return None
    uri = source.get("uri") if isinstance(source, dict) and dataset.source_type == "local" else None
    return uri if isinstance(uri, str) and uri else None
