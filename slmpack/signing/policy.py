"""Trust policy: which public keys may sign which models, in a file of the consumer's own.

    [trust.keys.release]
    public_key = "release.pub"         # a file beside this one, or the PEM text itself
    names = ["smollm2-*", "phi-3-mini-4k-instruct"]
    not_after = 2027-12-31             # from the next day on it is not accepted any more
    revoked = "lost on 2026-11-20"     # the reason; it is not accepted at all

The first of these counts: the file that was named, the variable VARIABLE (empty: no policy), FILE in the working
folder, and in the folder of the user's settings. Without any, signatures are not looked at.
"""

import os
import tomllib
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slmpack.errors import TrustError, UsageError
from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.private import OTHERS_WRITE
from slmpack.machine.surroundings import home_folder
from slmpack.records import Record
from slmpack.signing.keys import LARGEST_KEY, fingerprint_of, public_pem, read_public

VARIABLE, FILE, TABLE = "SLMPACK_TRUST", "slmpack.toml", "trust"
LARGEST_POLICY = 1 << 20  # bytes
FORM = f"[{TABLE}.keys.NAME] with public_key and names"
ADVICE = "docs/trust.md has an example"


class TrustedKey(Record):
    """A public key that may sign.

    Attributes:
        id: the name that the policy gives it.
        public_key: in PEM.
        names: of registered models that it may sign; `*` stands for any characters.
        not_after: the last day on which it is accepted, in UTC.
        revoked: why it is not accepted any more.
    """

    id: str
    public_key: str
    names: tuple[str, ...]
    not_after: date | None = None
    revoked: str | None = None

    def may_sign(self, name: str) -> bool:
        """Say whether it may sign versions of the registered model `name`."""
        return any(fnmatchcase(name, pattern) for pattern in self.names)

    def is_valid(self, day: date) -> bool:
        """Say whether it is accepted on that day."""
        return self.revoked is None and (self.not_after is None or day <= self.not_after)


class TrustPolicy(Record):
    """The keys of a policy.

    Attributes:
        path: of the file.
        keys: by fingerprint.
    """

    path: Path
    keys: dict[str, TrustedKey]

    def key_for(self, uri: str, name: str, fingerprint: str, today: date | None = None) -> TrustedKey:
        """Return the key with that fingerprint, if it may sign `name` today.

        Raises:
            TrustError: it may not.
        """
        key = self.keys.get(fingerprint)
        day = today or datetime.now(UTC).date()
        if key is None:
            found = f"a key that the policy does not have ({fingerprint[:12]})"
        elif key.revoked is not None:
            found = f"the key {key.id}, which is revoked ({key.revoked})"
        elif not key.is_valid(day):
            found = f"the key {key.id}, which expired on {key.not_after}"
        elif not key.may_sign(name):
            found = f"the key {key.id}, which may not sign {name}"
        else:
            return key
        raise self._refusal(uri, f"is signed by {found}", name, day)

    def _refusal(self, uri: str, found: str, name: str, day: date) -> TrustError:
        may = sorted(key.id for key in self.keys.values() if key.may_sign(name) and key.is_valid(day))
        expected = (
            f"a signature by {' or '.join(may)}" if may else f"a key that may sign {name}, of which there is none"
        )
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
    keys = table.get("keys") if isinstance(table, dict) and table.keys() == {"keys"} else None
    if not isinstance(keys, dict) or not keys:
        raise UsageError(f"{path} has no table of keys", FORM, ADVICE)
    if path.stat().st_mode & OTHERS_WRITE:
        raise UsageError(
            f"others may write the trust policy {path}", "a file that its owner alone may write", f"chmod go-w {path}"
        )
    return TrustPolicy(path=path, keys=dict(_key_of(path, name, value) for name, value in keys.items()))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bounded(path, LARGEST_POLICY).decode())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"the trust policy {path} cannot be read ({reason})", FORM, ADVICE) from error


def _key_of(path: Path, name: str, value: Any) -> tuple[str, TrustedKey]:
    try:
        key = TrustedKey.model_validate({"id": name, **value})
    except (TypeError, ValidationError) as error:
        found = error.errors()[0]["loc"][0] if isinstance(error, ValidationError) else "its value"
        raise UsageError(f"{found} of the key {name} in {path} is not one", FORM, ADVICE) from error
    public = read_public(_public_content(path, key.public_key), f"public_key of the key {name} in {path}")
    return fingerprint_of(public), key.model_copy(update={"public_key": public_pem(public)})


def _public_content(policy: Path, public_key: str) -> bytes:
    if public_key.lstrip().startswith("-----BEGIN"):
        return public_key.encode()
    path = policy.parent / Path(public_key).expanduser()
    try:
        return read_bounded(path, LARGEST_KEY)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", "a public key in PEM", ADVICE) from error
