"""Health: whether all the files of a logged model are there, each of its size; none of its weights is read.

    manifest.json, artifacts/package/manifest.json   --names and sizes--> compared with what the artifact store lists

A file that was changed in place keeps its size; `read_back` finds it, which reads all of them.
"""

import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from slmpack.log.artifacts import Artifacts
from slmpack.log.staging import PACKAGE_FOLDER
from slmpack.log.tags import clear_logged_tag, clear_version_tag
from slmpack.machine.store import MANIFEST, Manifest
from slmpack.plain_text import tag_text
from slmpack.source.mlflow_errors import is_absent

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel as MlflowModel
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

UNHEALTHY = "slmpack.unhealthy"  # of a version or a logged model: when its files were found missing, and which
CONTENT = "other content: "
PACKAGE_MANIFEST = f"{PACKAGE_FOLDER}/{MANIFEST}"
REASON_CHARACTERS = 400


def damage_of(model_id: str) -> str | None:
    """Return why the logged model cannot be used, in words; None if all of its files are there."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        logged = MlflowClient().get_logged_model(model_id)
        if str(logged.status) != "READY":
            return f"its logged model {model_id} is {logged.status}"
        return _damage_in(logged)
    except MlflowException as error:
        if is_absent(error):
            return f"its logged model {model_id} is deleted"
        raise


def _damage_in(logged: "MlflowModel") -> str | None:
    """Compare the list of the artifact store with the lists that the model brought along."""
    artifacts = Artifacts(logged.artifact_location)
    location, found = artifacts.location, artifacts.sizes()
    if not found:
        return f"its files are gone from {location}"
    try:
        expected = _expected_sizes(found, artifacts)
    except ValueError:
        return f"a {MANIFEST} in {location} cannot be read"
    if missing := sorted(expected.keys() - found.keys()):
        return f"{', '.join(missing)[:REASON_CHARACTERS]} missing from {location}"
    for name, size in sorted(expected.items()):
        if None not in (size, found[name]) and found[name] != size:  # not every artifact store tells sizes
            return f"{name} has {found[name]:,} bytes instead of {size:,} in {location}"
    return None


def _expected_sizes(found: Collection[str], artifacts: Artifacts) -> dict[str, int | None]:
    """Return path in the artifacts -> size in bytes, as the manifests that were found list them.

    Raises:
        ValueError: a manifest cannot be read.
    """
    expected: dict[str, int | None] = {"MLmodel": None, MANIFEST: None}
    for manifest in (MANIFEST, PACKAGE_MANIFEST):
        if manifest in found:
            with artifacts.file(manifest) as path:
                listed = Manifest.read(path.parent).files
            folder = manifest.removesuffix(MANIFEST)
            expected |= {f"{folder}{file.name}": file.size_bytes for file in listed}
    return expected


def damage_known(tags: Mapping[str, str]) -> str | None:
    """Return what reading every file of a version found before; its size says nothing of a file's content."""
    mark = tags.get(UNHEALTHY, "")
    return mark.partition(CONTENT)[2] if CONTENT in mark else None


def mark_content(version: "ModelVersion", reason: str) -> None:
    """Mark a published version of which a file has other content; only reading all of it again takes that away."""
    mark_version(version, f"{CONTENT}{reason}")


def mark_version(version: "ModelVersion", reason: str) -> None:
    """Say loudly that a published version cannot be used, and leave on it when that was found first, and why."""
    from mlflow import MlflowClient

    logger.warning("%s version %s is published and cannot be used: %s", version.name, version.version, reason)
    if not version.tags.get(UNHEALTHY, "").endswith(reason):
        MlflowClient().set_model_version_tag(version.name, version.version, UNHEALTHY, _dated(reason))


def clear_version(version: "ModelVersion") -> None:
    """Take the mark away from a version whose files are all there again."""
    if version.tags.get(UNHEALTHY):
        logger.warning("%s version %s can be used again: all of its files are there", version.name, version.version)
        clear_version_tag(version, UNHEALTHY)


def is_usable(logged: "MlflowModel") -> bool:
    """Tell whether all the files of a logged model are there; say loudly and mark it if they are not."""
    from mlflow import MlflowClient

    reason, mark = damage_of(logged.model_id), logged.tags.get(UNHEALTHY)
    if reason is not None:
        logger.warning("models:/%s is logged and cannot be used: %s", logged.model_id, reason)
        if not mark:
            MlflowClient().set_logged_model_tags(logged.model_id, {UNHEALTHY: _dated(reason)})
    elif mark:
        clear_logged_tag(logged.model_id, UNHEALTHY)
    return reason is None


def _dated(reason: str) -> str:
    return f"{datetime.now(UTC).isoformat(timespec='seconds')}: {tag_text(reason)}"
