"""The MLflow experiment of all runs and logged models, and where its artifacts lie.

    it exists                 --> its artifact location            --> must last as long as the database, or is refused
    MLflow is a SQLite file   --> mlruns beside that file, said when the experiment is made
    MLflow is a server        --> the server's default, which its experiment "Default" shows
    another database          --> MLflow's default, `mlruns` in the working folder: refused, the database is elsewhere

Packages, checkpoints that are shared, tuned models and held-out chats are all artifacts of it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.errors import LogError
from slmpack.log.artifacts import Artifacts
from slmpack.log.lifetime import ROOT, database_folder, why_temporary
from slmpack.log.mlflow_server import shown
from slmpack.source.mlflow_errors import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "slmpack"
DEFAULT_EXPERIMENT = "0"
# Source: MLflow 3.17.2, tracking/_tracking_service/utils.py
SERVER_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"


def require_experiment(on_worker: bool = False) -> None:
    """Refuse a place for artifacts that is gone before the database that names them; nothing is made or changed.

    Args:
        on_worker: the working folder belongs to one run.

    Raises:
        LogError: the experiment is deleted, or its artifacts would not last or cannot be reached.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        _require_active(experiment)
        _require_lasting(experiment.artifact_location, str(experiment.experiment_id), on_worker)
    elif (location := _coming_location(client)) is not None:
        _require_lasting(location, None, on_worker)


def experiment_id(client: Any) -> str:
    """Return the id of the experiment that all runs belong to, made if need be.

    Raises:
        LogError: the experiment is deleted, or its artifacts would not last or cannot be reached.
    """
    experiment = made_experiment(client, EXPERIMENT)
    _require_lasting(experiment.artifact_location, str(experiment.experiment_id), on_worker=False)
    return str(experiment.experiment_id)


def made_experiment(client: Any, name: str) -> Any:
    """Return the experiment of a name, made if need be, with its artifacts where they last as long as the database.

    Raises:
        LogError: it is deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            client.create_experiment(name, location_beside(client.tracking_uri, Path.cwd()))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
        experiment = client.get_experiment_by_name(name)
    _require_active(experiment)
    return experiment


def location_beside(uri: str, working: Path) -> str | None:
    """Return the place that a new experiment is given; None where MLflow's own choice lasts, or is not ours to make."""
    database = database_folder(uri, working)
    if database is None or why_temporary(_default_root(), uri, working) is None:
        return None
    return (database / ROOT / EXPERIMENT).as_uri()


def _default_root() -> str:
    return os.environ.get(SERVER_ROOT) or ROOT


def _coming_location(client: "MlflowClient") -> str | None:
    """Return where a new experiment's artifacts will be; None where only the server knows."""
    from mlflow.exceptions import MlflowException

    uri, working = client.tracking_uri, Path.cwd()
    if not uri.startswith(("http:", "https:", "databricks")):
        is_file = database_folder(uri, working) is not None
        return location_beside(uri, working) or (str(working / _default_root()) if is_file else _default_root())
    try:
        shown_by = client.get_experiment(DEFAULT_EXPERIMENT)
    except MlflowException:  # deleted, or not to be seen by this user: the new experiment itself is looked at later
        return None
    return str(shown_by.artifact_location)


def _require_active(experiment: Any) -> None:
    if experiment.lifecycle_stage != "active":
        raise LogError(
            f"the MLflow experiment {EXPERIMENT} is deleted",
            "an active one",
            f"restore it: mlflow experiments restore -x {experiment.experiment_id}",
        )


def _require_lasting(location: str, experiment: str | None, on_worker: bool) -> None:
    """Refuse a location that is gone before one of the databases, or that this process cannot reach."""
    import mlflow

    verb = "are" if experiment else "would be"
    found = f"artifacts of the MLflow experiment {EXPERIMENT} {verb} at {shown(location)}"
    advice = _advice(mlflow.get_tracking_uri(), experiment)
    if (failure := _unreachable(location)) is not None:
        if location.startswith("mlflow-artifacts:"):
            advice = "set MLFLOW_TRACKING_URI to the address of the server that made it, not to its database"
        raise LogError(f"{found}: {failure}", "a place that this machine has a client for", advice)
    for uri in dict.fromkeys((mlflow.get_tracking_uri(), mlflow.get_registry_uri())):
        if (reason := why_temporary(location, uri, Path.cwd(), on_worker)) is not None:
            raise LogError(f"{found}, {reason}", f"a place that lasts as long as {shown(uri)}", advice)


def _advice(uri: str, experiment: str | None) -> str:
    """Say how to get an experiment elsewhere; MLflow moves none."""
    rename = f"mlflow experiments rename -x {experiment} --new-name {EXPERIMENT}-before"
    create = f"mlflow experiments create -n {EXPERIMENT} -l LOCATION"
    if experiment is None:
        return f"make it elsewhere: {create}"
    if database_folder(uri, Path.cwd()) is not None:
        return f"the next run makes one beside the database after: {rename}"
    return f"make another: {rename}, then {create}"


def _unreachable(location: str) -> str | None:
    """Return why MLflow has no client for the location: an unknown scheme, a package that is missing, no server."""
    from mlflow.exceptions import MlflowException

    try:
        Artifacts(location)
    except MlflowException as error:
        return one_line(error).partition(". ")[0]
    except ImportError as error:
        return str(error)
    return None
