"""Conditions: comparisons and tests of values that are of a message, and what is known where they hold."""

from collections.abc import Sequence

from slmpack.checkpoint.content_flow.markers import all_are, is_marker
from slmpack.checkpoint.content_flow.operations import READS, SHAPES, Refused, found_marker
from slmpack.checkpoint.content_flow.values import (
    CLEAN,
    LETTERS,
    OF_CONTENT,
    Trait,
    Truth,
    Value,
    fact,
    union,
)

_COMPARING = {
    "eq": "eq", "equalto": "eq", "==": "eq", "sameas": "eq", "ne": "ne", "!=": "ne", "in": "in", "lt": "lt",
    "lessthan": "lt", "<": "lt", "gt": "gt", "greaterthan": "gt", ">": "gt", "le": "lteq", "<=": "lteq",
    "ge": "gteq", ">=": "gteq",
}  # fmt: skip
_EMPTY = frozenset({"", None, False, True})
_PART_KEYS = frozenset({"type", "text", "image", "image_url", "images", "video", "video_url", "audio", "audio_url"})
_LEAST = {"eq": 0, "ne": 0, "gt": 0, "lteq": 0, "gteq": 1, "lt": 1}  # of what a length may be compared with
_TURNED = {"gt": "lt", "lt": "gt", "gteq": "lteq", "lteq": "gteq"}


def compared(left: Value, operator: str, right: Value) -> Value:
    """Return `left operator right`."""
    if operator in {"in", "notin"}:
        truth = _membership(left, right)
        return fact(truth if operator == "in" else truth.inverted())
    if not (left.is_of_content or right.is_of_content):
        marked = bool((left.own | right.own) & Trait.MARK)
        return fact(Truth(marked, marked))
    if right.is_of_content and not left.is_of_content:
        left, right, operator = right, left, _TURNED.get(operator, operator)
    if left.own == right.own == Trait.MESSAGE and operator in {"eq", "ne"}:
        return CLEAN
    if right.is_of_content or right.constants is None:
        raise Refused(READS)
    if left.own & Trait.LENGTH:
        return _compared_length(left, operator, right)
    if operator not in {"eq", "ne"}:
        raise Refused(READS)
    marked = left.condition.is_marked
    if right.constants <= _EMPTY:
        return fact(Truth(marked, marked))
    if left.own & LETTERS and not left.inner & OF_CONTENT and all_are(is_marker, right.constants):
        truth = found_marker(right, marked_else=marked)
        return fact(truth if operator == "eq" else truth.inverted())
    raise Refused(READS)


def _compared_length(length: Value, operator: str, limit: Value) -> Value:
    """Return whether a length is that of nothing; any other limit is refused."""
    others = length.traits & OF_CONTENT & ~Trait.LENGTH
    if others or limit.constants is None or not limit.constants <= {0, _LEAST.get(operator)}:
        raise Refused(READS)
    marked = length.condition.is_marked
    return fact(Truth(marked, marked))


def _membership(left: Value, right: Value) -> Truth:
    marked = bool((left.own | right.own) & (Trait.MARK | (Trait.CUT if right.is_of_content else Trait(0))))
    if not (left.is_of_content or right.is_of_content):
        return Truth(marked, marked)
    if right.own == right.own & (Trait.MESSAGES | Trait.MARK) and left.own == Trait.MESSAGE and not right.inner:
        return Truth(marked, marked)
    if left.is_of_content or right.inner & OF_CONTENT:
        raise Refused(READS)
    if not right.own & OF_CONTENT & ~Trait.MESSAGE:  # a key of a message
        return Truth(marked, marked)
    if (
        right.own & OF_CONTENT in {Trait.PART, Trait.PARTS}
        and left.constants is not None
        and left.constants <= _PART_KEYS
    ):
        return Truth(marked, marked)
    if right.own & LETTERS and not right.own & OF_CONTENT & ~LETTERS and all_are(is_marker, left.constants):
        return found_marker(left, marked_else=marked)
    raise Refused(READS)


def tested(name: str, value: Value, given: Sequence[Value]) -> Value:
    """Return `value is name(given)`."""
    if name in _COMPARING and len(given) == 1:
        return compared(value, _COMPARING[name], given[0])
    if any(each.is_of_content for each in given):
        raise Refused(READS)
    marked = bool(union(value, *given).own & (Trait.MARK | Trait.CUT))
    if value.traits & OF_CONTENT and name not in SHAPES:
        raise Refused(READS)
    return fact(Truth(marked, marked))
