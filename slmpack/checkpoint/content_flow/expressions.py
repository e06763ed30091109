"""Expressions: what is known of the value of an expression, from its syntax tree.

`calls` adds filters, functions and macros, `statements` the rest of a template.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from slmpack.checkpoint.content_flow import conditions, operations
from slmpack.checkpoint.content_flow.known import Context, Known
from slmpack.checkpoint.content_flow.markers import is_markup
from slmpack.checkpoint.content_flow.operations import READS, SELECTS, Refused
from slmpack.checkpoint.content_flow.values import (
    CLEAN,
    LETTERS,
    NOTHING,
    OF_CONTENT,
    Trait,
    Truth,
    Value,
    fact,
    field_of,
    item_of,
    joined_text,
    union,
    without_text,
)

MOST_STEPS = 1_000_000  # expressions and statements looked at; published templates take some thousands
TANGLED = "is too tangled to be followed"
_OF_CALLERS = frozenset({"tools", "documents", "add_generation_prompt", "enable_thinking"})
_FIELDS = frozenset({"role", "content", "type", "text", "name", "id", "function", "arguments", "tool_calls"})


class Expressions:
    """Finds what is known of expressions."""

    def __init__(self, specials: Mapping[str, str], macros: Mapping[str, Any], known: Known) -> None:
        self._specials, self._macros, self._known = specials, macros, known
        self._context, self._scope = Context(), dict[str, Value]()
        self._macro = ""  # that is walked through
        self._steps = 0

    def value(self, node: Any) -> Value:
        """Return what is known of an expression.

        Raises:
            Refused: it reads the words of a message.
        """
        if node is None:
            return CLEAN
        self._step(node)
        read: Callable[[Any], Value] | None = getattr(self, f"_read_{type(node).__name__.lower()}", None)
        if read is None:
            raise Refused(f"has {type(node).__name__}, which is not expected there", node.lineno)
        try:
            return self._narrowed(node, read(node))
        except Refused as refused:
            if refused.place is None:
                refused.place = node.lineno
            raise

    def _narrowed(self, node: Any, value: Value) -> Value:
        """Return what is known of a value where a test found that it is no text."""
        if not self._context.lists or not value.own & LETTERS:
            return value
        path = self._path_of(node)
        return without_text(value) if path is not None and self._context.has_list(path, self._scope) else value

    def _path_of(self, node: Any) -> str | None:
        """Return the path of a field of a variable that nothing else can change; None for other expressions."""
        kind = type(node).__name__
        if kind == "Name":
            value = self._scope.get(node.name)
            return None if value is None or value.traits & (Trait.SPACE | Trait.LOOP) else node.name
        name = node.attr if kind == "Getattr" else getattr(node.arg, "value", None) if kind == "Getitem" else None
        outer = self._path_of(node.node) if isinstance(name, str | int) else None
        return None if outer is None else f"{outer}[{name!r}]"

    def _value_under(self, truth: Truth, node: Any) -> Value:
        """Return what is known of an expression that is looked at where a condition holds."""
        around = self._context
        self._context = replace(around, lists=around.under(truth, self._scope).lists)
        try:
            return self.value(node)
        finally:
            self._context = around

    def _step(self, node: Any, size: int = 1) -> None:
        self._steps += size
        if self._steps > MOST_STEPS:
            raise Refused(TANGLED, node.lineno)

    def _read_const(self, node: Any) -> Value:
        value = node.value
        return Value(NOTHING if is_markup(value) else Trait.WORDS, constants=frozenset({value}))

    def _read_templatedata(self, node: Any) -> Value:
        return Value(NOTHING if is_markup(node.data) else Trait.WORDS)

    def _read_name(self, node: Any) -> Value:
        name = node.name
        if name in self._scope:
            return self._scope[name]
        if name in self._macros:  # not called: it may be wherever the value gets to
            self._known.note_context(name, Context(is_marked=True, depends=True, is_negated=True))
            return self._known.results.get(name, CLEAN).adding(Trait.WORDS)
        if name == "self":
            return Value(Trait.WORDS | Trait.TEXT | Trait.CUT)
        if name in self._specials:
            text = self._specials[name]
            return Value(NOTHING if is_markup(text) else Trait.WORDS, constants=frozenset({text}))
        if name == "caller":
            return Value(Trait.WORDS | Trait.TEXT | Trait.CUT)
        return CLEAN if name in _OF_CALLERS else Value(Trait.WORDS)  # a special token may have any name

    def _read_list(self, node: Any) -> Value:
        return Value(inner=union(CLEAN, *(self.value(item) for item in node.items)).traits)

    _read_tuple = _read_list

    def _read_dict(self, node: Any) -> Value:
        pairs = [(self._key(pair.key), self.value(pair.value)) for pair in node.items]
        if any(key.is_of_content for key, _ in pairs):
            raise Refused(READS)
        return Value(inner=union(CLEAN, *(each for pair in pairs for each in pair)).traits | Trait.WORDS)

    def _key(self, node: Any) -> Value:
        """Return a key of a dict; the names of a message's fields are no words."""
        return CLEAN if getattr(node, "value", None) in _FIELDS else self.value(node)

    def _read_condexpr(self, node: Any) -> Value:
        truth = self.value(node.test).condition
        chosen, other = self._value_under(truth, node.expr1), self._value_under(truth.inverted(), node.expr2)
        _require_open(truth.marked_if, chosen)
        _require_open(truth.marked_else, other)
        found = union(chosen, other if node.expr2 is not None else Value(constants=frozenset({""})))
        return found.adding(Trait.MARK) if truth.is_marked else found

    def _read_and(self, node: Any) -> Value:
        left = self.value(node.left)
        right = self._value_under(left.condition, node.right)
        return self._joined(left, right, left.condition.marked_if, left.condition.both(right.condition))

    def _read_or(self, node: Any) -> Value:
        left = self.value(node.left)
        right = self._value_under(left.condition.inverted(), node.right)
        return self._joined(left, right, left.condition.marked_else, left.condition.either(right.condition))

    def _joined(self, left: Value, right: Value, is_marked: bool, truth: Truth) -> Value:
        _require_open(is_marked, right)
        found = union(left, right)
        return replace(found.adding(Trait.MARK) if truth.is_marked else found, constants=None, truth=truth)

    def _read_not(self, node: Any) -> Value:
        return fact(self.value(node.node).condition.inverted())

    def _read_compare(self, node: Any) -> Value:
        values = [self.value(node.expr), *(self.value(operand.expr) for operand in node.ops)]
        found = [
            conditions.compared(left, operand.op, right)
            for left, operand, right in zip(values, node.ops, values[1:], strict=False)
        ]
        if len(found) > 1:
            marked = any(each.condition.is_marked for each in found)
            return fact(Truth(marked, marked))
        return fact(replace(found[0].condition, parts_if=self._parts_of(node, values)))

    def _parts_of(self, node: Any, values: Sequence[Value]) -> frozenset[str]:
        """Return the variable that is a part of a message if the comparison holds: `part.type == 'text'`."""
        operator, left, right = node.ops[0].op, node.expr, node.ops[0].expr
        if operator == "in" and not values[0].own & Trait.KIND and values[1].own & OF_CONTENT == Trait.PART:
            return _named(right)
        kinds = right.items if operator == "in" and type(right).__name__ in {"List", "Tuple"} else [right]
        is_known = all(isinstance(getattr(kind, "value", None), str) for kind in kinds)  # a letter's kind is undefined
        if values[0].own & Trait.KIND and operator in {"eq", "in"} and is_known:
            return _named(_owner(left))
        return frozenset()

    def _read_test(self, node: Any) -> Value:
        value = self.value(node.node)
        given, named = self._arguments(node)
        found = conditions.tested(node.name, value, [*given, *named.values()])
        if node.name == "mapping" and value.own & OF_CONTENT == Trait.PART:
            return fact(replace(found.condition, parts_if=_named(node.node)))
        path = self._path_of(node.node) if value.own & LETTERS else None
        if path is not None and node.name == "mapping":
            return fact(replace(found.condition, lists_if=frozenset({path})))
        if path is not None and node.name == "string" and _is_whole_content(value):
            return fact(replace(found.condition, lists_else=frozenset({path})))
        return found

    def _arguments(self, node: Any) -> tuple[list[Value], dict[str, Value]]:
        """Return the arguments of a call, a filter or a test; those that are unpacked stand for one more each."""
        given = [self.value(each) for each in node.args or ()]
        named = {pair.key: self.value(pair.value) for pair in node.kwargs or ()}
        for unpacked in (node.dyn_args, node.dyn_kwargs):
            if unpacked is not None:
                value = self.value(unpacked)
                given.append(union(item_of(value), Value(value.own)).without_constants())
        return given, named

    def _read_add(self, node: Any) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        if (left.own | right.own) & (Trait.LENGTH | Trait.LOOP | Trait.KIND):
            raise Refused(READS)
        found = union(left, right).without_constants()
        return found.adding(Trait.JOINED) if found.own & LETTERS else found

    def _read_concat(self, node: Any) -> Value:
        return joined_text(*(self.value(each) for each in node.nodes))

    def _read_sub(self, node: Any) -> Value:
        return operations.computed(self.value(node.left), self.value(node.right))

    _read_mul = _read_div = _read_floordiv = _read_mod = _read_pow = _read_sub

    def _read_neg(self, node: Any) -> Value:
        value = self.value(node.node)
        found = operations.computed(value)
        numbers = value.constants
        if numbers is None or not all(isinstance(number, int) for number in numbers):
            return found
        return replace(
            found, constants=frozenset(-int(str(int(number))) for number in numbers if isinstance(number, int))
        )

    def _read_pos(self, node: Any) -> Value:
        return operations.computed(self.value(node.node))

    def _read_getitem(self, node: Any) -> Value:
        value = self.value(node.node)
        if type(node.arg).__name__ == "Slice":
            bounds = [self.value(each) for each in (node.arg.start, node.arg.stop, node.arg.step)]
            return operations.sliced(value, bounds)
        index = self.value(node.arg)
        return self._with_attributes(value, index.constants, operations.item(value, index))

    def _read_getattr(self, node: Any) -> Value:
        value, name = self.value(node.node), node.attr
        if value.own & Trait.LOOP:
            return _field_of_loop(value, name)
        return self._with_attributes(value, frozenset({name}), field_of(value, name))

    def _with_attributes(self, value: Value, names: frozenset[object] | None, found: Value) -> Value:
        """Add what namespaces have under those names, if the value may be one."""
        if value.is_of_content and not value.own & Trait.SPACE:
            return found
        every = self._known.attributes
        attributes = [every[name] for name in every if names is None or name in names]
        return union(found, *attributes) if attributes else found


def _field_of_loop(loop: Value, name: str) -> Value:
    """Return what `loop` has under a name; in a loop over a content, numbers say how long it is."""
    marked = Value(loop.own & Trait.MARK)
    cut = loop.own & Trait.CUT
    if name in {"previtem", "nextitem"}:
        return loop.each.adding(marked.own | cut) if loop.each is not None else Value(OF_CONTENT)
    if name == "first" or not cut:
        return marked
    if name == "last":
        return marked.adding(Trait.MARK)
    return marked.adding(Trait.TEXT | Trait.CUT)


def _is_whole_content(value: Value) -> bool:
    """Say whether a value is the content of a message as it is: if it is no text, it is no list of letters either."""
    return value.own & (LETTERS | Trait.CUT | Trait.JOINED) == Trait.CONTENT and not value.inner & OF_CONTENT


def _owner(node: Any) -> Any:
    """Return what a field is of: `part` in `part.type`, `part['type']` and `part.get('type')`, which no letter has."""
    is_get = type(node).__name__ == "Call" and getattr(node.node, "attr", None) == "get"
    return getattr(node.node if is_get else node, "node", None)


def _named(node: Any) -> frozenset[str]:
    return frozenset({node.name}) if type(node).__name__ == "Name" else frozenset()


def _require_open(is_marked: bool, value: Value) -> None:
    """Refuse words that a marker brings about."""
    if is_marked and value.traits & Trait.WORDS:
        raise Refused(SELECTS)
