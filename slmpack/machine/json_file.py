"""JSON files: one object each, read with an error that names the file, written the same on every run."""

import json
from pathlib import Path
from typing import Any

from slmpack.errors import SourceError
from slmpack.machine.bounded_file import limit_of, parse_json, read_bounded


def read_json(path: Path) -> dict[str, Any]:
    """Read one object.

    Raises:
        SourceError: the file is missing, not regular or too large, or is not a JSON object.
    """
    try:
        value = parse_json(read_bounded(path), limit_of(path.name))
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read ({error.strerror})", f"a checkpoint with {path.name}", "name another source"
        ) from error
    except ValueError as error:
        raise SourceError(f"{path} is not JSON ({error})", "a JSON object", "fetch or save the model again") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds a {type(value).__name__}", "a JSON object", "fetch or save the model again")
    return value


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON that reads the same on every run."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
