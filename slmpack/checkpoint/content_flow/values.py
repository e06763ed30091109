"""Values: what is known of a value of a template, without its text.

    messages --item--> MESSAGE --.content--> CONTENT --item--> PART --.text--> TEXT --split, [1:]--> TEXT and CUT

A container that the template makes itself (`[content]`, `dict(a=content)`) has in `inner` what its items are.
"""

from dataclasses import dataclass, field, replace
from enum import Flag, auto

TEXT_FIELDS = frozenset({"content", "reasoning_content", "reasoning", "thinking"})


class Trait(Flag):
    """What a value may be, all of what it may be at once.

    MESSAGES, MESSAGE   the list, one of it
    CONTENT             of a message: text, or a list of parts
    PARTS               a content that is no text: a list of parts, or one
    PART                of a content that is a list; a letter, if it is text
    TEXT                of a message, or made of it
    CUT                 cut out of it, so that it may be empty although the message is not
    LENGTH              how long it is
    KIND                the `type` of a part
    LOOP                the variable `loop`, and CUT where the loop is over a content
    SPACE               a namespace, which may hold any of them
    JOINED              joined of several texts
    MARK                depends on a marker
    WORDS               may have words that the template itself has
    """

    MESSAGES = auto()
    MESSAGE = auto()
    CONTENT = auto()
    PARTS = auto()
    PART = auto()
    TEXT = auto()
    CUT = auto()
    LENGTH = auto()
    KIND = auto()
    LOOP = auto()
    SPACE = auto()
    JOINED = auto()
    MARK = auto()
    WORDS = auto()


NOTHING = Trait(0)
LETTERS = Trait.CONTENT | Trait.PART | Trait.TEXT
OF_CONTENT = LETTERS | Trait.PARTS | Trait.MESSAGES | Trait.MESSAGE | Trait.LENGTH | Trait.LOOP | Trait.SPACE


@dataclass(frozen=True)
class Truth:
    """What is known where a condition holds, and where it does not.

    Attributes:
        marked_if, marked_else: a marker decides that, so that only markup may be written there.
        parts_if, parts_else: variables of loops that are parts there, and not letters.
        lists_if, lists_else: paths of contents that are no text there, such as `message['content']`.
        by_switch: every such marker is a switch, see `markers`.
    """

    marked_if: bool = False
    marked_else: bool = False
    parts_if: frozenset[str] = frozenset()
    parts_else: frozenset[str] = frozenset()
    by_switch: bool = False
    lists_if: frozenset[str] = frozenset()
    lists_else: frozenset[str] = frozenset()

    @property
    def is_marked(self) -> bool:
        return self.marked_if or self.marked_else

    def inverted(self) -> "Truth":
        return Truth(
            self.marked_else,
            self.marked_if,
            self.parts_else,
            self.parts_if,
            self.by_switch,
            self.lists_else,
            self.lists_if,
        )

    def both(self, other: "Truth") -> "Truth":
        """Return what is known of `self and other`."""
        return Truth(
            self.marked_if or other.marked_if,
            self.marked_else or other.marked_else,
            self.parts_if | other.parts_if,
            self.parts_else & other.parts_else,
            all(each.by_switch for each in (self, other) if each.is_marked),
            self.lists_if | other.lists_if,
            self.lists_else & other.lists_else,
        )

    def either(self, other: "Truth") -> "Truth":
        """Return what is known of `self or other`."""
        return self.inverted().both(other.inverted()).inverted()


@dataclass(frozen=True)
class Value:
    """One value.

    Attributes:
        constants: all that it can be; None where that is not known.
        truth: of a condition.
        each: of `loop`, what the loop is over.
    """

    own: Trait = NOTHING
    inner: Trait = NOTHING
    constants: frozenset[object] | None = None
    truth: Truth | None = field(default=None, compare=False)
    each: "Value | None" = field(default=None, compare=False)

    @property
    def traits(self) -> Trait:
        return self.own | self.inner

    @property
    def is_of_content(self) -> bool:
        return bool(self.traits & OF_CONTENT)

    @property
    def condition(self) -> Truth:
        """What is known where the value is true."""
        marked = bool(self.own & (Trait.MARK | Trait.CUT))
        return self.truth or Truth(marked, marked)

    def adding(self, traits: Trait) -> "Value":
        return replace(self, own=self.own | traits, truth=None)

    def without_constants(self) -> "Value":
        return Value(self.own, self.inner)

    def stored(self) -> "Value":
        """Return the value as a variable has it: a loop's variable may be another one when it is read."""
        none = frozenset[str]()
        truth = self.truth and replace(self.truth, parts_if=none, parts_else=none, lists_if=none, lists_else=none)
        return replace(self, truth=truth)


CLEAN = Value()


def fact(truth: Truth) -> Value:
    """Return the value of a condition."""
    return Value(Trait.MARK if truth.is_marked else NOTHING, truth=truth)


def union(*values: Value) -> Value:
    """Return what is known of a value that is one of `values`."""
    own = inner = NOTHING
    constants: frozenset[object] | None = frozenset()
    for value in values:
        own, inner = own | value.own, inner | value.inner
        constants = None if constants is None or value.constants is None else constants | value.constants
    if own & Trait.PARTS and own & LETTERS:  # it may be a text after all
        own = own & ~Trait.PARTS | Trait.CONTENT
    return Value(own, inner, constants)


def without_text(value: Value) -> Value:
    """Return a value that a test found to be no text."""
    return replace(value, own=value.own & ~(LETTERS | Trait.CUT) | Trait.PARTS) if value.own & LETTERS else value


def as_text(value: Value) -> Value:
    """Return the value written as text: what was in it is in the text."""
    traits = value.traits
    text = Trait.TEXT if traits & OF_CONTENT else NOTHING
    if value.constants and not all(isinstance(constant, str) for constant in value.constants):
        text |= Trait.WORDS  # a number may be one to call
    return Value((traits & (Trait.CUT | Trait.JOINED | Trait.MARK | Trait.WORDS)) | text)


def joined_text(*values: Value) -> Value:
    """Return values written as one text."""
    text = union(*(as_text(value) for value in values)).without_constants()
    return text.adding(Trait.JOINED) if text.own & Trait.TEXT else text


def item_of(value: Value) -> Value:
    """Return an item of the value, by its place or in a loop."""
    own, inner = value.own, value.inner
    item = own & (Trait.MARK | Trait.WORDS) | inner
    if own & Trait.LOOP:  # which can be looped over, too: what is left of its items
        item |= LETTERS | Trait.MESSAGE
    if own & Trait.MESSAGES:
        item |= Trait.MESSAGE
    if own & (Trait.CONTENT | Trait.PARTS):
        item |= Trait.PART
    if own & (Trait.TEXT | Trait.PART):
        item |= Trait.TEXT | Trait.CUT
    return Value(item, inner)


def field_of(value: Value, name: str | None) -> Value:
    """Return what the value has under a name; None is a name that is not known."""
    own, inner = value.own, value.inner
    found = own & (Trait.MARK | Trait.WORDS | Trait.CUT) | inner
    if own & Trait.LOOP:
        found |= LETTERS | Trait.MESSAGE
    if own & Trait.MESSAGE and (name is None or name in TEXT_FIELDS):
        found |= Trait.CONTENT
    if own & Trait.MESSAGES and name is None:
        found |= Trait.MESSAGE
    if name is not None and (hasattr(dict, name) or hasattr(list, name)):  # a method may be called later
        found |= own & (Trait.MESSAGES | Trait.MESSAGE)
    if own & (Trait.CONTENT | Trait.PARTS | Trait.PART):
        found |= Trait.KIND if name == "type" else Trait.TEXT if name == "text" else LETTERS
    if own & Trait.TEXT and (name is None or hasattr(str, name)):  # of others, a text has none
        found |= Trait.TEXT | Trait.CUT
    return Value(found, inner)
