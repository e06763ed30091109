"""Statements: a walk through a template that knows under which conditions each statement stands.

    round: every statement, in order -> known of macros and namespaces -> grown? another round : done

A variable is known where it is set; namespaces and macros, which reach everywhere, are known by all that any round
found. What a later round finds contains what an earlier one found, so that a finding of any round is one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from slmpack.checkpoint.content_flow.branches import Branches, Scope
from slmpack.checkpoint.content_flow.known import Context, Known
from slmpack.checkpoint.content_flow.operations import SELECTS, Refused, filtered
from slmpack.checkpoint.content_flow.values import (
    CLEAN,
    NOTHING,
    Trait,
    Value,
    as_text,
    item_of,
    joined_text,
    union,
)

SAME_NAME = "is the second macro of that name"


def require_open(tree: Any, specials: Mapping[str, str]) -> None:
    """Walk through a template until nothing more is found.

    Raises:
        Refused: it does with the words of a message what it may not.
    """
    from jinja2 import nodes

    macros: dict[str, Any] = {}
    for macro in tree.find_all(nodes.Macro):
        if macro.name in macros:
            raise Refused(SAME_NAME, macro.lineno)
        macros[macro.name] = macro
    walk = Statements(specials, macros, Known())
    while walk.round(tree):
        pass


class Statements(Branches):
    """Walks through statements that write, and that set variables; and through macros."""

    def __init__(self, specials: Mapping[str, str], macros: Mapping[str, Any], known: Known) -> None:
        super().__init__(specials, macros, known)
        self._written: list[Value] = []  # by what is set to what a block writes, and by macros
        self._new_modes: dict[str, set[object]] = {}

    def round(self, tree: Any) -> bool:
        """Walk through all of a template once; return whether another round may find more."""
        self._known.has_grown, self._new_modes = False, {}
        self._scope, self._context = {"messages": Value(Trait.MESSAGES)}, Context()
        self.walk(tree.body)
        for name in self._macros:
            self._walk_macro(name)
        has_changed = self._known.has_grown or self._modes != self._new_modes
        self._modes = self._new_modes
        return has_changed

    # -------------------------------------------------------------------------------------- what is written

    def _walk_output(self, node: Any) -> None:
        for each in node.nodes:
            self._write(self.value(each))

    def _write(self, value: Value) -> None:
        if value.constants == frozenset({""}):
            return
        context = self._context
        if context.is_marked and as_text(value).own & Trait.WORDS:
            raise Refused(SELECTS)
        if self._written:
            more = (Trait.MARK if context.depends else NOTHING) | (Trait.TEXT | Trait.CUT if context.loops else NOTHING)
            self._written[-1] = joined_text(self._written[-1], as_text(value).adding(more))

    def _written_by(self, statements: Sequence[Any], context: Context, more: Scope | None = None) -> Value:
        """Return what statements write, which is not written yet."""
        self._written.append(CLEAN)
        try:
            self._inside(statements, context, more)
        finally:
            written = self._written.pop()
        return written

    def _walk_exprstmt(self, node: Any) -> None:
        self.value(node.node)

    def _walk_scope(self, node: Any) -> None:
        self._inside(node.body, self._context)

    _walk_block = _walk_scopedevalcontextmodifier = _walk_scope

    def _walk_evalcontextmodifier(self, node: Any) -> None:
        pass

    def _walk_break(self, node: Any) -> None:
        context = self._context
        if not context.depends:
            return
        if context.is_negated:  # what follows would be written for a marker alone
            raise Refused(SELECTS)
        if self._loop not in self._known.left_loops:
            self._known.left_loops.add(self._loop)
            self._known.has_grown = True

    _walk_continue = _walk_break

    def _walk_filterblock(self, node: Any) -> None:
        self._write(self._filtered(node.filter, self._written_by(node.body, self._context)))

    def _filtered(self, node: Any, value: Value) -> Value:
        if node is None:
            return value
        inner = value if node.node is None else self._filtered(node.node, value)
        given, named = self._arguments(node)
        return filtered(node.name, inner, given, named)

    # -------------------------------------------------------------------------------------- what is set

    def _walk_assign(self, node: Any) -> None:
        target, given = node.target, node.node
        if type(target).__name__ == type(given).__name__ == "Tuple" and len(target.items) == len(given.items):
            values = [self.value(each) for each in given.items]
            for each, value in zip(target.items, values, strict=True):
                self._set(each, value)
        else:
            self._set(target, self.value(given))

    def _walk_assignblock(self, node: Any) -> None:
        self._set(node.target, self._filtered(node.filter, self._written_by(node.body, self._context)))

    def _walk_with(self, node: Any) -> None:
        outer, self._scope = self._scope, dict(self._scope)
        try:
            for target, value in zip(node.targets, node.values, strict=True):
                self._set(target, self.value(value))
            self.walk(node.body)
        finally:
            self._scope = outer

    def _set(self, target: Any, value: Value) -> None:
        """Note what a variable, several, or an attribute of a namespace is set to."""
        kind = type(target).__name__
        if kind == "NSRef":
            self.set_attribute(target.attr, value)
        elif kind == "Tuple":
            for each in target.items:
                self._set(each, item_of(value))
        else:
            if self._context.is_marked and value.traits & Trait.WORDS:
                raise Refused(SELECTS)
            self._scope[target.name] = value.stored()
            self._known.grow(self._known.variables, target.name, value.without_constants())
            if not self._context.depends and not value.own & Trait.MARK:
                self._new_modes.setdefault(target.name, set()).update(value.constants or ())

    # -------------------------------------------------------------------------------------- macros

    def _walk_macro(self, node: Any) -> None:
        """Walk through a macro's body, with all that it is called with; at its place nothing happens."""
        if not isinstance(node, str):
            return
        macro, known = self._macros[node], self._known
        scope = known.variables | {"messages": union(Value(Trait.MESSAGES), known.variables.get("messages", CLEAN))}
        for place, parameter in enumerate(macro.args):
            at = place - (len(macro.args) - len(macro.defaults))
            values = [self.value(macro.defaults[at])] if at >= 0 else []
            if (node, parameter.name) in known.arguments:
                values.append(known.arguments[node, parameter.name])
            scope[parameter.name] = union(*values).without_constants() if values else CLEAN
        for more in ("varargs", "kwargs"):
            scope[more] = known.arguments.get((node, more), CLEAN)
        self._note_variables({parameter.name: scope[parameter.name] for parameter in macro.args})
        outer, self._scope, self._macro = self._scope, scope, node
        try:
            written = self._written_by(macro.body, known.contexts.get(node, Context()))
        finally:
            self._scope, self._macro = outer, ""
        known.grow(known.results, node, written)

    def _walk_callblock(self, node: Any) -> None:
        """Note what `caller()` writes in the macro that is called, and write what the macro does."""
        name = str(getattr(node.call.node, "name", None))
        if name not in self._macros or name in self._scope:
            raise Refused("has a call block of something that is no macro")
        given = union(
            self._known.arguments.get((name, "()"), CLEAN), *(self.value(default) for default in node.defaults)
        )
        parameters = dict.fromkeys((parameter.name for parameter in node.args), given.without_constants())
        self._note_variables(parameters)
        context = self._context.joined(self._known.contexts.get(f"{name}()"))
        body = self._written_by(node.body, context, parameters)
        self._known.grow(self._known.bodies, name, body)
        self._write(self.value(node.call))
