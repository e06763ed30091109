"""Run names: a run is named by its parameters, unless somebody gave it a name.

Prefect knows no run without a name, and does not say who made it up. Three of its parts do, each from word lists of its
own, so that a name is known as theirs by its words:

    its server and its command line     brave-otter               adjective and animal, by the package coolname
    the form in its dashboard           xi6-tarakis-nebula        Greek letter, place, and sometimes a suffix
    the form in its second dashboard    Rustic-Gecko              adjective and animal

The dashboards' lists are those of Prefect 3.8.8. A name that a later Prefect makes of other words is left as it is.
Source: prefect/server/ui and prefect/server/ui-v2, the scripts of the form.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from prefect import runtime

DASHBOARD_NAMES = Path(__file__).with_name("dashboard_names.json")


def unless_given(name_of: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """Return what Prefect names a flow's runs by: the parameters, or the name that the run was given."""

    def name_of_run() -> str:
        name = str(runtime.flow_run.name)
        return name_of(runtime.flow_run.parameters) if is_generated(name) else name

    return name_of_run


def is_generated(name: str) -> bool:
    """Tell whether Prefect made the name up."""
    first, _, second = name.partition("-")
    adjectives, animals = _coolname_words()
    return (first in adjectives and second in animals) or _dashboard_names().fullmatch(name) is not None


@cache
def _coolname_words() -> tuple[frozenset[str], frozenset[str]]:
    """Return the first and the second words of coolname's names of two words."""
    from coolname.data import config as untyped

    config: Any = untyped

    def words(name: str) -> frozenset[str]:
        entry = config[name]
        return frozenset(entry.get("words", ())).union(*map(words, entry.get("lists", ())))

    (pattern,) = config["2"]["lists"]
    first, second = config[pattern]["lists"]
    return words(first), words(second)


@cache
def _dashboard_names() -> re.Pattern[str]:
    kinds: dict[str, list[str]] = json.loads(DASHBOARD_NAMES.read_text(encoding="utf-8"))
    any_of = {kind: f"(?:{'|'.join(map(re.escape, words))})" for kind, words in kinds.items()}
    first = rf"{any_of['letters']}\d{{0,3}}-{any_of['places']}?(?:-{any_of['suffixes']})?"
    return re.compile(f"{first}|{any_of['adjectives']}-{any_of['animals']}")
