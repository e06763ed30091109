"""Requirements lock: every package that a logged model's requirements bring, pinned, with the hashes of its files.

    requirements.txt     the pins that MLflow's own tools read and install
    requirements.lock    those and all that they require, with every sha256 that the package index has of each release

The lock is a file of its own: MLflow compares requirements.txt line by line with what is installed where a model is
loaded, and warns of lines with hashes. It is of one Python and one system, which its first line names; elsewhere other
packages may be required. It is no part of a digest, so that a model is found again whose index has newer releases.
"""

import logging
import platform
import re
import sys
import time
import uuid
from pathlib import Path

from packaging.utils import canonicalize_name

from slmpack.errors import CheckError, LogError
from slmpack.log.requirements import PIN
from slmpack.machine.environments import UvError, index_digest, lock_requirements
from slmpack.machine.private import folder_in, replace_text
from slmpack.machine.store import log_folder
from slmpack.records import digest_of

logger = logging.getLogger(__name__)

LOCK = "requirements.lock"
LARGEST_LOCK = 1 << 20  # bytes; 59 packages of a CPU target have 66 kB, most of it other systems' wheels
KEPT_SECONDS = 86_400.0  # a day: releases come and go
LIMIT_SECONDS = 120.0
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_LOG_AGAIN = "log the model again"

Locked = dict[str, tuple[str, ...]]  # name==version to the sha256 of the files of that release


def system_here() -> str:
    """Return the first line of a lock that is made here."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"# for Python {python} on {platform.system().lower()} {platform.machine()}"


def lock_of(requirements: tuple[str, ...], workspace: Path) -> str | None:
    """Return the lock of exact pins, made at most once a day; None where the index cannot give it, which is logged."""
    folder = folder_in(workspace, "requirements")
    kept = folder / f"{digest_of([requirements, system_here(), index_digest()])}.lock"
    if kept.is_file() and 0 <= time.time() - kept.stat().st_mtime < KEPT_SECONDS:
        return kept.read_text()
    try:
        text = _resolved(requirements, workspace)
    except (UvError, LogError, CheckError) as error:
        logger.warning("the requirements are not locked by hashes: %s", str(error)[:300])
        return None
    replace_text(kept, text)
    return text


def _resolved(requirements: tuple[str, ...], workspace: Path) -> str:
    """Ask the index; what it answers is written again, so that nothing but pins and hashes is in a lock.

    Raises:
        UvError: the index has not all of it, or cannot be reached.
        LogError: it took too long.
        CheckError: a release has no hashes.
    """
    scratch = folder_in(workspace, "scratch", f"lock-{uuid.uuid4().hex}")
    file = scratch / "requirements.in"
    file.write_text("".join(f"{pin}\n" for pin in requirements))
    try:
        found = lock_requirements(file, log_folder(workspace) / "requirements-lock.log", LogError, LIMIT_SECONDS)
    finally:
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()
    locked = locked_pins(found.encode())
    require_locked(locked, requirements)
    return f"{system_here()}\n{lock_text(locked)}"


def lock_text(locked: Locked) -> str:
    """Return pins with hashes as an installer reads them."""
    return "".join(
        f"{pin} \\\n" + " \\\n".join(f"    --hash=sha256:{digest}" for digest in digests) + "\n"
        for pin, digests in locked.items()
    )


def locked_pins(content: bytes) -> Locked:
    """Return what a lock pins; like requirements.txt it may hold nothing else that an installer would obey.

    Raises:
        CheckError: a line is anything but a pin with hashes, or the file is too long.
    """
    if len(content) > LARGEST_LOCK:
        raise CheckError(f"{LOCK} is too long", f"at most {LARGEST_LOCK:,} bytes", _LOG_AGAIN)
    lines = content.decode(errors="replace").replace("\\\n", " ").splitlines()
    locked: Locked = {}
    for line in (each for each in lines if each.strip() and not each.startswith("#")):
        pin, *hashes = line.split()
        found = tuple(match[1] for match in map(_HASH.fullmatch, hashes) if match)
        if not PIN.fullmatch(pin) or not found or len(found) != len(hashes):
            raise CheckError(f"{line[:200]!r} in {LOCK}", "a package, its version and hashes of its files", _LOG_AGAIN)
        locked[pin] = found
    return locked


def locked_here(content: bytes, requirements: tuple[str, ...]) -> Locked:
    """Return what a lock of those requirements pins for this Python and system; {} if it is of another.

    Raises:
        CheckError: as `locked_pins` and `require_locked`.
    """
    locked = locked_pins(content)
    require_locked(locked, requirements)
    return locked if content.decode(errors="replace").partition("\n")[0] == system_here() else {}


def require_locked(locked: Locked, requirements: tuple[str, ...]) -> None:
    """Refuse a lock that is of other requirements.

    Raises:
        CheckError: a pin is not in it; a local label such as `+cpu` may be there.
    """
    pins = {_canonical(pin.partition("+")[0]) for pin in locked}
    if missing := [pin for pin in requirements if _canonical(pin.partition("+")[0]) not in pins]:
        raise CheckError(f"{LOCK} without {missing[0]}", "all of requirements.txt, with hashes", _LOG_AGAIN)


def _canonical(pin: str) -> str:
    name, _, version = pin.partition("==")
    return f"{canonicalize_name(name)}=={version}"
