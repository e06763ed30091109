"""The bill of materials of a version: written in its run before the alias moves, read again by the version's URI.

runs:/<run>/proof/bom-<digest>.cdx.json     <digest>: the first characters of its sha256
slmpack.facts of the version                its whole sha256, as `bom_sha256`

It is written when a version is published, not when its model is logged: its figures are those of the proofs, which come
later. The digest in its name lets two publishers of one version write each their own; the tag says which one counts.
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from slmpack.errors import CheckError, DamageError
from slmpack.log.artifacts import Artifacts
from slmpack.log.tags import FACTS, facts_in, with_more
from slmpack.machine.bounded_file import MIB, read_bounded
from slmpack.publish.bom.document import bom_text
from slmpack.publish.bom.training import training_of
from slmpack.publish.named_version import named_version
from slmpack.publish.page.log_page import Proofs
from slmpack.records import LoggedModel
from slmpack.reports import ChatQuality, Quality, Speed
from slmpack.source.mlflow_errors import final_errors, is_absent

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "proof"
DIGEST = "bom_sha256"
FIGURES = (
    *Speed.model_fields,
    *(name for name in Quality.model_fields if name != "chats"),
    *(f"chat_{name}" for name in ChatQuality.model_fields),
)
LARGEST = 64 * MIB
_AGAIN = "publish it again with slmpack package SOURCE --force"


def log_bom(model: LoggedModel, proofs: Proofs, version: "ModelVersion") -> None:
    """Write the version's bill of materials in the run of `model`, and its digest on the version."""
    from mlflow import MlflowClient

    facts = facts_in(version.tags)
    text = bom_text(
        model,
        proofs,
        {name: facts[name] for name in FIGURES if name in facts},
        training_of(model.package.snapshot.source),
        version=int(version.version),
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    client = MlflowClient()
    client.log_text(facts["mlflow_run"], text, f"{FOLDER}/{name_of(digest)}")
    client.set_model_version_tag(version.name, version.version, FACTS, with_more(version.tags, {DIGEST: digest}))


def name_of(digest: str) -> str:
    """Return the name of the bill's file."""
    return f"bom-{digest[:12]}.cdx.json"


def read_bom(uri: str) -> str:
    """Return the bill of materials of the version that `uri` names, as it was written.

    Raises:
        UsageError: `uri` can never name one.
        SourceError: MLflow has no such version.
        CheckError: it was published without one, or not at all.
        DamageError: the file is gone, or is another one.
    """
    with final_errors(CheckError, f"to read the bill of materials of {uri}"):
        facts = facts_in(named_version(uri).tags)
        digest, run_id = facts.get(DIGEST, ""), facts.get("mlflow_run", "")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise CheckError(f"{uri} has no bill of materials", "a version that this release published", _AGAIN)
        content = _content(uri, run_id, name_of(digest))
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamageError(f"the bill of materials of {uri} has another content", f"sha256 {digest[:12]}...", _AGAIN)
    return content.decode("ascii")


def _content(uri: str, run_id: str, name: str) -> bytes:
    from mlflow.exceptions import MlflowException

    try:
        with Artifacts(f"runs:/{run_id}/{FOLDER}").file(name) as file:
            return read_bounded(file, LARGEST)
    except (OSError, MlflowException) as error:
        if isinstance(error, MlflowException) and not is_absent(error) and "No such artifact" not in error.message:
            raise
        raise DamageError(f"the bill of materials of {uri} is gone", f"{name} in its run", _AGAIN) from error
