"""An attempt: one recipe that was tried, as the page tells it; and words from outside that are fit for a page."""

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator

from slmpack.records import Record
from slmpack.reports import Quality, Speed


def _clean(text: str) -> str:
    """Replace what no file takes (lone surrogates, control characters) or what turns the reading direction."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if _is_unfit(character) else character for character in text.replace("\r\n", "\n")
    )


def _is_unfit(character: str) -> bool:
    if unicodedata.category(character) in {"Cc", "Cs"}:
        return character not in "\n\t"
    return character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffe\uffff"


Text = Annotated[str, AfterValidator(_clean)]  # words from outside, fit for a page


class Attempt(Record):
    """One recipe that was tried.

    Attributes:
        recipe: its name.
        size_bytes: None where it was not built.
        quality: None where it was not measured.
        status: `refused` by the policy, `not built` because it cannot take the model or this machine cannot take it,
            or `failed` before it could be measured.
        reason: why it was not published, else None.
    """

    recipe: Text
    size_bytes: int | None
    quality: Quality | None
    speed: Speed | None
    status: Literal["published", "refused", "not built", "failed"]
    reason: Text | None = None
