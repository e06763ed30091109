"""Tokenizer rules: what tokenizer.json holds, once it is laid out as the library writes it.

    model: {vocab: {text: id} or [[text, score], ...], merges: ["a b" or ["a", "b"], ...]}
    added_tokens: [{content: text, id: id}, ...]

What else is in the file is left to the library, which runs in a child (`text_trial`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmpack.errors import SourceError
from slmpack.machine.json_file import read_json


def read_rules(path: Path) -> dict[str, Any]:
    """Read a tokenizer.json.

    Raises:
        SourceError: it cannot be read, or one of the fields above is laid out otherwise; the message names it.
    """
    rules = read_json(path)
    model = rules.get("model")
    if not isinstance(model, dict):
        raise SourceError(f"{path} has no model", "a fast tokenizer", "fetch or save it again")
    for field, value, is_laid_out, expected in (
        ("model.vocab", model.get("vocab"), _is_vocabulary, "ids by their tokens, or tokens with scores"),
        ("model.merges", model.get("merges"), _is_list_of(_is_merge), "pairs of tokens"),
        ("added_tokens", rules.get("added_tokens"), _is_list_of(_is_added), "tokens with content and id"),
    ):
        if value is not None and not is_laid_out(value):
            raise SourceError(f"{field} in {path} is laid out otherwise", expected, "fetch or save the model again")
    return rules


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_vocabulary(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(number) is int for number in value.values())
    return _is_list_of(_is_scored)(value)


def _is_scored(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _is_merge(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _is_added(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str) and type(value.get("id")) is int
