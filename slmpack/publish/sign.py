"""Sign: what was proved and is in the registry gets a signature over all of its files, beside them.

    the version's facts, its page --> statement --> signature, by the digests that the records have since the build

`publish` calls it before the alias moves. `slmpack sign` does the same for a version that is there: for one that was
published without a key, or whose key has expired.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.errors import CheckError, PublishError, UsageError
from slmpack.log.provenance import model_of
from slmpack.log.read_back import logged_digests, read_back
from slmpack.log.restore import check_uri, find_logged
from slmpack.log.signed import sign_logged
from slmpack.log.tags import PUBLISHED, RETRAINED, SIGNED_BY, facts_in
from slmpack.log.versions import version_of
from slmpack.machine.store import MANIFEST
from slmpack.publish.page.log_page import page_facts_text
from slmpack.publish.statement import statement_of
from slmpack.records import LoggedModel
from slmpack.signing.keys import SigningKey
from slmpack.signing.policy import find_policy
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
    """Sign a version that was published or tuned, whoever signed it before; every file is compared first.

    Args:
        uri: models:/NAME/VERSION or models:/NAME@ALIAS.

    Returns:
        The version's number.

    Raises:
        SourceError: there is no such version.
        CheckError: it is not slmpack's, or a file is not the one that was logged.
        PublishError: it was neither published nor tuned, or the registry refuses.
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
        if PUBLISHED not in version.tags and RETRAINED not in version.tags:
            raise PublishError(f"{uri} was not published", "a proved version", f"prove it: slmpack verify {uri}")
        model = model_of(found.provenance, found.model_id, found.run_id, package=Path(), snapshot=Path())
        read_back(model)
        sign_version(model, version, key)
    return int(version.version)


def require_accepted(name: str, key: SigningKey | None) -> None:
    """Refuse to tune what could not be packaged afterwards: with a trust policy, a version is signed to be a source.

    Args:
        name: of the registered model that gets the tuned version.
        key: what is to sign that.

    Raises:
        UsageError: there is a trust policy and no key.
        TrustError: the policy does not accept the key for that name.
    """
    policy = find_policy()
    if policy is None:
        return
    if key is None:
        expected = "a key that signs the tuned version, since that is packaged next"
        raise UsageError(
            f"no signing key for {name}, and a trust policy ({policy.path})", expected, "give --signing-key"
        )
    policy.signer_of(f"what is to be tuned as {name}", name, key.signs_as)


def needs_signing(name: str, version: int, key: SigningKey) -> bool:
    """Say whether a version is not signed by the key yet, as far as its tag says."""
    from mlflow import MlflowClient

    tags = MlflowClient().get_model_version(name, str(version)).tags
    return bool(tags.get(SIGNED_BY) != key.fingerprint)
