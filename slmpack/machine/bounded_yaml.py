"""Bounded YAML: text that somebody else wrote, refused before an alias in it stands for more than memory holds.

Ten lines of aliases to aliases stand for 10^9 values: a reader shares them, and the first thing that copies, compares
or prints the result does not. So the text is read as events first, and what it would grow to is counted.
"""

from typing import Any

import yaml  # type: ignore[import-untyped]

from slmpack.machine.bounded_file import MIB, MOST_DEPTH

MOST_CHARACTERS = MIB
MOST_VALUES = 1 << 17  # aliases written out
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str) -> Any:
    """Return the value of YAML text; plain types only.

    Raises:
        ValueError: it is none, is too long or nested too deep, or its aliases stand for too much.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text):,} characters of YAML, more than {MOST_CHARACTERS:,}")
    try:
        _require_bounded(text)
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - both loaders are the safe ones
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or type(error).__name__).split())
        raise ValueError(f"no YAML: {reason}") from error


def _require_bounded(text: str) -> None:
    """Count the values of the text with every alias written out."""
    sizes, anchors = [0], list[str | None]()
    known: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_LOADER):
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(0)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop() + 1, anchors.pop()
            known |= {anchor: size} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            known |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in known:
                raise ValueError(f"an alias to {event.anchor}, which is not there before it")
            size = known[event.anchor]
        sizes[-1] += size
        if sizes[-1] > MOST_VALUES:
            raise ValueError(f"YAML of more than {MOST_VALUES:,} values with its aliases written out")
        if len(sizes) > MOST_DEPTH:
            raise ValueError(f"YAML nested more than {MOST_DEPTH} deep")
