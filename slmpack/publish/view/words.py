"""Words: texts and numbers that came out of a registry, fit for a line on a terminal and for JSON.

Whoever may tag a version writes what we read here. A text becomes one harmless line without secrets, and never an
endless one; what is no number is none. JSON is ASCII: a character that a terminal would obey is its number there.
"""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel
from rich.cells import cell_len

from slmpack.plain_text import tag_text

NOTHING = "-"
LINE_CHARACTERS = 240
CELL_CHARACTERS = 60
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def shown(text: object, longest: int = LINE_CHARACTERS) -> str:
    """Return a text as one harmless line of at most `longest` characters."""
    line = tag_text(str(text))
    return line if len(line) <= longest else f"{line[: longest - 1]}{ELLIPSIS}"


def number_of(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def count_of(value: object) -> int | None:
    """Return a whole number, of bytes or of loops; None for anything else."""
    number = number_of(value)
    return None if number is None else round(number)


def moment_of(milliseconds: int) -> str:
    """Return a time of MLflow's as ISO 8601 in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def day_of(moment: str) -> str:
    """Return the date that it was on this machine's clock."""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d}"


def minute_of(moment: str) -> str:
    """Return the date and the time of day that it was on this machine's clock."""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}"


def json_text(record: BaseModel) -> str:
    """Return a record as one line of JSON, in ASCII."""
    return json.dumps(record.model_dump(mode="json"), allow_nan=False)


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Return rows as aligned columns, two spaces apart.

    Args:
        right: the columns of numbers.
    """
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            _padded(cell, width, place in right) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _padded(cell: str, width: int, is_right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if is_right else cell + space
