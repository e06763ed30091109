"""Options of the command line, made from the fields of the records that flows take, and read back into them."""

import argparse
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo

from flows.cli_parser import choice
from slmpack.records import Record
from slmpack.reports import LicencePolicy

LICENCE = "_licence"
LICENCE_OPTIONS = {"allow": "ID", "refuse": "ID", "unknown": "DO"}
OptionsT = TypeVar("OptionsT", bound=Record)


def add_record_options(
    parser: argparse.ArgumentParser, record: type[Record], metavars: Mapping[str, str], suffix: str = ""
) -> None:
    """Add an option for each of some fields of `record`; texts, choices and defaults are the field's.

    Args:
        metavars: the fields, and what stands for their value in the help; "" for a switch.
        suffix: what an option's name has after the field's.
    """
    for name, metavar in metavars.items():
        field = record.model_fields[name]
        parser.add_argument(option_of(name + suffix), help=_help_of(field), **_kind_of(field, metavar))


def add_licence_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the licence policy, which is a record within the options of packaging."""
    add_record_options(parser, LicencePolicy, LICENCE_OPTIONS, LICENCE)


def read_licences(parsed: argparse.Namespace) -> LicencePolicy:
    """Return the licence policy that the options say.

    Raises:
        UsageError: a licence is allowed and refused, or is none.
    """
    return read_record(LicencePolicy, parsed, LICENCE_OPTIONS, LICENCE)


def read_record(
    record: type[OptionsT], parsed: argparse.Namespace, names: Mapping[str, str], suffix: str = "", **rest: Any
) -> OptionsT:
    """Return the record with the values of the options that were given, and those of `rest`.

    Raises:
        UsageError: a value is out of its field's bounds.
    """
    from pydantic import ValidationError

    from slmpack.errors import UsageError

    given = {name: value for name in names if (value := getattr(parsed, name + suffix)) is not None}
    try:
        return record.model_validate(given | rest)
    except ValidationError as error:
        first = error.errors()[0]
        options = [option_of(str(first["loc"][0]) + suffix), str(first["input"])] if first["loc"] else []
        raise UsageError(
            " ".join(options) or "the options do not fit each other",
            first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
            f"see `slmpack {parsed.command} --help`",
        ) from error


def option_of(name: str) -> str:
    """Return the option of a field: `--max-length` of `max_length`."""
    return f"--{name.replace('_', '-')}"


def _kind_of(field: FieldInfo, metavar: str) -> dict[str, Any]:
    """Return how argparse reads the field; a number stays text, and is checked by the record."""
    if get_origin(field.annotation) is tuple:
        return {"action": "append", "metavar": metavar}
    kind: Any = next(kind for kind in get_args(field.annotation) or [field.annotation] if kind is not type(None))
    if kind is bool:
        return {"action": "store_true"}
    if issubclass(kind, StrEnum):
        return {"type": choice(kind), "default": field.default, "metavar": metavar}
    return {"type": Path if kind is Path else str, "metavar": metavar}


def _help_of(field: FieldInfo) -> str:
    """Return the field's description, with what may be chosen and what counts if the option is left out."""
    text = str(field.description)
    if isinstance(field.default, StrEnum):
        text += f" One of {', '.join(type(field.default))}"
    if get_origin(field.annotation) is tuple:
        return f"{text} May be repeated.".replace("%", "%%")
    if field.default is not None and not isinstance(field.default, bool):
        text += f" (default: {field.default})"
    return text.replace("%", "%%")
