"""Alike: branches that write the same words, and differ in white space alone: a marker chooses no words there."""

from collections.abc import Sequence
from typing import Any

_WRITTEN = frozenset({"Output", "TemplateData", "Const", "Add", "Concat", "Name", "Getattr"})


def are_alike(statements: Sequence[Any], others: Sequence[Any]) -> bool:
    """Say whether statements only write, and write the same but for white space around their texts."""
    written = _written(list(statements))
    return written is not None and written == _written(list(others))


def _written(node: Any) -> Any:
    """Return a syntax tree as tuples, without white space at the ends of texts; None if it does more than write."""
    if isinstance(node, list):
        items = [_written(each) for each in node]
        return None if None in items else tuple(items)
    if isinstance(node, str):
        return (node.strip(),)
    kind = type(node).__name__
    if not hasattr(node, "iter_fields"):
        return (kind, node)
    fields = [_written(value) for _, value in node.iter_fields()]
    return None if kind not in _WRITTEN or None in fields else (kind, *fields)
