"""Operations: what a template may do with values that are of a message, and what comes of it.

Every function returns the value that an operation makes, or raises `Refused` where it reads the words of a message.
What is not of a message may be computed with at will.
"""

from collections.abc import Mapping, Sequence

from slmpack.checkpoint.content_flow.markers import all_are, is_marker, is_markup, is_space, is_switch
from slmpack.checkpoint.content_flow.values import (
    CLEAN,
    LETTERS,
    OF_CONTENT,
    TEXT_FIELDS,
    Trait,
    Truth,
    Value,
    as_text,
    fact,
    field_of,
    item_of,
    joined_text,
    union,
)

READS = "depends on the words of a message"
SELECTS = "chooses words of its own by a marker in a message"
MIXES = "cuts a text in which words of its own stand beside those of a message"

_CASES = frozenset({"lower", "upper", "capitalize", "title", "casefold", "swapcase"})
_AS_TEXT = _CASES | {"string", "tojson", "e", "escape", "forceescape", "safe"}
_STRIPS = frozenset({"strip", "lstrip", "rstrip", "trim"})
_SPLITS = frozenset({"split", "rsplit", "splitlines", "partition", "rpartition", "removeprefix", "removesuffix"})
_NAMED = {  # arguments by name that do no more than their filter
    "map": frozenset({"attribute", "default"}),
    "indent": frozenset({"width", "first", "blank"}),
    "sort": frozenset({"attribute"}),
    "tojson": frozenset({"indent", "ensure_ascii", "sort_keys"}),
}
_ENTRIES = frozenset({"items", "values", "dictsort"})
_ITEMS = frozenset({"first", "last", "length", "count", "list", "reverse", "select", "reject"})
SHAPES = frozenset(
    {"string", "mapping", "iterable", "sequence", "none", "defined", "undefined", "boolean", "number", "integer"}
    | {"float", "callable", "true", "false"}
)


class Refused(Exception):  # noqa: N818 - a finding, not an error
    """A template does what it may not; `place` is the number of a token, see `written`."""

    def __init__(self, reason: str, place: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.place = reason, place


def computed(*values: Value) -> Value:
    """Return what an operation makes that may depend on all of its operands: arithmetic, an index, a function."""
    if any(value.is_of_content for value in values):
        raise Refused(READS)
    require_unselected(*values)
    traits = union(CLEAN, *values).traits
    return Value(traits, traits)


def require_unselected(*values: Value) -> None:
    """Refuse an operation in which a value that depends on a marker meets words that it could select."""
    traits = union(CLEAN, *values).traits
    if Trait.MARK in traits and Trait.WORDS in traits:
        raise Refused(SELECTS)


def item(value: Value, index: Value) -> Value:
    """Return `value[index]`."""
    if index.is_of_content or index.own & Trait.KIND:
        raise Refused(READS)
    if index.own & Trait.MARK:
        require_unselected(index, value)
    names = index.constants
    if names is not None and all(isinstance(name, str) for name in names):
        return union(*(field_of(value, str(name)) for name in names)).adding(index.own & Trait.MARK)
    found = item_of(_uncut(value) if value.own & LETTERS else value)
    if names is None or not all(isinstance(name, int) for name in names):
        found = union(found, field_of(value, None))
    if value.own & LETTERS and (names is None or not names <= {0, -1}):  # it is there if the text is long enough
        found = found.adding(Trait.CUT)
    return found.adding(index.own & Trait.MARK)


def sliced(value: Value, bounds: Sequence[Value]) -> Value:
    """Return `value[start:stop:step]`."""
    if any(bound.is_of_content for bound in bounds):
        raise Refused(READS)
    require_unselected(*bounds, value.without_constants())
    cut = _uncut(value).adding(Trait.TEXT | Trait.CUT) if value.own & LETTERS else value
    return union(cut, *bounds).without_constants()


def _uncut(value: Value) -> Value:
    """Refuse to cut what has words of a message beside words of the template: a marker could hide the latter."""
    if value.own & LETTERS and value.own & Trait.WORDS:
        raise Refused(MIXES)
    return value


# ------------------------------------------------------------------------------------------ filters and methods


def filtered(name: str, value: Value, given: Sequence[Value], named: Mapping[str, Value]) -> Value:
    """Return `value | name(given)`."""
    if name in {"default", "d"}:
        return _or_default(value, union(CLEAN, *given, *named.values()))
    if any(each.is_of_content for each in (*given, *named.values())):
        raise Refused(READS)
    if not value.is_of_content:
        return computed(value, *given, *named.values())
    if value.traits & (Trait.SPACE | Trait.LOOP) or named.keys() - _NAMED.get(name, frozenset()):
        raise Refused(READS)
    if name in {"selectattr", "rejectattr"}:
        return _selected(name, value, given)
    if name == "map":
        return _mapped(value, given, named)
    if name in _ITEMS and not given:
        return _items(name, value)
    return _as_filter(name, value, given, named)


def _items(name: str, value: Value) -> Value:
    """Return what a filter without arguments makes of items: one, some or all of them, or their count."""
    if name in {"first", "last"}:
        return item_of(_uncut(value))
    if name in {"length", "count"}:
        return _length(value)
    value = value.without_constants()
    if name in {"list", "reverse"} or value.own & Trait.MESSAGES:
        return value.adding(Trait.TEXT if value.own & LETTERS else Trait(0))  # a list of letters is no text
    return value.adding(value.traits & OF_CONTENT | Trait.CUT)  # whether any are left says what they are


def _as_filter(name: str, value: Value, given: Sequence[Value], named: Mapping[str, Value]) -> Value:
    by_kind = "attribute" in named and named["attribute"].constants == frozenset({"type"})
    if name == "sort" and by_kind and not given and value.own & OF_CONTENT == Trait.PARTS:
        return value.without_constants()
    if name == "join":
        return joined(given[0] if given else CLEAN, value)
    if name in _ENTRIES and not given and not named:
        return _entries(value)
    numbers = union(Value(constants=frozenset({4})), *given, *named.values()).constants
    if name == "indent" and all_are(lambda width: isinstance(width, int), numbers):
        return as_text(value)
    return _as_method(name, value, given)


def _or_default(value: Value, default: Value) -> Value:
    if value.condition.is_marked and Trait.WORDS in default.traits:
        raise Refused(SELECTS)
    return union(value, default).without_constants()


def _selected(name: str, value: Value, given: Sequence[Value]) -> Value:
    """Return the messages or parts of which a field passes a test."""
    names = (given[0].constants if given else None) or frozenset[object]()
    first = {str(name).partition(".")[0] for name in names}
    tests = given[1].constants if len(given) > 1 else frozenset({"defined"})
    on_shape = tests is not None and tests <= SHAPES
    if not first or (first & TEXT_FIELDS and not (on_shape and names <= TEXT_FIELDS)):
        raise Refused(READS)
    if value.own & (LETTERS | Trait.PARTS):
        is_kind = len(given) == 3 and tests is not None and tests <= {"equalto", "eq", "=="}
        kinds = given[2].constants if is_kind else None
        if (
            name != "selectattr"
            or names != frozenset({"type"})
            or value.own & Trait.TEXT
            or not all_are(_is_text, kinds)
        ):
            raise Refused(READS)  # letters pass another test
        return Value(value.own & (Trait.MARK | Trait.WORDS), value.inner | Trait.PART)
    if value.inner & LETTERS and not on_shape:
        raise Refused(READS)
    return value.without_constants()


def _mapped(value: Value, given: Sequence[Value], named: Mapping[str, Value]) -> Value:
    """Return a list of fields, or of texts."""
    kept = value.own & (LETTERS | Trait.MARK | Trait.CUT | Trait.WORDS)
    kept |= Trait.TEXT if kept & LETTERS else Trait(0)  # a list of letters is no text
    if not given and "attribute" in named and (names := named["attribute"].constants):
        found = union(*(field_of(item_of(value), str(name).partition(".")[0]) for name in names))
        cut = Trait.CUT if any("." in str(name) for name in names) and found.is_of_content else Trait(0)
        return Value(kept, union(found, named.get("default", CLEAN)).traits | cut)
    names = given[0].constants if len(given) == 1 and not named else None
    if names is None or not names <= _AS_TEXT | {"trim"}:
        raise Refused(READS)
    return Value(kept, as_text(item_of(value)).traits | value.inner)


def _length(value: Value) -> Value:
    if value.own & LETTERS:
        return Value(Trait.LENGTH | (value.own & (Trait.CUT | Trait.MARK)))
    return Value(value.own & Trait.MARK | (Trait.LENGTH if value.own & (Trait.LENGTH | Trait.LOOP) else Trait(0)))


def joined(separator: Value, value: Value) -> Value:
    """Return the items of a value in one text; words between pieces of a text would show how many there are."""
    if separator.is_of_content:
        raise Refused(READS)
    if value.own & LETTERS and Trait.WORDS in separator.traits:
        raise Refused(READS)
    require_unselected(Value(value.own & Trait.MARK), separator)
    return joined_text(separator, value)


def _entries(value: Value) -> Value:
    fields = field_of(value, None).traits | as_text(value).traits
    return Value(value.own & (LETTERS | Trait.MARK), fields)


def method(name: str, value: Value, given: Sequence[Value], named: Mapping[str, Value]) -> Value:
    """Return `value.name(given)`."""
    if name == "join" and not value.is_of_content and len(given) == 1:
        return joined(value, given[0])
    if any(each.is_of_content for each in (*given[:1], *named.values())):
        raise Refused(READS)
    if name == "get" and given and not named:
        return union(item(value, given[0]), *given[1:]).without_constants()
    if any(each.is_of_content for each in given):
        raise Refused(READS)
    if not value.is_of_content:
        return computed(value, *given, *named.values())
    if name in _ENTRIES and not given and not named:
        return _entries(value)
    if name == "keys" and not given and not value.own & Trait.TEXT:
        return Value(value.own & Trait.CONTENT, as_text(value).traits if value.own & LETTERS else Trait(0))
    if named:
        raise Refused(READS)
    return _as_method(name, value, given)


def _as_method(name: str, value: Value, given: Sequence[Value]) -> Value:
    """Return what a method of text makes, some of which are filters as well."""
    if name in _AS_TEXT and (not given or name == "tojson"):
        return as_text(value)
    if name in _STRIPS and all(all_are(is_space, each.constants) for each in given):
        return as_text(value)
    if value.traits & (OF_CONTENT & ~LETTERS):
        raise Refused(READS)
    if name in _SPLITS and (not given or _may_cut_at(given[0])):
        return as_text(_uncut(value)).adding(Trait.CUT)
    if name == "replace" and len(given) >= 2 and _may_cut_at(given[0]):
        if not all_are(lambda text: text == "" or (is_markup(text) and isinstance(text, str)), given[1].constants):
            raise Refused(READS)
        _uncut(value)
        is_whole = all_are(lambda text: is_switch(text) or is_space(text), given[0].constants)
        cut = Trait(0) if is_whole and not value.own & Trait.JOINED else Trait.CUT  # joined: the marker is of both
        return as_text(union(value, given[1])).adding(cut)
    if name in {"startswith", "endswith"} and len(given) == 1 and all_are(is_marker, given[0].constants):
        return fact(found_marker(given[0], marked_else=value.condition.is_marked))
    raise Refused(READS)


def found_marker(marker: Value, *, marked_else: bool) -> Truth:
    return Truth(True, marked_else, by_switch=not marked_else and all_are(is_switch, marker.constants))


def _is_text(constant: object) -> bool:
    return isinstance(constant, str)


def _may_cut_at(separator: Value) -> bool:
    return all_are(lambda text: text is None or is_marker(text) or is_space(text), separator.constants)
