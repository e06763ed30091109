"""Suggest: what a person may have meant by a word that names nothing."""

import difflib
from collections.abc import Iterable

SHOWN = 8


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`; None where none is."""
    names = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(word.casefold(), names, n=1, cutoff=0.6)
    found = found or [name for name in names if word and name.startswith(word.casefold())][:1]
    return names[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return `did you mean X?`, or another advice where nothing is like it."""
    found = closest(word, known)
    return otherwise if found is None else f"did you mean {found}?"


def listed(names: Iterable[str], nothing: str = "none") -> str:
    """Return the names in one phrase, a long list cut short."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more if every else nothing
