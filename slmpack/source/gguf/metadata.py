"""GGUF metadata: typed access to a file's keys, whose values may be of any type, against the specification.

A key that decides what the model computes is of the type that is asked for, or refused with its name, what was found
and what was expected. A key of no consequence, such as a name, becomes text as far as it can.
"""

import math
from collections.abc import Mapping
from typing import Any

from slmpack.errors import SourceError

CONVERT_AGAIN = "convert the model again or use its original checkpoint"
LARGEST = 2**31 - 1  # of a size or an id, as llama.cpp has them
_SHOWN_CHARACTERS = 60
_LABEL_CHARACTERS = 200


class Metadata:
    """The keys of one file; each method returns a value of one type, or `None` where the key is missing."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def has(self, key: str) -> bool:
        return key in self._values

    def refuse(self, key: str, expected: str, found: str = "", advice: str = CONVERT_AGAIN) -> SourceError:
        """Return the error for a key; without `found` it names the value that the key has."""
        return SourceError(f"{key} {found or self._shown(key)}", expected, advice)

    def _shown(self, key: str) -> str:
        if key not in self._values:
            return "is missing"
        text = repr(self._values[key])
        return f"is {text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + '...'}"

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.refuse(key, "a text")
        return value

    def label(self, key: str) -> str | None:
        """Return what a key of no consequence says: a text in one line, several joined, a number as text."""
        value = self._values.get(key)
        parts = [part for part in (value if isinstance(value, list) else [value]) if type(part) in (str, int, float)]
        lines = dict.fromkeys(" ".join(str(part).split()) for part in parts)
        return " and ".join(filter(None, lines))[:_LABEL_CHARACTERS] or None

    def whole(self, key: str, least: int = 0, most: int = LARGEST) -> int | None:
        value = self._values.get(key)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(key, f"a whole number from {least} to {most}")
        return value

    def required(self, key: str, least: int = 1) -> int:
        """Return a whole number that has to be there."""
        value = self.whole(key, least)
        if value is None:
            raise SourceError(f"the file has no {key}", f"a whole number from {least} to {LARGEST}", CONVERT_AGAIN)
        return value

    def count(self, key: str) -> int | None:
        """Return a number that some programs write as text."""
        value = self._values.get(key)
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        return self.whole(key)

    def positive(self, key: str) -> float | None:
        value = self._values.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
            raise self.refuse(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if type(value) not in (bool, int) or value not in (0, 1):
            raise self.refuse(key, "true or false")
        return bool(value)

    def texts(self, key: str) -> list[str]:
        return self._array(key, (str,), "texts", None)

    def wholes(self, key: str, length: int | None = None) -> list[int]:
        return self._array(key, (int,), "whole numbers", length)

    def numbers(self, key: str, length: int) -> list[float]:
        found = self._array(key, (int, float), "numbers", length)
        if not all(math.isfinite(value) for value in found):
            raise self.refuse(key, "finite numbers", "has one that is not finite")
        return found

    def _array(self, key: str, kinds: tuple[type, ...], what: str, length: int | None) -> list[Any]:
        """Return a list that has entries, all of one kind; with `length`, one a token."""
        values = self._values.get(key)
        if values is None or values == []:
            raise self.refuse(key, f"a list of {what}", "is missing or empty")
        if not isinstance(values, list):
            raise self.refuse(key, f"a list of {what}")
        stranger = next((value for value in values if type(value) not in kinds), None)
        if stranger is not None:
            raise self.refuse(key, f"a list of {what}", f"has the entry {repr(stranger)[:_SHOWN_CHARACTERS]}")
        if length is not None and len(values) != length:
            raise self.refuse(key, f"{length}, one a token", f"has {len(values)} entries")
        return values
