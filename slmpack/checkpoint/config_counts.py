"""Config counts: numbers of config.json that transformers makes so many objects of, before it makes them.

    num_hidden_layers: 10**9    10^9 modules, though none of them has a weight
    num_labels: 10**9           10^9 names of labels, which no language model has a use for

A size, such as that of the vocabulary, costs nothing: the model is made without memory for its weights, and compared
with them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmpack.errors import SourceError

_LAYERS = re.compile(r"(num_|n_)(.*_)?(layers?|blocks)|.*_(layers|blocks)")
_OTHERS = re.compile(r"num_labels|(num_|n_)(.*_)?(heads?|experts|groups)|.*_experts")
MOST_LAYERS = 1 << 10  # the largest known is 126, of Llama 3.1 405B
MOST_OTHERS = 1 << 14  # the largest known is Doge's, 16,384 experts
LARGEST = 2**63 - 1  # of torch's sizes
_SHOWN_CHARACTERS = 30


def require_counts(path: Path, config: dict[str, Any]) -> None:
    """Refuse numbers of layers, heads, experts or labels that are beyond any model's.

    Args:
        path: of the configuration.
        config: what it holds.

    Raises:
        SourceError: one is.
    """
    for name, value in _numbers(config):
        most = MOST_LAYERS if _LAYERS.fullmatch(name) else MOST_OTHERS if _OTHERS.fullmatch(name) else LARGEST
        if abs(value) > most:
            raise SourceError(f"{name} in {path} is {_shown(value)}", f"at most {most:,}", "save the model again")


def _shown(value: int) -> str:
    text = f"{value:,}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"a number of {value.bit_length():,} bits"


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the name and value of every whole number, those of nested configurations and of lists in them as well."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield from _numbers(each) if isinstance(value, list) else ()
            elif isinstance(each, int):
                yield name, each
