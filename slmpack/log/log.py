"""Log: from a package to an MLflow logged model, its bytes written at most once.

    package --links--> staged folder --links, or one upload--> artifacts of the logged model; then READY

One MLflow run holds the facts of one packaging. It stays open until the model is published or refused. All that
stops the logging half-way leaves no READY model: it is deleted with its files, and the run says FAILED or KILLED.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack import progress
from slmpack.errors import LogError, SlmpackError, UsageError
from slmpack.log.artifacts import Artifacts
from slmpack.log.experiment import EXPERIMENT, experiment_id
from slmpack.log.health import is_usable
from slmpack.log.mlflow_server import check_name, require_registry
from slmpack.log.requirements import requirements_for, runtime_versions
from slmpack.log.staging import READ_ONLY, WRAPPER, link_or_copy, staged_model, write_manifest
from slmpack.log.tags import REFUSED
from slmpack.plain_text import tag_text
from slmpack.records import Interface, LoggedModel, Package, Target, digest_of
from slmpack.source.mlflow_errors import final_errors
from slmpack.source.names import NAME_TAG, logged_name, name_of_logged

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel as MlflowModel

__all__ = ["log_model", "logged_digest", "require_registry"]

logger = logging.getLogger(__name__)

MANIFEST_TAG = "slmpack.manifest"
PREFECT_RUN = "prefect_run"  # in a trace: the run that logs, which may be killed and go on


def logged_digest(package_digest: str, interface: Interface, target: Target) -> str:
    """Return the digest of what `log_model` would log, without the package: what a published version is found by."""
    wrapper = None if target is Target.TRANSFORMERS else hashlib.sha256(WRAPPER.read_bytes()).hexdigest()
    return digest_of([package_digest, interface, requirements_for(target), wrapper])


def log_model(package: Package, interface: Interface, name: str, workspace: Path, trace: dict[str, str]) -> LoggedModel:
    """Wrap `package` and log it, for the registered model `name`.

    Args:
        trace: where this comes from, such as the id of a Prefect run; becomes tags of the run and the model.

    Raises:
        UsageError: the target does not have the interface, or MLflow would refuse the name.
        LogError: MLflow would not take the model, or its artifact store has no room or no permission.
    """
    if package.target is Target.TRANSFORMERS and interface is not Interface.CHAT:
        raise UsageError(f"interface {interface} for target {package.target}", "chat", "leave --interface out")
    check_name(name)
    digest = logged_digest(package.digest, interface, package.target)
    with final_errors(LogError, "the model"):
        logged = _logged_before(name, digest, trace) or _log(package, interface, name, workspace, digest, trace)
    model_id, run_id = logged
    return LoggedModel(
        package=package,
        interface=interface,
        name=name,
        model_id=model_id,
        uri=f"models:/{model_id}",
        run_id=run_id,
        requirements=requirements_for(package.target),
        digest=digest,
    )


def _log(
    package: Package, interface: Interface, name: str, workspace: Path, digest: str, trace: dict[str, str]
) -> tuple[str, str]:
    """Return the ids of a new logged model and of its run."""
    facts = _facts_of(package, interface, digest)
    tags = {f"slmpack.{key}": value for key, value in trace.items()} | {"slmpack.digest": digest, NAME_TAG: name}
    with (
        _run(name, facts, tags) as (experiment_id, run_id),
        staged_model(package, interface, name, digest, workspace) as folder,
    ):
        model_id = _log_folder(folder, name, facts, tags, experiment_id, run_id)
    logger.info("logged %s for %s as %s", name, package.target, model_id)
    return model_id, run_id


def _logged_before(name: str, digest: str, trace: dict[str, str]) -> tuple[str, str] | None:
    """Return the ids of what this very Prefect run logged before it was killed, unless it was refused since."""
    if PREFECT_RUN not in trace:
        return None
    tags = {f"slmpack.{PREFECT_RUN}": trace[PREFECT_RUN], "slmpack.digest": digest}
    for logged in ready_models(tags):
        if name_of_logged(logged) == name and not logged.tags.get(REFUSED):
            logger.info("going on with %s, which this run logged before", logged.model_id)
            return str(logged.model_id), str(logged.source_run_id)
    return None


def ready_models(tags: dict[str, str]) -> "list[MlflowModel]":
    """Return the logged models that are READY, have all those tags and all their files, newest first."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    filter_string = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    newest_first = [{"field_name": "creation_timestamp", "ascending": False}]
    found = client.search_logged_models([experiment.experiment_id], filter_string, order_by=newest_first)
    return [logged for logged in found if str(logged.status) == "READY" and is_usable(logged)]


def _facts_of(package: Package, interface: Interface, digest: str) -> dict[str, str]:
    """Return the parameters of the run and the model; a source on this machine is given by its name only."""
    source = package.snapshot.source
    versions = package.versions | runtime_versions(package.target)
    facts = {
        "source": source.shown,
        "revision": source.revision,
        "target": str(package.target),
        "recipe": str(package.recipe or "none"),
        "exporter": package.exporter,
        "interface": str(interface),
        "digest": digest,
        "package_digest": package.digest,
        "size_bytes": str(package.size_bytes),
    }
    if source.base is not None:
        facts |= {"base": source.base.shown, "base_revision": source.base.revision}
    facts |= {f"version.{key}": value for key, value in sorted(versions.items())}
    return {key: tag_text(value) for key, value in facts.items()}


@contextmanager
def _run(name: str, facts: dict[str, str], tags: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the experiment's and a new run's id; the run ends only here if what is inside fails."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    experiment = experiment_id(client)
    run_id = client.create_run(experiment, run_name=f"{name} {facts['target']}", tags=tags).info.run_id
    try:
        client.log_batch(run_id, params=[Param(key, value) for key, value in facts.items()])
        yield experiment, run_id
    except BaseException as error:
        if _is_reachable():
            with suppress(Exception):  # the error that brought us here is the one to tell
                client.set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def _is_reachable() -> bool:
    """Tell whether tidying up makes sense: with the server gone, each call of MLflow's would try for minutes."""
    try:
        require_registry()
    except SlmpackError:
        return False
    return True


def _log_folder(
    folder: Path, name: str, facts: dict[str, str], tags: dict[str, str], experiment_id: str, run_id: str
) -> str:
    """Make a logged model of `folder` and return its id; READY is the last thing that it becomes."""
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput

    client = MlflowClient()
    logged = client.create_logged_model(experiment_id, logged_name(name), run_id, tags, facts, "pyfunc")
    try:
        digest = _write_ids(folder, logged.model_id, run_id)
        client.set_logged_model_tags(logged.model_id, {MANIFEST_TAG: digest})
        _put(folder, logged)
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        _discard(logged)
        raise
    return str(logged.model_id)


def _write_ids(folder: Path, model_id: str, run_id: str) -> str:
    """Finish the folder; return the digest of its manifest, which lists the rest."""
    from mlflow.models import Model

    model = Model.load(str(folder))
    model.model_id, model.run_id = model_id, run_id
    model.save(str(folder / "MLmodel"))
    digest = write_manifest(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(READ_ONLY)
    return digest


def _put(folder: Path, logged: "MlflowModel") -> None:
    """Give the artifact store the folder: linked where it is a local one, else uploaded; either way file by file."""
    from mlflow import MlflowClient

    local, client = Artifacts(logged.artifact_location).folder, MlflowClient()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    total, done = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        name = path.relative_to(folder)
        if local is not None:
            link_or_copy(path, local / name)
        else:
            client.log_model_artifact(logged.model_id, str(path), name.parent.as_posix().removeprefix("."))
        done += path.stat().st_size
        progress.report("log", done, total, "bytes")


def _discard(logged: "MlflowModel") -> None:
    """Leave nothing of a model that was logged in part, as far as MLflow can be reached."""
    from mlflow import MlflowClient

    if not _is_reachable():
        logger.warning("the logged model %s is left behind, not READY: MLflow cannot be reached", logged.model_id)
        return
    client = MlflowClient()
    with suppress(Exception):  # the error that brought us here is the one to tell
        client.finalize_logged_model(logged.model_id, "FAILED")
    with suppress(Exception):
        Artifacts(logged.artifact_location).delete()
    with suppress(Exception):
        client.delete_logged_model(logged.model_id)
