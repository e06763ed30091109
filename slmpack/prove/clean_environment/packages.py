"""Packages: what a clean environment has installed, with the licence that each package states.

Source: the core metadata specification, version 2.4, `License-Expression`, `License` and `Classifier`.
"""

import re
from collections.abc import Mapping
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path

from packaging.utils import canonicalize_name

from slmpack.machine.bounded_file import MIB, read_bounded
from slmpack.reports import InstalledPackage

MOST_CHARACTERS = 200  # of a licence: some packages have its whole text there
_OSI = re.compile(r"License :: (?:OSI Approved :: )?(?P<name>.+)")


def installed_packages(environment: Path, sha256: Mapping[str, tuple[str, ...]]) -> tuple[InstalledPackage, ...]:
    """Return the packages of a virtual environment by their names; metadata that cannot be read are left out.

    Args:
        sha256: of the files of each `name==version`, where the index gave them.
    """
    found = (_package(path, sha256) for path in environment.glob("lib/python*/site-packages/*.dist-info/METADATA"))
    return tuple(sorted(filter(None, found), key=lambda package: package.name))


def _package(path: Path, sha256: Mapping[str, tuple[str, ...]]) -> InstalledPackage | None:
    try:
        metadata = BytesHeaderParser().parsebytes(read_bounded(path, 4 * MIB))
    except OSError:
        return None
    name, version = canonicalize_name(str(metadata["Name"])), str(metadata["Version"])
    return InstalledPackage(
        name=name, version=version, licence=_licence(metadata), sha256=sha256.get(f"{name}=={version}", ())
    )


def _licence(metadata: Message) -> str | None:
    """Return the expression, else the old field if it is a name, else the classifiers."""
    stated = (str(metadata[field] or "").strip() for field in ("License-Expression", "License"))
    text = next((each for each in stated if each and each != "UNKNOWN"), "")
    if text and "\n" not in text and len(text) <= MOST_CHARACTERS:
        return text
    classifiers = map(_OSI.fullmatch, map(str, metadata.get_all("Classifier", [])))
    return " and ".join(found["name"] for found in classifiers if found)[:MOST_CHARACTERS] or None
