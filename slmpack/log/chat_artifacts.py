"""Chat data in MLflow: fetched from its artifacts, and logged with a run as its training and evaluation data.

    a path, runs:/ID/chats.jsonl, datasets:/NAME, ... --fetch_data--> a path of this machine --check_chats--> ChatData
    ChatData --log_chat_dataset--> two dataset inputs of the run: `training` and `held-out`

MLflow knows a dataset by its name and digest, within an experiment. So each part has the digest of its own chats, and
is the same dataset wherever the same chats come from. The tags of an input are of that run; the profile is of the
first run that logged the part.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from slmpack.chats.dataset import ChatData
from slmpack.errors import DataError, PublishError, UsageError
from slmpack.log.datasets import find_data
from slmpack.log.mlflow_server import without_password
from slmpack.log.trace_chats import SCHEME as TRACES
from slmpack.log.trace_chats import write_good_chats
from slmpack.machine.surroundings import typed_path
from slmpack.records import digest_of
from slmpack.source.mlflow_errors import final_errors
from slmpack.source.model_uris import artifact_form

DIGEST_CHARACTERS = 36  # Source: MLflow 3.17.2, mlflow/utils/validation.py, MAX_DATASET_DIGEST_SIZE
TRAINING, HELD_OUT = "training", "held-out"  # what MLflow calls the context of an input

_FORMS = (
    "a path, runs:/RUN_ID/PATH, models:/NAME/VERSION/PATH, models:/NAME@ALIAS/PATH, mlflow-artifacts:/PATH.jsonl, "
    "datasets:/NAME or traces:/EXPERIMENT"
)
_FORM = re.compile(
    r"runs:/[0-9a-f]{32}/[^/].*"
    r"|datasets:/.*"
    r"|traces:/[^/].*"
    r"|mlflow-artifacts:/.*[^/]\.jsonl?"  # never a folder: the top one holds all that the server has
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def is_artifact(text: str) -> bool:
    """Tell whether `text` names data in MLflow and not a path.

    Raises:
        UsageError: it is a URI, but none of an artifact in MLflow.
    """
    if not _SCHEME.match(text):
        return False
    if not _FORM.fullmatch(text) and not artifact_form(text):
        raise UsageError(f"{text!r} names no data in MLflow", _FORMS, "write one of those, or download it first")
    return True


def fetch_data(text: str, into: Path) -> Path:
    """Return the path of the file or folder of chats that `text` names; an artifact of MLflow is downloaded.

    Args:
        into: where artifacts are put, in a folder of their own that is emptied first.

    Raises:
        UsageError: it is a URI, but none of an artifact in MLflow.
        DataError: there is no such artifact or dataset, or no room for it.
    """
    if is_artifact(text):
        text = find_data(text).text
    if not is_artifact(text):
        return typed_path(text)
    place = into / digest_of(text)[:12]
    shutil.rmtree(place, ignore_errors=True)  # of a folder, what was there before would be read as well
    place.mkdir(parents=True)
    if text.startswith(TRACES):
        return write_good_chats(text, place)
    import mlflow

    with _translated(text), final_errors(DataError, f"to give {text}"):
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=text, dst_path=str(place)))


@contextmanager
def _translated(text: str) -> Iterator[None]:
    """Turn what MLflow calls internal, and is not, into our error."""
    import mlflow
    from mlflow.exceptions import MlflowException

    address = mlflow.get_tracking_uri()
    if text.startswith("mlflow-artifacts:") and urlsplit(address).scheme not in {"http", "https"}:
        raise DataError(f"{text} is on an MLflow server", "the address of one", "set MLFLOW_TRACKING_URI")
    try:
        yield
    except MlflowException as error:
        if "404 Client Error" not in error.message:
            raise
        raise DataError(f"MLflow has no {text}", _FORMS, "check the path") from error


def log_chat_dataset(run_id: str, data: ChatData, name: str, source: str | None = None) -> None:
    """Tell the run what it learns from and what it is measured by; the same call again adds nothing.

    Args:
        name: what MLflow calls the data set.
        source: the MLflow URI that it was fetched from; None for a path, of which only the name is logged.

    Raises:
        PublishError: MLflow refuses, or has no such run.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    counts = _counts_of(data)
    tags = [InputTag(f"slmpack.{key}", str(value)) for key, value in counts.items()]
    inputs = [
        DatasetInput(
            Dataset(
                name=name,
                digest=digest[:DIGEST_CHARACTERS],
                source_type="local",  # MLflow has no type for its own artifacts; this one holds any URI
                source=json.dumps({"uri": without_password(source or data.name)}),
                schema=json.dumps(_schema()),
                profile=json.dumps({"num_rows": rows} | counts),
            ),
            [InputTag(MLFLOW_DATASET_CONTEXT, context), *tags],
        )
        for context, digest, rows in (
            (TRAINING, data.training_digest, data.training),
            (HELD_OUT, data.held_out_digest, data.held_out),
        )
    ]
    with final_errors(PublishError, f"to log the data set {name}"):
        MlflowClient().log_inputs(run_id, inputs)


def _counts_of(data: ChatData) -> dict[str, int | float | str]:
    return {
        "data_digest": data.digest,
        "training": data.training,
        "held_out": data.held_out,
        "held_out_share": data.policy.held_out_share,
        "lines": data.lines,
        "bad": data.bad,
        "duplicates": data.duplicates,
        "mended": data.repaired,  # a tag's name stays
    }


def _schema() -> dict[str, object]:
    """Return the columns as MLflow's own datasets tell them."""
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType, Object, Property

    turn = Object([Property("role", DataType.string), Property("content", DataType.string)])
    return {"mlflow_colspec": Schema([ColSpec(Array(turn), "messages")]).to_dict()}
