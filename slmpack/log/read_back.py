"""Integrity: what the registry serves is what was built, byte for byte.

    artifacts, by URI --one file at a time--> sha256 <==> the digests that the records have carried since the build

The records never went through MLflow, so neither a damaged upload nor a file changed in the store can agree with
them. A local store is read in place; a remote one is downloaded, so room for the largest file is enough.
"""

from contextlib import AbstractContextManager
from pathlib import Path

from slmpack.errors import CheckError, DamageError
from slmpack.log.artifacts import Artifacts, artifacts_of
from slmpack.log.health import PACKAGE_MANIFEST, clear_version, mark_content
from slmpack.log.log import MANIFEST_TAG
from slmpack.log.staging import PACKAGE_FOLDER, WRAPPER
from slmpack.log.tags import MODEL_ID, PUBLISHED
from slmpack.log.versions import versions_with
from slmpack.machine.store import MANIFEST, Manifest, sha256_of
from slmpack.progress import report
from slmpack.records import LoggedModel, Target, digest_of
from slmpack.reports import Check
from slmpack.signing.signature import NOT_SIGNED, STATEMENT
from slmpack.source.mlflow_errors import final_errors

ADVICE = "log the model again, and find out who changes files in the artifact store"
CHECKPOINT_FOLDER = "model"
# MLflow puts this into the artifacts of a local store whenever somebody loads the model from there.
# The signature and what it is about besides come when the model was proved.
AFTERWARDS = frozenset({*NOT_SIGNED, STATEMENT})


def read_back(model: LoggedModel) -> tuple[Check, ...]:
    """Compare every file that the artifact store serves for `model` with the digests recorded before it was logged.

    Raises:
        CheckError: files are missing or were added.
        DamageError: the first file with other content, by name; a published version of the model is marked.
    """
    published = [each for each in versions_with(model.name, MODEL_ID, model.model_id) if PUBLISHED in each.tags]
    try:
        checks = _compare(model)
    except DamageError as damage:
        for version in published:
            mark_content(version, str(damage))
        raise
    for version in published:
        clear_version(version)
    return checks


def _compare(model: LoggedModel) -> tuple[Check, ...]:
    with final_errors(CheckError, f"to read {model.uri}"):
        artifacts = artifacts_of(model)
        expected = _expected(artifacts, model)
        _check_names(frozenset(artifacts.sizes()), {*expected, MANIFEST})
        for done, name in enumerate(sorted(expected), start=1):
            with artifacts.file(name) as path:
                _check_file(name, path, expected[name], model)
            report("read back", done, len(expected), "files")
    size = model.package.size_bytes
    return (Check(name="read back", found=f"{len(expected)} files, {size:,} bytes of the package as they were built"),)


def logged_digests(model: LoggedModel) -> dict[str, str]:
    """Return path in the artifacts -> sha256 of every file that was logged, the manifest's included.

    Raises:
        DamageError: the manifest is not the one that was logged.
    """
    from mlflow import MlflowClient

    with final_errors(CheckError, f"to read {model.uri}"):
        tag = MlflowClient().get_logged_model(model.model_id).tags[MANIFEST_TAG]
        return {**_expected(artifacts_of(model), model), MANIFEST: tag}


def _expected(artifacts: Artifacts, model: LoggedModel) -> dict[str, str]:
    return _model_manifest(artifacts.file(MANIFEST), model) | _package_digests(model)


def _package_digests(model: LoggedModel) -> dict[str, str]:
    """Return path in the artifacts -> sha256 of the files of the package."""
    folder = CHECKPOINT_FOLDER if model.package.target is Target.TRANSFORMERS else PACKAGE_FOLDER
    return {f"{folder}/{file.name}": file.sha256 for file in model.package.files}


def _model_manifest(manifest: AbstractContextManager[Path], model: LoggedModel) -> dict[str, str]:
    """Return what the manifest beside MLmodel lists; its own digest is a tag, which no artifact store keeps."""
    from mlflow import MlflowClient

    with manifest as path:
        _check_digest(MANIFEST, sha256_of(path), MlflowClient().get_logged_model(model.model_id).tags[MANIFEST_TAG])
        return {file.name: file.sha256 for file in Manifest.read(path.parent).files}


def _check_names(found: frozenset[str], names: set[str]) -> None:
    if missing := sorted(names - found):
        raise _refusal(f"the model without {', '.join(missing)[:300]}", f"{len(names)} files", ADVICE)
    if bytecode := sorted(name for name in found - names if name.endswith(".pyc")):
        raise _refusal(bytecode[0], "source code only: Python would run the one for the other", f"delete {bytecode[0]}")
    if added := sorted(found - names - AFTERWARDS):
        raise _refusal(f"{', '.join(added)[:300]} beside what was logged", f"{len(names)} files", ADVICE)


def _check_file(name: str, path: Path, expected: str, model: LoggedModel) -> None:
    sha256 = sha256_of(path)
    _check_digest(name, sha256, expected)
    if name == WRAPPER.name:
        _check_wrapper(sha256, model)
    elif name == PACKAGE_MANIFEST:
        _check_manifest(path, model)


def _check_digest(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise _damage(f"{name} with sha256 {found[:12]}...", f"{expected[:12]}..., as it was built", ADVICE)


def _check_wrapper(sha256: str, model: LoggedModel) -> None:
    """Check the digest with the wrapper that the model was logged with, which need not be this slmpack's."""
    found = digest_of([model.package.digest, model.interface, model.requirements, sha256])
    if found != model.digest:
        raise _damage(f"{WRAPPER.name} with sha256 {sha256[:12]}...", "the wrapper that was logged", ADVICE)


def _check_manifest(path: Path, model: LoggedModel) -> None:
    """Check that the manifest, which the wrapper trusts when it loads the package, says what the records say."""
    try:
        listed = Manifest.read(path.parent).files
    except ValueError as error:
        raise _damage(f"{PACKAGE_MANIFEST} that cannot be read", "the package's manifest", ADVICE) from error
    if different := sorted(file.name for file in set(listed) ^ set(model.package.files)):
        raise _damage(f"{PACKAGE_MANIFEST} with another digest of {different[0]}", "that of the build", ADVICE)


def _damage(found: str, expected: str, advice: str) -> DamageError:
    return DamageError(f"the artifact store serves {found}", expected, advice)


def _refusal(found: str, expected: str, advice: str) -> CheckError:
    return CheckError(f"the artifact store serves {found}", expected, advice)
