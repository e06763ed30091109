"""Words of a chat template: what is written in it, and which keys of messages and which roles it looks at."""

import re
from typing import Any, NamedTuple

from jinja2 import nodes

from slmpack.checkpoint.chat_templates import template_environment
from slmpack.checkpoint.texts.template_branches import walk

# A tag, a bracketed word, a heading, a speaker with a colon.
SPECIAL = re.compile(
    r"<{1,2}[^\s<>{}]{1,60}>{1,2}|\[/?[A-Za-z_ ]{1,40}\]|^[#*]{1,4} ?\w{1,20}:?|\b[A-Z]\w{1,20}:", re.M
)
_ROLE = re.compile(r"[a-z][a-z_]{1,20}")
_LONGEST = 400


class TemplateWords(NamedTuple):
    """What chats are made of.

    Attributes:
        telling: what it looks for in texts, and the control tokens, tags and headings that it writes.
        plain: its other literals: keys, roles, sentences.
        keys: attributes and keys that it looks up in messages, or in anything else.
        roles: names that it compares a role with.
    """

    telling: tuple[str, ...]
    plain: tuple[str, ...]
    keys: frozenset[str]
    roles: tuple[str, ...]


def words_of(template: str) -> TemplateWords:
    """Read a template that compiles by Jinja's own lexer and parser."""
    environment = template_environment()
    environment.trim_blocks = environment.lstrip_blocks = True
    strings, data = _lexed(environment, template)
    tree = environment.parse(template)
    constants = [node.value for node in walk(tree) if isinstance(node, nodes.Const) and isinstance(node.value, str)]
    tested = [text for node in walk(tree) for text in _tested(node)]
    written = [text[:_LONGEST] for text in (*tested, *strings, *constants) if text]
    pieces = [match[0] for text in (*strings, *data) for match in SPECIAL.finditer(text)]
    own = {node.attr for node in walk(tree) if isinstance(node, nodes.NSRef)}
    keys = frozenset(key for node in walk(tree) if (key := _key(node)) is not None and key not in own)
    telling = _unique([*(text for text in tested if text and not text.isidentifier()), *pieces])
    plain = tuple(text for text in _unique(written) if text not in set(telling))
    return TemplateWords(telling, plain, keys, _unique([role for node in walk(tree) for role in _roles(node)]))


def _lexed(environment: Any, template: str) -> tuple[list[str], list[str]]:
    """Return the string literals, decoded, and the data between tags."""
    tokens = [(token.type, token.value) for token in environment.lexer.tokenize(template)]
    return [v for kind, v in tokens if kind == "string"], [v for kind, v in tokens if kind == "data"]


def _tested(node: nodes.Node) -> list[str]:
    """Return what a node looks for in text: `'x' in y`, `y == 'x'`, `y.split('x')`, `y.startswith('x')`, ..."""
    if isinstance(node, nodes.Compare):
        return _strings(node)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return [text for argument in node.args for text in _strings(argument)]
    return []


def _strings(node: nodes.Node) -> list[str]:
    return [each.value for each in walk(node) if isinstance(each, nodes.Const) and isinstance(each.value, str)]


def _key(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Getattr):
        return str(node.attr)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return node.arg.value
    if isinstance(node, nodes.Compare) and isinstance(node.expr, nodes.Const) and isinstance(node.expr.value, str):
        return node.expr.value  # 'tool_calls' in message
    if isinstance(node, nodes.Filter | nodes.Call) and node.args and isinstance(node.args[0], nodes.Const):
        return str(node.args[0].value)  # selectattr('role', ...), message.get('name')
    return None


def _roles(node: nodes.Node) -> list[str]:
    """Return the names in a comparison of which one side is a role."""
    if isinstance(node, nodes.Compare):
        names = [_key(each) or getattr(each, "name", "") for each in walk(node)]
        constants = _strings(node)
    elif isinstance(node, nodes.Filter) and node.name in ("selectattr", "rejectattr"):
        constants = [text for argument in node.args for text in _strings(argument)]
        names = constants[:1]
    else:
        return []
    if not any("role" in name for name in names):
        return []
    return [text for text in constants if text not in ("role", "equalto") and _ROLE.fullmatch(text)]


def _unique(texts: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
