"""Keys: who may ask. A file has one a line; what a request shows is compared with all of them in constant time."""

import hmac
from hashlib import sha256
from pathlib import Path

from slmpack.errors import UsageError
from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.private import require_secret

LARGEST_FILE = 1 << 20  # bytes
LEAST_CHARACTERS = 16


class Keys:
    """The digests of the keys that are accepted; the keys themselves are not held."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Read the file of a server's keys.

        Raises:
            UsageError: it cannot be read, others may read it, it has no key, or what is none; no message shows one.
        """
        keys = read_keys(path)
        if any(len(key) < LEAST_CHARACTERS for key in keys):
            raise _unfit(path, f"a key of fewer than {LEAST_CHARACTERS} characters")
        return cls(keys)

    def accepts(self, authorization: str) -> bool:
        """Say whether the header `Authorization: Bearer KEY` has one of the keys."""
        kind, _, key = authorization.partition(" ")
        shown = sha256(key.strip().encode()).digest()
        matches = [hmac.compare_digest(shown, digest) for digest in self._digests]
        return kind.lower() == "bearer" and any(matches)


def read_keys(path: Path) -> list[str]:
    """Return the keys in a file: one a line; empty lines and those that begin with # are left out.

    Raises:
        UsageError: it cannot be read, others may read it, it has no key, or one that no header can hold.
    """
    try:
        lines = read_bounded(path, LARGEST_FILE).decode("ascii").splitlines()
        require_secret(path, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--api-key-file {path} cannot be read ({_reason(error)})",
            "a file with one key a line",
            "name one that this user may read",
        ) from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise _unfit(path, "no key")
    if any(not all("!" <= each <= "~" for each in key) for key in keys):
        raise _unfit(path, "a key with a space or a control character in it")
    return keys


def _unfit(path: Path, found: str) -> UsageError:
    return UsageError(
        f"{path} has {found}",
        f"keys of {LEAST_CHARACTERS} or more visible characters, one a line",
        "make one by: openssl rand -hex 24",
    )


def _reason(error: OSError | UnicodeDecodeError) -> str:
    """Return why a file cannot be read, without what is in it."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not ASCII, which is all that a request's header can hold"
    return error.strerror or type(error).__name__
