"""Signature: one file that vouches for every file of a model, in the form of OpenSSF Model Signing.

    digests of all files --sign_files--> a Sigstore bundle: the list of the digests, and a signature over it
    folder, bundle, policy --check_files--> who signed, in the policy's words; or what is wrong, by name

Anybody can check a folder with the library's own command as well:
`model_signing verify key FOLDER --signature FOLDER/model.sig --public_key release.pub`

The library reads keys and signatures from files only; they lie in memory here (`memfd`).
"""

import base64
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from slmpack.errors import TrustError
from slmpack.machine.bounded_file import parse_json, read_bounded
from slmpack.machine.store import digest_paths
from slmpack.signing.certificates import Chain, chain_of
from slmpack.signing.in_memory import in_memory
from slmpack.signing.keys import SigningKey
from slmpack.signing.policy import TrustPolicy
from slmpack.signing.trusted import Signer

SIGNATURE, STATEMENT = "model.sig", "provenance.json"
# MLflow writes the last one into a local store whenever somebody loads the model from there.
NOT_SIGNED = (SIGNATURE, "registered_model_meta")
LARGEST_SIGNATURE = 16 << 20  # bytes; some 100 a file
MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"
ADVICE = "find out who changes files in the artifact store; then publish it again"


def sign_files(name: str, digests: Mapping[str, str], key: SigningKey) -> bytes:
    """Return the signature of a model, in the form of a file.

    Args:
        name: of the model.
        digests: sha256 of every file by its path in the model's folder.
    """
    from model_signing import signing

    config: Any = signing.Config()  # type: ignore[no-untyped-call]
    config.set_hashing_config(_known(name, digests))
    with in_memory(b"") as signature, key.signing(config) as ready:
        ready.sign(name, signature)
        return signature.read_bytes()


def check_files(uri: str, name: str, folder: Path, policy: TrustPolicy) -> Signer:
    """Check the signature of a model in a folder: who signed, and that no file was changed, added or left out.

    Args:
        uri: as the user named it, for errors.
        name: of the registered model.

    Raises:
        TrustError: it is not signed, by none who may, under another name, or not of these files.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        raise policy.unsigned(uri, name)
    try:
        signature, statement = read_bounded(path, LARGEST_SIGNATURE), read_bounded(folder / STATEMENT)
    except OSError as error:
        raise _invalid(uri, f"cannot be read ({error.strerror})") from error
    return check_digests(uri, name, digests_in(folder), signature, statement, policy)


def check_digests(
    uri: str, name: str, digests: Mapping[str, str], signature: bytes, statement: bytes, policy: TrustPolicy
) -> Signer:
    """Check a signature as `check_files` does, of files whose digests are known.

    Args:
        digests: as `sign_files` takes them.
        statement: the content of the file STATEMENT, whose digest is one of them.
    """
    signer = policy.signer_of(uri, name, _signed_by(uri, signature))
    _verify(uri, name, digests, signature, signer)
    signed = _name_in(uri, statement)
    if signed != name:
        raise TrustError(f"{uri} is signed as a version of {signed}", f"one of {name}", "load it by the name it has")
    return signer


def vouched_digests(
    uri: str, signature: bytes, statement: bytes, policy: TrustPolicy, name: str | None = None
) -> dict[str, str]:
    """Return the sha256 of every file that a signature vouches for, before one of them is there.

    Args:
        signature, statement: the contents of the files SIGNATURE and STATEMENT.
        name: of the registered model; None: the one that it was signed for.

    Raises:
        TrustError: as `check_files`.
    """
    listed = _listed(signature) or {}
    if listed.get(STATEMENT) != sha256(statement).hexdigest():
        raise _invalid(uri, f"has another {STATEMENT}")
    check_digests(uri, name or _name_in(uri, statement), listed, signature, statement, policy)
    return listed


def require_vouched(uri: str, folder: Path, vouched: Mapping[str, str]) -> None:
    """Refuse a folder whose files are not those that a signature vouches for.

    Raises:
        TrustError: one is a link, was changed, added or left out.
    """
    if difference := _first_difference(digests_in(folder), vouched):
        raise _invalid(uri, difference)


def digests_in(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a model that a signature is about, by its path in the folder.

    Raises:
        TrustError: something in the folder is a link.
    """
    return {file.name: file.sha256 for file in digest_paths(folder, signed_files(folder), "signature")}


def signed_files(folder: Path) -> list[Path]:
    """Return the paths of the files that a signature is about.

    Raises:
        TrustError: something in the folder is a link.
    """
    found = sorted(path for path in folder.rglob("*") if path.name not in NOT_SIGNED or path.parent != folder)
    if links := [path for path in found if path.is_symlink()]:
        raise TrustError(f"{links[0].relative_to(folder)} is a link", "a model of regular files", ADVICE)
    return [path for path in found if path.is_file()]


def _signed_by(uri: str, signature: bytes) -> str | Chain:
    """Return the key's fingerprint or the certificates that a signature names; not yet checked to be whose it is."""
    try:
        bundle = parse_json(signature)
        if bundle["mediaType"] != MEDIA:
            raise _invalid(uri, f"is of the kind {str(bundle['mediaType'])[:80]}")
        material = bundle["verificationMaterial"]
        if "x509CertificateChain" not in material:
            return str(material["publicKey"]["hint"])
        listed = material["x509CertificateChain"]["certificates"]
        return chain_of(base64.b64decode(each["rawBytes"]) for each in listed)
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid(uri, "is none that can be read") from error


def _verify(uri: str, name: str, digests: Mapping[str, str], signature: bytes, signer: Signer) -> None:
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    with in_memory(signer.pem().encode()) as trusted, in_memory(signature) as file:
        try:
            config: Any = verifying.Config()  # type: ignore[no-untyped-call]
            config.set_hashing_config(_known(name, digests))
            signer.verifying(config, trusted).verify(Path(name), file)
        except InvalidSignature as error:
            raise _invalid(uri, f"is not of {signer.shown}, which it names") from error
        except Exception as error:  # of any kind: what is in a bundle is a stranger's
            raise _invalid(uri, _difference(digests, signature) or f"does not hold ({type(error).__name__})") from error


def _difference(digests: Mapping[str, str], signature: bytes) -> str | None:
    """Return how the files differ from those that were signed, the first by name; None if they do not."""
    signed = _listed(signature)
    return None if signed is None else _first_difference(digests, signed)


def _listed(signature: bytes) -> dict[str, str] | None:
    """Return the files that a signature lists; None where that cannot be read. Nothing of it is checked."""
    try:
        payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
        return {str(each["name"]): str(each["digest"]) for each in payload["predicate"]["resources"]}
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _first_difference(digests: Mapping[str, str], signed: Mapping[str, str]) -> str | None:
    for name in sorted(digests.keys() | signed.keys()):
        if name not in signed:
            return f"does not have {name}, which was added"
        if name not in digests:
            return f"has {name}, which is missing"
        if digests[name] != signed[name]:
            return f"has another {name}"
    return None


def _invalid(uri: str, found: str) -> TrustError:
    return TrustError(f"the signature of {uri} {found}", "one of all the files that are there", ADVICE)


def _name_in(uri: str, statement: bytes) -> str:
    try:
        (subject,) = json.loads(statement)["subject"]
        return str(subject["name"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _invalid(uri, f"comes with a {STATEMENT} that cannot be read") from error


def _known(name: str, digests: Mapping[str, str]) -> Any:
    """Return what hands the library digests that are known, in place of reading files."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    arguments: dict[str, Any] = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    serialization = manifest.SerializationType.from_args(arguments | {"ignore_paths": list(NOT_SIGNED)})

    class Known(hashing.Config):
        def hash(self, *_: Any, **__: Any) -> manifest.Manifest:
            items = [
                serialization.new_item(path, Digest("sha256", bytes.fromhex(sha256)))
                for path, sha256 in sorted(digests.items())
            ]
            return manifest.Manifest(name, items, serialization)

        def add_ignored_paths(self, **_: Any) -> None:
            """Leave them: which files count was decided where they were hashed, not by a signature."""

    return Known()  # type: ignore[no-untyped-call]
