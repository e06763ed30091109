"""Expected: failures of the machine and the network that reach us as a vendor's exception, in our own words.

A full disk, a read-only folder and a network that is not there may show in any stage, from any library. What may pass
by itself (an answer that came late, a server's error) is nobody's to translate, and stays as it is.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from slmpack.errors import NetworkError, SlmpackError, WorkspaceError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# Libraries in C, C++ and Rust tell it in words: SQLite, safetensors, the kernel.
_FULL_WORDS = re.compile(r"No space left on device|database or disk is full|Disk quota exceeded|os error 28\b")
_READ_ONLY_WORDS = re.compile(r"attempt to write a readonly database|unable to open database file")
_CAUSES = {
    "its name cannot be resolved": r"Errno -[235]\]|Name or service not known|name resolution|nodename nor servname",
    "the connection is refused": r"Connection refused|Errno 111\]",
    "there is no way to it": r"Network is unreachable|No route to host|Errno 101\]|Errno 113\]",
    "no answer to the first packet": r"ConnectTimeout|connect timeout|Connection to \S+ timed out",
    "the proxy refuses": r"ProxyError|Cannot connect to proxy|Tunnel connection failed",
}


@contextmanager
def translated() -> Iterator[None]:
    """Raise what the machine or the network refuses as an error of ours; everything else passes as it is."""
    try:
        yield
    except SlmpackError:
        raise
    except Exception as error:
        if (ours := expected_error(error)) is None:
            raise
        raise ours from error


def expected_error(error: BaseException) -> SlmpackError | None:
    """Return our error for a full disk, a read-only folder or a network that is not there; None for any other."""
    for each in _chain(error):
        if isinstance(each, SlmpackError):
            return each
        if ours := _of_disk(each):
            return ours
    if cause := why_unreachable(error):
        return NetworkError(
            f"{_address_of(error)} cannot be reached ({cause})",
            "a network connection, or a mirror",
            "check the network and HTTPS_PROXY, set HF_ENDPOINT or pip's index-url to a mirror, or name a source that "
            "is on this machine",
        )
    return None


def why_unreachable(error: BaseException) -> str | None:
    """Say why no connection could be made; None where there was one, or none was tried."""
    for each in _chain(error):
        if isinstance(each, SlmpackError):
            return None
        message = f"{type(each).__name__}: {each}"
        if isinstance(each, ConnectionError) or re.search(r"Connect|Connection|Proxy|gaierror|URLError", message):
            for cause, words in _CAUSES.items():
                if re.search(words, message):
                    return cause
    return None


def _of_disk(error: BaseException) -> WorkspaceError | None:
    number = error.errno if isinstance(error, OSError) else None
    name = getattr(error, "filename", None)
    message = " ".join(str(error).split())[:300]
    if number in _FULL or _FULL_WORDS.search(message):
        return WorkspaceError(
            f"the disk is full ({name or message})",
            "room for what is written",
            "free some space or name another --workspace, then run the same again",
        )
    if number in _FORBIDDEN and name:
        return WorkspaceError(
            f"{name} cannot be used ({error.strerror})" if isinstance(error, OSError) else message,
            "a place that this user may write",
            "name another --workspace, or start it in another folder",
        )
    if _READ_ONLY_WORDS.search(message):
        return WorkspaceError(
            "MLflow's database cannot be written",
            "a place that this user may write",
            "start it in another folder, or set MLFLOW_TRACKING_URI",
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _address_of(error: BaseException) -> str:
    """Return where the connection was to go, as far as the errors say."""
    for each in _chain(error):
        request = getattr(each, "_request", None)  # httpx; its property raises where there is none
        if request is not None and getattr(request, "url", None):
            return str(request.url.host)
        if match := re.search(r"host='([^']+)'|could not reach (the package index)", str(each)):
            return match[1] or match[2]
    return "the server"
