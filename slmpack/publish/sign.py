"""Sign: what was proved and is in the registry gets a signature over all of its files, beside them.

    the version's facts, its page --> statement --> signature, by the digests that the records have since the build

`publish` calls it before the alias moves. `slmpack sign` does the same for a version that is there: for one that was
published without a key, or whose key has expired.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.errors import CheckError, PublishError
from slmpack.log.provenance import model_of
from slmpack.log.read_back import logged_digests, read_back
from slmpack.log.restore import check_uri, find_logged
from slmpack.log.signed import sign_logged
from slmpack.log.tags import PUBLISHED, SIGNED_BY, facts_in
from slmpack.log.versions import version_of
from slmpack.machine.store import MANIFEST
from slmpack.publish.find import PublishedLookup
from slmpack.publish.page.log_page import page_facts_text
from slmpack.publish.statement import statement_of
from slmpack.records import LoggedModel
from slmpack.signing.keys import SigningKey
from slmpack.source.mlflow_errors import final_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)


def sign_version(model: LoggedModel, version: "ModelVersion", key: SigningKey) -> None:
    """Sign a version whose files were compared with what was built.

    Args:
        model: what is behind it.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    facts, digests = facts_in(version.tags), logged_digests(model)
    begun = client.get_run(model.run_id).info.start_time
    provenance = find_logged(model.uri).provenance
    page = page_facts_text(facts.get("mlflow_run"))
    statement = statement_of(provenance, facts, page, digests[MANIFEST], begun, int(version.version))
    sign_logged(model, digests, statement, key)
    client.set_model_version_tag(version.name, version.version, SIGNED_BY, key.fingerprint)


def sign_again(uri: str, key: SigningKey) -> int:
    """Sign a published version that is there, whoever signed it before; every file is compared first.

    Args:
        uri: models:/NAME/VERSION or models:/NAME@ALIAS.

    Returns:
        The version's number.

    Raises:
        SourceError: there is no such version.
        CheckError: it is not slmpack's, or a file is not the one that was logged.
        PublishError: it was not published, or the registry refuses.
    """
    found, form = find_logged(uri), check_uri(uri)
    name = form["name"]
    if found.provenance.name != name:
        raise CheckError(
            f"{uri} was logged as {found.provenance.name}",
            f"a model that was packaged as {name}",
            f"package its source under that name: --name {name}",
        )
    with final_errors(PublishError, f"to sign {uri}"):
        version = version_of(name, form["version"], form["alias"])
        if PUBLISHED not in version.tags:
            raise PublishError(f"{uri} was not published", "a proved version", f"prove it: slmpack verify {uri}")
        model = model_of(found.provenance, found.model_id, found.run_id, package=Path(), snapshot=Path())
        read_back(model)
        sign_version(model, version, key)
    return int(version.version)


def needs_signing(found: PublishedLookup, key: SigningKey) -> bool:
    """Say whether a version that was found is not signed by the key yet, as far as its tag says."""
    from mlflow import MlflowClient

    tags = MlflowClient().get_model_version(found.name, str(found.version)).tags
    return bool(tags.get(SIGNED_BY) != key.fingerprint)
