"""Branches: conditions and loops, and under what the statements in them stand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slmpack.checkpoint.content_flow.alike import are_alike
from slmpack.checkpoint.content_flow.calls import Calls
from slmpack.checkpoint.content_flow.known import Context, Known
from slmpack.checkpoint.content_flow.operations import Refused
from slmpack.checkpoint.content_flow.values import CLEAN, LETTERS, NOTHING, Trait, Truth, Value, item_of, union

OTHER_TEMPLATE = "takes in another template"
RECURSIVE = "has a loop that calls itself"
Scope = dict[str, Value]


class Branches(Calls):
    """Walks through statements, and through the branches of conditions and loops."""

    def __init__(self, specials: Mapping[str, str], macros: Mapping[str, Any], known: Known) -> None:
        super().__init__(specials, macros, known)
        self._loop = 0  # that is walked through, by its place
        self._modes: dict[str, set[object]] | None = None  # what variables are set to wherever no marker decides

    def walk(self, statements: Sequence[Any]) -> None:
        """Walk through statements in their order."""
        for node in statements:
            self._step(node, 1 + len(self._scope) // 8)
            try:
                getattr(self, f"_walk_{type(node).__name__.lower()}", self._walk_unknown)(node)
            except Refused as refused:
                if refused.place is None:
                    refused.place = node.lineno
                raise

    def _walk_unknown(self, node: Any) -> None:
        kind = type(node).__name__
        other = kind in {"Include", "Import", "FromImport", "Extends"}
        raise Refused(OTHER_TEMPLATE if other else f"has {kind}, which is not expected there")

    def _inside(self, statements: Sequence[Any], context: Context, more: Scope | None = None) -> Scope:
        """Walk through statements in another context, with a copy of the variables; return these as they are then."""
        outer, around = self._scope, self._context
        self._scope, self._context = {**outer, **(more or {})}, context
        try:
            self.walk(statements)
            return self._scope
        finally:
            self._scope, self._context = outer, around

    def _walk_if(self, node: Any) -> None:
        if not node.elif_ and are_alike(node.body, node.else_):
            self._write_alike(node)
            return
        before, context, is_marked = self._scope, self._context, False
        after: list[Scope] = []
        by_switch = True
        for branch in (node, *node.elif_):
            around, self._context = self._context, context
            try:
                truth = self.value(branch.test).condition
            finally:
                self._context = around
            after.append(self._inside(branch.body, context.under(truth, self._scope)))
            context, is_marked = context.under(truth.inverted(), self._scope), is_marked or truth.is_marked
            by_switch = by_switch and (truth.by_switch or not truth.is_marked)
        after.append(self._inside(node.else_, context))
        self._scope = self._merged(before, after, is_marked, by_switch)

    def _write_alike(self, node: Any) -> None:
        """Walk through branches that write the same words: a marker that decides between them brings about none."""
        truth = self.value(node.test).condition
        context = replace(self._context, depends=self._context.depends or truth.is_marked)
        for statements in (node.body, node.else_):
            self._inside(statements, context)

    def _merged(self, before: Scope, after: list[Scope], is_marked: bool, by_switch: bool) -> Scope:
        """Return the variables behind branches; what a marker decides depends on it from there on.

        Args:
            by_switch: a switch decides it, which may choose a mode.
        """
        merged = dict(before)
        for name in dict.fromkeys(name for scope in after for name in scope):
            values = [scope.get(name, CLEAN) for scope in after]
            if all(value is before.get(name) for value in values):
                continue
            found = union(*values)
            is_open = not is_marked or (by_switch and self._is_mode(name, found))
            merged[name] = found if is_open else found.adding(Trait.MARK)
        return merged

    def _is_mode(self, name: str, value: Value) -> bool:
        """Say whether all that a variable can be is what it is set to where no marker decides, too."""
        if value.constants is None or value.own & Trait.MARK:
            return False
        return self._modes is None or value.constants <= self._modes.get(name, set())

    def _walk_for(self, node: Any) -> None:
        if node.recursive:
            raise Refused(RECURSIVE)
        values = self.value(node.iter)
        marked = bool(values.own & (Trait.MARK | Trait.CUT))
        context = self._context.under(Truth(marked, marked), self._scope)
        if node.lineno in self._known.left_loops:
            context = replace(context, depends=True)
        inside = self._bound(node.target, item_of(values))
        is_text = bool(values.own & LETTERS)
        if is_text:
            context = replace(context, loops=(*context.loops, *(inside.items() or (("", CLEAN),))))
        loop = Trait.LOOP | (Trait.CUT if is_text else NOTHING) | (Trait.MARK if marked else NOTHING)
        inside["loop"] = Value(loop, each=item_of(values))
        truth = Truth() if node.test is None else self._test_of(node.test, inside, context)
        context = context.under(truth, {**self._scope, **inside})
        if truth.is_marked:
            inside["loop"] = inside["loop"].adding(Trait.MARK)
        if is_text and len(context.loops) == len(self._context.loops):  # over parts alone
            inside["loop"] = replace(inside["loop"], own=inside["loop"].own & ~Trait.CUT)
        self._note_variables(inside)
        around, self._loop = self._loop, node.lineno
        self._inside(node.body, context, inside)
        self._loop = around
        marked = marked or truth.is_marked
        if not _has_an_item(node.iter):
            self._inside(node.else_, self._context.under(Truth(marked, marked), self._scope))

    def _note_variables(self, scope: Scope) -> None:
        """Note variables that a macro further inside may see."""
        for name, value in scope.items():
            self._known.grow(self._known.variables, name, value.without_constants())

    def _test_of(self, test: Any, inside: Scope, context: Context) -> Truth:
        outer, around = self._scope, self._context
        self._scope, self._context = {**outer, **inside}, context
        try:
            return self.value(test).condition
        finally:
            self._scope, self._context = outer, around

    def _bound(self, target: Any, value: Value) -> Scope:
        """Return the variables of a loop."""
        if type(target).__name__ == "Tuple":
            bound: Scope = {}
            for each in target.items:
                bound |= self._bound(each, union(value, item_of(value)).without_constants())
            return bound
        return {target.name: value}


def _has_an_item(node: Any) -> bool:
    """Say whether a loop over an expression has a round at least: a split at a separator gives a piece."""
    is_split = type(node).__name__ == "Call" and type(node.node).__name__ == "Getattr" and node.node.attr == "split"
    return is_split and bool(node.args)
