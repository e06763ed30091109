"""Trust policy: which keys and certificates may sign which models, in a file of the consumer's own.

    [trust.keys.release]
    public_key = "release.pub"         # a file beside this one, or the PEM text itself
    names = ["smollm2-*", "phi-3-mini-4k-instruct"]
    not_after = 2027-12-31             # from the next day on it is not accepted any more
    revoked = "lost on 2026-11-20"     # the reason; it is not accepted at all

    [trust.certificates.ci]
    roots = "ca.pem"                   # an authority's own certificates, as above
    subjects = ["CN=release,O=Example", "email:ada@example.org"]
    names = ["my-model"]               # not_after and revoked as above
    revoked_certificates = {"3f:..." = "lost on 2026-11-20"}

The first of these counts: the file that was named, the variable VARIABLE (empty: no policy), FILE in the working
folder, and in the folder of the user's settings. Without any, signatures are not looked at.
"""

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from slmpack.errors import TrustError, UsageError
from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.private import OTHERS_WRITE
from slmpack.machine.surroundings import home_folder
from slmpack.plain_text import one_line
from slmpack.records import Record
from slmpack.signing.certificates import Chain, roots_in, subject_of
from slmpack.signing.keys import LARGEST_KEY, fingerprint_of, public_pem, read_public
from slmpack.signing.trusted import Signer, TrustedCertificates, TrustedKey

VARIABLE, FILE, TABLE = "SLMPACK_TRUST", "slmpack.toml", "trust"
KINDS = {"keys", "certificates"}
LARGEST_POLICY = 1 << 20  # bytes
FORM = f"[{TABLE}.keys.NAME] with public_key and names, or [{TABLE}.certificates.NAME] with roots, subjects and names"
ADVICE = "docs/trust.md has an example"

SignerT = TypeVar("SignerT", bound=Signer)


class TrustPolicy(Record):
    """Whom a policy accepts.

    Attributes:
        path: of the file.
        keys: by fingerprint.
        certificates: those of each authority.
    """

    path: Path
    keys: dict[str, TrustedKey] = Field(default={})
    certificates: tuple[TrustedCertificates, ...] = ()

    def signer_of(self, uri: str, name: str, by: str | Chain, now: datetime | None = None) -> Signer:
        """Return the entry that accepts a signature on a version of `name` now.

        Args:
            by: the fingerprint of the key that signed, or the signer's certificates.

        Raises:
            TrustError: none does.
        """
        now = now or datetime.now(UTC)
        found = self._by_key(name, by, now.date()) if isinstance(by, str) else self._by_certificate(name, by, now)
        if isinstance(found, Signer):
            return found
        raise self._refusal(uri, f"is signed by {found}", name, now.date())

    def _by_key(self, name: str, fingerprint: str, day: date) -> Signer | str:
        key = self.keys.get(fingerprint)
        if key is None:
            return f"a key that the policy does not have ({fingerprint[:12]})"
        return key.objection(name, day) or key

    def _by_certificate(self, name: str, chain: Chain, now: datetime) -> Signer | str:
        """Return the entry that accepts a certificate, or why the one that comes closest does not."""
        if unfit := chain.unfit(now):
            return f"the certificate {chain.shown}, {unfit}"
        furthest = (-1, f"the certificate {chain.shown}, and the policy names no roots of certificates")
        for entry in self.certificates:
            distance = entry.distance(name, chain, now)
            if distance is None:
                return entry
            furthest = max(furthest, distance)
        return furthest[1]

    def _refusal(self, uri: str, found: str, name: str, day: date) -> TrustError:
        entries = (*self.keys.values(), *self.certificates)
        may = sorted(entry.id for entry in entries if entry.may_sign(name) and entry.is_valid(day))
        none = f"a key or certificate that may sign {name}, of which there is none"
        expected = f"a signature by {' or '.join(may)}" if may else none
        return TrustError(f"{uri} {found}", f"{expected} ({self.path})", "do not load it; ask who published it")

    def unsigned(self, uri: str, name: str) -> TrustError:
        """Return the error of a model without a signature."""
        return self._refusal(uri, "is not signed", name, datetime.now(UTC).date())


def find_policy(named: Path | None = None) -> TrustPolicy | None:
    """Return the policy that counts here; None if there is none.

    Args:
        named: the file that the user named.

    Raises:
        UsageError: it cannot be read, others may write it, or it is no policy.
    """
    given = os.environ.get(VARIABLE) if named is None else str(named)
    if given is not None:
        return read_policy(Path(given).expanduser()) if given else None
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home_folder() / ".config")
    for path in (Path.cwd() / FILE, settings / "slmpack" / FILE):
        if path.is_file() and TABLE in _parsed(path):
            return read_policy(path)
    return None


def read_policy(path: Path) -> TrustPolicy:
    """Return the policy in a file.

    Raises:
        UsageError: it cannot be read, others may write it, or it is no policy.
    """
    path = path.absolute()
    table = _parsed(path).get(TABLE)
    tables = table if isinstance(table, dict) else {}
    if not tables or tables.keys() - KINDS or not all(isinstance(each, dict) and each for each in tables.values()):
        raise UsageError(f"{path} has no table of keys or certificates", FORM, ADVICE)
    if path.stat().st_mode & OTHERS_WRITE:
        raise UsageError(
            f"others may write the trust policy {path}", "a file that its owner alone may write", f"chmod go-w {path}"
        )
    return TrustPolicy(
        path=path,
        keys=dict(_key_of(path, name, value) for name, value in tables.get("keys", {}).items()),
        certificates=tuple(_certificates_of(path, *each) for each in tables.get("certificates", {}).items()),
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bounded(path, LARGEST_POLICY).decode())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"the trust policy {path} cannot be read ({reason})", FORM, ADVICE) from error


def _key_of(path: Path, name: str, value: Any) -> tuple[str, TrustedKey]:
    key = _entry(TrustedKey, f"the key {name} in {path}", name, value)
    public = read_public(_content(path, key.public_key), f"public_key of the key {name} in {path}")
    return fingerprint_of(public), key.model_copy(update={"public_key": public_pem(public)})


def _certificates_of(path: Path, name: str, value: Any) -> TrustedCertificates:
    """Return an entry with everything in the one form in which it is compared."""
    what = f"the certificates {name} in {path}"
    entry = _entry(TrustedCertificates, what, name, value)
    roots = _content(path, entry.roots)
    with _naming(f"roots of {what}", "certificates of authorities in PEM"):
        roots_in(roots)
    with _naming(f"subjects of {what}", "such as CN=release,O=Example, email:ada@example.org or URI:https://..."):
        subjects = tuple(subject_of(each) for each in entry.subjects)
    with _naming(f"revoked_certificates of {what}", "sha256 fingerprints in hexadecimal, each with a reason"):
        revoked = {_fingerprint(each): reason for each, reason in entry.revoked_certificates.items()}
    return entry.model_copy(update={"roots": roots.decode(), "subjects": subjects, "revoked_certificates": revoked})


def _fingerprint(text: str) -> str:
    found = bytes.fromhex(text.replace(":", ""))
    if len(found) != sha256().digest_size:
        raise ValueError(text)
    return found.hex()


def _entry(kind: type[SignerT], what: str, name: str, value: Any) -> SignerT:
    try:
        return kind.model_validate({"id": name, **value})
    except (TypeError, ValidationError) as error:
        found = error.errors()[0]["loc"][0] if isinstance(error, ValidationError) else "its value"
        raise UsageError(f"{found} of {what} is not one", FORM, ADVICE) from error


@contextmanager
def _naming(what: str, expected: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{what} cannot be used ({one_line(str(error)) or 'empty'})", expected, ADVICE) from error


def _content(policy: Path, text: str) -> bytes:
    """Return PEM text, or the content of the file beside the policy that is named in its place."""
    if text.lstrip().startswith("-----BEGIN"):
        return text.encode()
    path = policy.parent / Path(text).expanduser()
    try:
        return read_bounded(path, LARGEST_KEY)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", "keys or certificates in PEM", ADVICE) from error
