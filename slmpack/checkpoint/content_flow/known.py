"""Known: where a statement stands, and what all rounds through a template have found."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slmpack.checkpoint.content_flow.values import CLEAN, Truth, Value, union


@dataclass(frozen=True)
class Context:
    """Where a statement stands.

    Attributes:
        is_marked: a marker brought the template here: only markup may be written.
        depends: a marker may have kept the template from here.
        is_negated: it may be here because a marker was missing.
        lists: paths of contents that are no text here (`m['content']`), each with what was known of its variable.
        loops: those over the letters or parts of a content, each the name of its variable and what was known of it.
    """

    is_marked: bool = False
    depends: bool = False
    is_negated: bool = False
    loops: tuple[tuple[str, Value], ...] = ()
    lists: tuple[tuple[str, Value], ...] = ()

    def under(self, truth: Truth, scope: Mapping[str, Value]) -> "Context":
        """Return the context of what stands where a condition holds."""
        loops = tuple(
            (name, value) for name, value in self.loops if not (name in truth.parts_if and scope.get(name) is value)
        )
        return Context(
            self.is_marked or truth.marked_if,
            self.depends or truth.is_marked,
            self.is_negated or truth.marked_else,
            loops,
            self.lists
            + tuple((path, scope[name]) for path in sorted(truth.lists_if) if (name := root_of(path)) in scope),
        )

    def has_list(self, path: str, scope: Mapping[str, Value]) -> bool:
        """Say whether what a path leads to is no text, its variable being what it was when that was tested."""
        return any(path == each and scope.get(root_of(path)) is value for each, value in self.lists)

    def joined(self, other: "Context | None") -> "Context":
        """Return what is known of a place that is reached in two ways."""
        if other is None:
            return self
        return Context(
            self.is_marked or other.is_marked,
            self.depends or other.depends,
            self.is_negated or other.is_negated,
            self.loops or other.loops,
        )


def root_of(path: str) -> str:
    """Return the variable of a path."""
    return path.partition("[")[0]


@dataclass
class Known:
    """What all rounds through a template have found; it only grows.

    Attributes:
        attributes: of namespaces, by name.
        variables: by name, wherever they were set.
        arguments, results, contexts: of macros, by name.
        bodies: what `caller()` writes in a macro, by the macro's name.
        left_loops: places of loops that a marker may end early.
    """

    attributes: dict[str, Value] = field(default_factory=dict)
    variables: dict[str, Value] = field(default_factory=dict)
    arguments: dict[tuple[str, str], Value] = field(default_factory=dict)
    results: dict[str, Value] = field(default_factory=dict)
    contexts: dict[str, Context] = field(default_factory=dict)
    bodies: dict[str, Value] = field(default_factory=dict)
    left_loops: set[int] = field(default_factory=set)
    has_grown: bool = False

    def grow(self, table: dict[Any, Value], key: Any, value: Value) -> None:
        """Add what is known of a value to what was known of it."""
        before = table.get(key)
        found = value if before is None else union(before, value)
        if found != before:
            table[key] = found
            self.has_grown = True

    def note_context(self, name: str, here: Context) -> None:
        """Note where a macro is called, or may be; with `()` behind the name, where it calls its `caller`."""
        before = self.contexts.get(name)
        after = replace(here, loops=(("", CLEAN),) if here.loops else (), lists=()).joined(before)
        if after != before:
            self.contexts[name] = after
            self.has_grown = True
