"""Licence: what a checkpoint's own files say of it."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from slmpack.checkpoint.licence_terms import CUT, UNKNOWN
from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.bounded_yaml import parse_yaml

MOST_CHARACTERS = 200  # of a name; the longest of SPDX has 62
_FENCE = "---"
_STATES = "The source of this model states its licence as: "


def licence_of(folder: Path) -> str | None:
    """Return what a checkpoint says of its licence: the model card's `license`, else its licence file."""
    if stated := licence_of_card(_card_of(folder / "README.md")):
        return stated
    places = {path.relative_to(folder).as_posix(): path for path in (*folder.glob("*"), *folder.glob("LICENSES/*"))}
    names = [name for name, path in places.items() if path.is_file()]
    return licence_of_files(names, lambda name: licence_text(folder / name))


def licence_of_card(card: Mapping[str, Any]) -> str | None:
    """Return what a model card states: `license`, and `license_name` where that is `other`."""
    stated = stated_licence(card.get("license"))
    return (stated_licence(card.get("license_name")) if stated == "other" else None) or stated


def licence_of_files(names: Iterable[str], read: Callable[[str], str]) -> str | None:
    """Return what the licence files among `names`, paths in a checkpoint, say.

    Args:
        read: returns the text of one.
    """
    found = sorted(names)
    for name in (each for each in found if "/" not in each and each.startswith(("LICENSE", "LICENCE"))):
        text = read(name)
        if not is_placeholder(text):
            return _title(text) or f"see {name}"
    # Named by their SPDX identifier. Source: REUSE specification 3.3, "License files".
    named = sorted(Path(name).stem.lower() for name in found if fnmatchcase(name, "LICENSES/*"))
    return " and ".join(dict.fromkeys(named)) or None


def joined_licences(licences: Iterable[str | None]) -> str | None:
    """Return the licences of a chain, such as an adapter and its base, as one: all of them count, also the unknown."""
    stated = list(dict.fromkeys(licences))
    if not any(stated):
        return None
    if len(stated) == 1:
        return stated[0]
    return " and ".join(f"({each})" if each and " or " in each.lower() else each or UNKNOWN for each in stated)


def _card_of(path: Path) -> dict[str, Any]:
    """Return the front matter of a model card; {} where it has none that can be read: a card is prose.

    Source: the Hub's documentation, "Model Cards", metadata.
    """
    try:
        first, *rest = read_bounded(path).decode(errors="replace").lstrip().splitlines() or [""]
        if first.rstrip() != _FENCE or _FENCE not in rest:
            return {}
        card = parse_yaml("\n".join(rest[: rest.index(_FENCE)]))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def stated_licence(value: object) -> str | None:
    """Return a licence that somebody states: a text, or a list of texts; None for anything else."""
    names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
    text = " and ".join(filter(None, names))
    return (text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - len(CUT)] + CUT) or None


def licence_text(path: Path) -> str:
    """Return the text of a licence file.

    Raises:
        OSError: it cannot be read, is no regular file, or is too large to be one.
    """
    return read_bounded(path).decode(errors="replace")


def is_placeholder(text: str) -> bool:
    """Say whether a licence file is the note that MLflow writes where it found none."""
    return text.startswith("A license file could not be found")


def stated_in_file(licence: str | None) -> str:
    """Return the licence file of a model that is logged from a source: what the source states."""
    return f"{_STATES}{licence or UNKNOWN}\n"


def _title(text: str) -> str | None:
    if text.startswith(_STATES):
        return stated_licence(text.removeprefix(_STATES).strip())
    if "Apache License" in text and "Version 2.0" in text:
        return "apache-2.0"
    return "mit" if "MIT License" in text[:200] else None
