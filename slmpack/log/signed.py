"""Signed: the signature of a logged model, beside its MLmodel, and whether it may be used here.

    model.sig          over every file of the model, the next one included (`slmpack.signing.signature`)
    provenance.json    what was made of what, how, and what was proved (`slmpack.publish.statement`)

It is checked before any of the model's code is imported: over a folder of this machine, or by the digests of a store's
files that were just read back. Without a trust policy nothing is checked.
"""

import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from slmpack.errors import TrustError
from slmpack.log.artifacts import Artifacts, artifacts_of
from slmpack.log.provenance import PROVENANCE, Provenance
from slmpack.log.staging import READ_ONLY
from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.private import replace_text
from slmpack.records import LoggedModel
from slmpack.signing.keys import SigningKey
from slmpack.signing.policy import TrustPolicy, find_policy
from slmpack.signing.signature import (
    LARGEST_SIGNATURE,
    SIGNATURE,
    STATEMENT,
    check_digests,
    check_files,
    sign_files,
    signed_files,
)
from slmpack.signing.trusted import Signer
from slmpack.source.mlflow_errors import final_errors
from slmpack.source.model_uris import name_in_uri

logger = logging.getLogger(__name__)


def sign_logged(model: LoggedModel, digests: Mapping[str, str], statement: str, key: SigningKey) -> None:
    """Put a statement and a signature beside the files of a logged model, in place of what was there.

    Args:
        digests: sha256 of every file that was logged, by its path.
        statement: the content of the file STATEMENT.
    """
    all_digests = {**digests, STATEMENT: sha256(statement.encode()).hexdigest()}
    signature = sign_files(model.name, all_digests, key).decode()
    artifacts = artifacts_of(model)
    for name, text in {STATEMENT: statement, SIGNATURE: signature}.items():
        _put(artifacts, model.model_id, name, text)
    logger.info("signed %s by %s", model.uri, key.shown)


def _put(artifacts: Artifacts, model_id: str, name: str, text: str) -> None:
    from mlflow import MlflowClient

    if artifacts.folder is not None:
        replace_text(artifacts.folder / name, text)
        (artifacts.folder / name).chmod(READ_ONLY)
        return
    with TemporaryDirectory(prefix="slmpack-") as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        MlflowClient().log_model_artifact(model_id, str(path), "")


def require_signed_folder(uri: str, folder: Path, *, name: str | None = None) -> Signer | None:
    """Refuse a model in a folder of this machine that the trust policy does not accept.

    Args:
        uri: as the user named it.
        name: of the registered model; None: as `uri` names it, else as the model's own files do.

    Returns:
        The entry of the policy that accepts who signed it; None without a policy.

    Raises:
        TrustError: nobody who may signed it, or not these files.
        UsageError: the policy cannot be read.
    """
    policy = find_policy()
    return None if policy is None else check_folder(uri, folder, policy, name=name)


def check_folder(uri: str, folder: Path, policy: TrustPolicy, *, name: str | None = None) -> Signer:
    """Return who signed a model in a folder, as `require_signed_folder` does for a policy at hand.

    Raises:
        TrustError: nobody who may signed it, or not these files.
    """
    if name is None:
        name = name_in_uri(uri) or _own_name(folder) or uri
    signer = check_files(uri, name, folder, policy)
    logger.info("%s is signed by %s", uri, signer.shown)
    return signer


def _own_name(folder: Path) -> str | None:
    """Return the name that a model was logged for, as a file of it says that its signature covers."""
    try:
        return Provenance.model_validate_json(read_bounded(folder / PROVENANCE)).name
    except (OSError, ValueError):
        return None


def require_signed(uri: str, name: str, location: str, digests: Mapping[str, str]) -> Signer | None:
    """Refuse a model in an artifact store as `require_signed_folder` does, once every file there was read and compared.

    Args:
        digests: sha256 of every file that is there, by its path, but for the signature and its statement.

    Raises:
        TrustError: nobody who may signed it, or not these files.
        UsageError: the policy cannot be read.
    """
    policy = find_policy()
    if policy is None:
        return None
    with final_errors(TrustError, f"to read {uri}"):
        artifacts = Artifacts(location)
        if {SIGNATURE, STATEMENT} - artifacts.top_names():
            raise policy.unsigned(uri, name)
        with artifacts.file(SIGNATURE) as file:
            signature = read_bounded(file, LARGEST_SIGNATURE)
        with artifacts.file(STATEMENT) as file:
            statement = read_bounded(file)
        if artifacts.folder is not None:
            signed_files(artifacts.folder)
    listed = {**digests, STATEMENT: sha256(statement).hexdigest()}
    signer = check_digests(uri, name, listed, signature, statement, policy)
    logger.info("%s is signed by %s", uri, signer.shown)
    return signer
