"""Licence: what a checkpoint's own files say of it."""

from pathlib import Path
from typing import Any

from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.bounded_yaml import parse_yaml

MOST_CHARACTERS = 200  # of a name; the longest of SPDX has 62
_FENCE = "---"


def licence_of(folder: Path) -> str | None:
    """Return what a checkpoint says of its licence: the model card's `license`, else its licence file."""
    card = _card_of(folder / "README.md")
    stated = stated_licence(card.get("license"))
    if stated := (stated_licence(card.get("license_name")) if stated == "other" else None) or stated:
        return stated
    files = (path for pattern in ("LICENSE*", "LICENCE*") for path in folder.glob(pattern) if path.is_file())
    for path in sorted(files):
        text = licence_text(path)
        if not is_placeholder(text):
            return _title(text) or f"see {path.name}"
    # Named by their SPDX identifier. Source: REUSE specification 3.3, "License files".
    named = sorted(path.stem.lower() for path in folder.glob("LICENSES/*") if path.is_file())
    return " and ".join(dict.fromkeys(named)) or None


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
    return " and ".join(filter(None, names))[:MOST_CHARACTERS] or None


def licence_text(path: Path) -> str:
    """Return the text of a licence file.

    Raises:
        OSError: it cannot be read, is no regular file, or is too large to be one.
    """
    return read_bounded(path).decode(errors="replace")


def is_placeholder(text: str) -> bool:
    """Say whether a licence file is the note that MLflow writes where it found none."""
    return text.startswith("A license file could not be found")


def _title(text: str) -> str | None:
    if "Apache License" in text and "Version 2.0" in text:
        return "apache-2.0"
    return "mit" if "MIT License" in text[:200] else None
