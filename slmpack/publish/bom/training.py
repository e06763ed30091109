"""Training: what a tuned model was made from, as the run of its retraining tells.

models:/m-ID --tag slmpack.quality_chats--> runs:/ID --> its base, its settings, its data sets
"""

from typing import TYPE_CHECKING

from slmpack.records import ModelSource, Record
from slmpack.source.logged_model import chats_behind, chats_of
from slmpack.source.mlflow_errors import is_absent

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run

_SETTING = "training."
_CONTEXT = "mlflow.data.context"


class DataSet(Record):
    """Chats that a run was given.

    Attributes:
        digest: of the chats, as MLflow has it.
        use: what the run did with them: it learnt from them, or was judged by them.
        facts: counts of lines and chats, and the digest of all chats, by their names.
    """

    name: str
    digest: str
    use: str
    facts: dict[str, str]


class Training(Record):
    """A retraining, as its run tells it.

    Attributes:
        base: what was trained, in a name that travels; `revision` pins it.
        settings: of the training, by their names.
    """

    run_id: str
    base: str
    revision: str
    settings: dict[str, str]
    data: tuple[DataSet, ...]


def training_of(source: ModelSource) -> Training | None:
    """Return the retraining that a source came from; None where it did not, or its run is gone."""
    return _training_by(chats_of(source) or "")


def training_behind(revision: str) -> Training | None:
    """Return the same for a source that is known by what pins its content: of a model in MLflow, its id."""
    return _training_by(chats_behind(revision) or "")


def _training_by(chats: str) -> Training | None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not chats.startswith("runs:/"):
        return None
    run_id = chats.removeprefix("runs:/").partition("/")[0]
    try:
        return _told_by(MlflowClient().get_run(run_id))
    except MlflowException as error:
        if is_absent(error):
            return None
        raise


def _told_by(run: "Run") -> Training:
    parameters = run.data.params
    return Training(
        run_id=run.info.run_id,
        base=parameters.get("base", ""),
        revision=parameters.get("base_revision", ""),
        settings={
            name.removeprefix(_SETTING): value for name, value in parameters.items() if name.startswith(_SETTING)
        },
        data=tuple(map(_data_set, run.inputs.dataset_inputs if run.inputs else ())),
    )


def _data_set(given: "DatasetInput") -> DataSet:
    tags = {tag.key: tag.value for tag in given.tags}
    return DataSet(
        name=given.dataset.name,
        digest=given.dataset.digest,
        use=tags.get(_CONTEXT, "unknown"),
        facts={name: value for name, value in tags.items() if name.startswith("slmpack.")},
    )
