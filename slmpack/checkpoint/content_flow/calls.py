"""Calls: what is known of what filters, functions, methods and macros make."""

from collections.abc import Mapping, Sequence
from typing import Any

from slmpack.checkpoint.content_flow import operations
from slmpack.checkpoint.content_flow.expressions import Expressions
from slmpack.checkpoint.content_flow.operations import READS, SELECTS, Refused
from slmpack.checkpoint.content_flow.values import CLEAN, NOTHING, OF_CONTENT, Trait, Value, union

# What may be called in a loop over a text, or behind a marker: nothing there counts its calls, as cyclers do.
_COUNTS_NOTHING = frozenset(
    {"get", "items", "keys", "values", "join", "strip", "lstrip", "rstrip", "split", "rsplit", "replace", "lower"}
    | {"upper", "title", "capitalize", "startswith", "endswith", "splitlines"}
)


class Calls(Expressions):
    """Finds what is known of calls; macros and namespaces are known by what all rounds found."""

    def _read_filter(self, node: Any) -> Value:
        given, named = self._arguments(node)
        return operations.filtered(node.name, self.value(node.node), given, named)

    def _read_call(self, node: Any) -> Value:
        given, named = self._arguments(node)
        callee, kind = node.node, type(node.node).__name__
        if kind == "Name" and callee.name not in self._scope:
            if callee.name in self._macros:
                return self._called_macro(node, given, named)
            if callee.name in {"namespace", "dict", "raise_exception", "caller"}:
                return self._called_known(callee.name, given, named)
        if kind == "Getattr":
            value = self.value(callee.node)
            if (self._context.loops or self._context.depends) and callee.attr not in _COUNTS_NOTHING:
                raise Refused(READS)
            if value.own & Trait.LOOP and not value.own & Trait.CUT:
                return operations.computed(Value(value.own & Trait.MARK), *given)
            return operations.method(callee.attr, value, given, named)
        found = operations.computed(self.value(callee), *given, *named.values())
        if kind == "Name" and callee.name in {"range", "strftime_now"} - self._scope.keys():
            return found
        if self._context.loops or self._context.depends:
            raise Refused(READS)
        return found.adding(Trait.WORDS)

    def _called_known(self, name: str, given: Sequence[Value], named: Mapping[str, Value]) -> Value:
        if name == "raise_exception":  # no prompt has what an error says: nothing is written
            return Value(constants=frozenset({""}))
        known = self._known
        if name == "caller":
            known.note_context(f"{self._macro}()", self._context)
            known.grow(known.arguments, (self._macro, "()"), union(CLEAN, *given, *named.values()).without_constants())
            return known.bodies.get(self._macro, CLEAN)
        if any(each.traits & OF_CONTENT & ~Trait.MESSAGE for each in given):  # pairs: a look-up by the text
            raise Refused(READS)
        if name == "namespace":
            for attribute, value in named.items():
                self.set_attribute(attribute, value)
            return Value(Trait.SPACE, union(CLEAN, *given).traits)
        return Value(inner=union(CLEAN, *given, *named.values()).traits | Trait.WORDS)

    def set_attribute(self, name: str, value: Value) -> None:
        """Note what a namespace has under a name; in a loop over a text it may tell how long the text is."""
        context = self._context
        if context.is_marked and value.traits & Trait.WORDS:
            raise Refused(SELECTS)
        more = (Trait.MARK if context.depends else NOTHING) | (Trait.TEXT | Trait.CUT if context.loops else NOTHING)
        self._known.grow(self._known.attributes, name, value.without_constants().adding(more))

    def _called_macro(self, node: Any, given: Sequence[Value], named: Mapping[str, Value]) -> Value:
        """Return what a macro writes, having noted what it is called with and where."""
        name, known = node.node.name, self._known
        macro = self._macros[name]
        parameters = [parameter.name for parameter in macro.args]
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            given = [union(CLEAN, *given, *named.values())] * len(parameters)
        for parameter, value in [*zip(parameters, given, strict=False), *named.items()]:
            known.grow(known.arguments, (name, parameter), value.without_constants())
        for value in given[len(parameters) :]:
            known.grow(known.arguments, (name, "varargs"), Value(inner=value.traits))
        for value in named.values():
            known.grow(known.arguments, (name, "kwargs"), Value(inner=value.traits))
        known.note_context(name, self._context)
        return known.results.get(name, CLEAN)
