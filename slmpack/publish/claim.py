"""Claim: of all publishers of one digest, exactly one version remains, and all of them know which.

MLflow has no compare-and-swap, so each makes a version that carries the digest and searches the digest afterwards:
the lowest number wins, and a publisher that sees an unpublished loser deletes it.
"""

import logging
from typing import TYPE_CHECKING

from slmpack.errors import PublishError
from slmpack.log.tags import DIGEST, MODEL_ID, PERMISSION_DENIED, PUBLISHED, facts_in
from slmpack.publish.find import whole_versions
from slmpack.records import LoggedModel
from slmpack.source.mlflow_errors import is_absent

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)


def claim_version(model: LoggedModel, tags: dict[str, str], force: bool) -> "ModelVersion":
    """Return the one version of the digest (with `force`: of the logged model), made if there is none."""
    from mlflow import MlflowClient

    _require_registered_model(model.name)
    key, value = (MODEL_ID, model.model_id) if force else (DIGEST, model.digest)
    if not whole_versions(model.name, key, value):
        MlflowClient().create_model_version(
            model.name, model.uri, model.run_id, tags=tags, model_id=model.model_id, await_creation_for=0
        )
    found = whole_versions(model.name, key, value)
    if not found:
        raise PublishError(f"the version of {model.uri} was deleted while it was published", "", "publish again")
    winner, *others = found
    for other in others:
        # one that is not ours was left by a loser that was killed, or its owner is about to delete it
        if PUBLISHED not in other.tags and facts_in(other.tags).get("forced") == "false":
            logger.info("version %s of the same digest came before version %s", winner.version, other.version)
            delete_version(other)
    return winner


def _require_registered_model(name: str) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient().create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def delete_version(version: "ModelVersion") -> None:
    """Delete a version that was not published; where this user may not, it stays, and is nobody's."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient().delete_model_version(version.name, version.version)
    except MlflowException as error:
        if error.error_code == PERMISSION_DENIED:
            logger.warning(
                "%s version %s stays, not published: this user may not delete it", version.name, version.version
            )
        elif not is_absent(error):
            raise
