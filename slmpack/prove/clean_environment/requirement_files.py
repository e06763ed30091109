"""Requirement files: what a clean environment is made from, looked at before an installer reads it.

requirements.txt, by URI --> pins and nothing else
requirements.lock        --> pins with hashes and nothing else, all of requirements.txt among them
"""

from pathlib import Path

from slmpack.log.artifacts import Artifacts, artifacts_of
from slmpack.log.requirements import LARGEST_REQUIREMENTS, plain_pins
from slmpack.log.requirements_lock import LARGEST_LOCK, LOCK, Locked, lock_text, locked_here
from slmpack.records import LoggedModel

REQUIREMENTS = "requirements.txt"


def fetch_requirements(model: LoggedModel, folder: Path) -> Artifacts:
    """Write the requirements into `folder`; return the files of the model.

    Raises:
        CheckError: one of them is more than a name and a version.
    """
    artifacts = artifacts_of(model)
    if LOCK in artifacts.top_names():
        artifacts.copy(LOCK, folder)
    given = artifacts.copy(REQUIREMENTS, folder)
    with given.open("rb") as file:
        pins = plain_pins(file.read(LARGEST_REQUIREMENTS + 1))
    given.unlink()  # read-only where it was copied with its mode
    (folder / REQUIREMENTS).write_text("".join(f"{pin}\n" for pin in pins))  # what was looked at is what uv gets
    return artifacts


def take_lock(folder: Path) -> Locked:
    """Return what the model's lock pins, and write it as what is to be installed; {} without one for this machine.

    Raises:
        CheckError: the lock has a line that is no pin with hashes, or is of other requirements.
    """
    lock = folder / LOCK
    if not lock.exists():
        return {}
    with lock.open("rb") as file:
        content = file.read(LARGEST_LOCK + 1)
    locked = locked_here(content, plain_pins((folder / REQUIREMENTS).read_bytes()))
    if locked:
        (folder / REQUIREMENTS).write_text(lock_text(locked))  # what was looked at is what uv gets
    return locked
