"""Branches of a chat template: which there are, and which of them a chat takes.

A marker goes into the template's syntax tree around every condition and into every body, and notes when it is passed:

    {% if a and b %}x{% endif %}    branches "if" and "else" of the whole; conditions `a` and `b`, true and false
    {{ a if b else c }}             the same
    {% for m in messages if c %}    branches "loop" and "no loop"; "if" and "else" of `c`
    {% macro f() %}                 branch "macro"

The variables are those of `apply_chat_template` without more arguments: messages, tools, documents (None),
add_generation_prompt and the special tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError, nodes

from slmpack.checkpoint.chat_templates import template_environment

MARKER = "branch_marker_"
MOST_MARKS = 5_000  # in one rendering: a template that loops for longer refuses the chat
MOST_MARKS_IN_ALL = 300_000  # less than a second
CONDITION = "condition"
_DATE = "26 Jul 2024"


class Branch(NamedTuple):
    """One outcome at one place of a template; `number` counts the places in the order of the syntax tree."""

    number: int
    outcome: bool
    line: int
    kind: str


class Rendering(NamedTuple):
    """What one chat does in a template; `passed` has conditions beside branches, `text` is None for a refusal."""

    passed: frozenset[Branch]
    text: str | None


class BranchMeter:
    """Renders chats by a template and notes which branches each of them takes.

    Args:
        template: the text of a chat template that compiles.
        specials: `bos_token` and its kin to their texts.
    """

    def __init__(self, template: str, specials: Mapping[str, str]) -> None:
        self._specials = dict(specials)
        self._passed: set[tuple[int, bool]] = set()
        self._marks = 0
        self._marks_in_all = 0
        environment = rendering_environment()
        environment.globals[MARKER] = self._mark
        markers = _Markers()
        tree = environment.parse(template)
        markers.put_into(tree)
        self._places = {branch[:2]: branch for branch in markers.branches}
        self.branches = tuple(branch for branch in markers.branches if branch.kind != CONDITION)
        self._template = environment.from_string(tree.set_environment(environment))

    def render(self, messages: Sequence[Any], tools: Sequence[Any] | None, add_generation_prompt: bool) -> Rendering:
        """Render a chat; a refusal by `raise_exception` or by any error of an expression is no error here."""
        self._passed, self._marks = set(), 0
        variables = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._specials,
        }
        text: str | None = None
        # A template may raise what it likes: that is its way to refuse. `render` itself would rewrite the traceback,
        # which takes seconds where a macro calls itself until Python stops it.
        try:
            text = "".join(self._template.root_render_func(self._template.new_context(variables)))
        except MemoryError:
            raise
        except Exception:
            text = None
        self._marks_in_all += self._marks
        return Rendering(frozenset(self._places[place] for place in self._passed), text)

    @property
    def spent(self) -> bool:
        """Whether renderings took so long that no more of them should be measured."""
        return self._marks_in_all > MOST_MARKS_IN_ALL

    def _mark(self, number: int, value: Any = True) -> Any:
        self._marks += 1
        if self._marks > MOST_MARKS:
            raise TemplateError(f"{MOST_MARKS} markers passed")
        self._passed.add((number, bool(value)))
        return value


def rendering_environment() -> Any:
    """Return an environment set up as transformers sets it up, with a date that stands still."""
    environment = template_environment()
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda _: _DATE}
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


class _Markers:
    """Puts markers into a syntax tree, and lists the branches that they stand for."""

    def __init__(self) -> None:
        self.branches: list[Branch] = []
        self._places = 0

    def put_into(self, tree: nodes.Template) -> None:
        for node in list(walk(tree)):
            if isinstance(node, nodes.If | nodes.CondExpr):
                node.test = self._around(node.test, "if", "else")
            elif isinstance(node, nodes.And | nodes.Or):
                node.left = self._around(node.left, CONDITION, CONDITION)
                node.right = self._around(node.right, CONDITION, CONDITION)
            elif isinstance(node, nodes.For):
                self._into_loop(node)
            elif isinstance(node, nodes.Macro):
                node.body.insert(0, self._statement("macro", node.lineno))

    def _into_loop(self, node: nodes.For) -> None:
        if node.test is not None:
            node.test = self._around(node.test, "if", "else")
        node.body.insert(0, self._statement("loop", node.lineno))
        node.else_.insert(0, self._statement("no loop", node.lineno))

    def _around(self, test: Any, if_true: str, if_false: str) -> nodes.Call:
        number = self._next()
        self.branches.append(Branch(number, True, test.lineno, if_true))
        self.branches.append(Branch(number, False, test.lineno, if_false))
        return self._call(number, test.lineno, test)

    def _statement(self, kind: str, line: int) -> nodes.ExprStmt:
        number = self._next()
        self.branches.append(Branch(number, True, line, kind))
        return nodes.ExprStmt(self._call(number, line), lineno=line)

    def _call(self, number: int, line: int, *arguments: nodes.Expr) -> nodes.Call:
        name = nodes.Name(MARKER, "load", lineno=line)
        return nodes.Call(name, [nodes.Const(number, lineno=line), *arguments], [], None, None, lineno=line)

    def _next(self) -> int:
        self._places += 1
        return self._places


def walk(node: nodes.Node) -> Iterator[nodes.Node]:
    """Yield a node and all below it, in the order of the text."""
    yield node
    for child in node.iter_child_nodes():
        yield from walk(child)
