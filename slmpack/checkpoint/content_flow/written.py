"""Written: where a part of a template's syntax tree stands in its text, to the tag.

Jinja's tree has lines only, and many templates are one long line. Here a node's `lineno` is the number of the token
that it begins with.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

_BEGIN = frozenset({"block_begin", "variable_begin"})
_END = frozenset({"block_end", "variable_end"})
LONGEST_SHOWN = 160  # characters of a tag in an error


class Token(NamedTuple):
    """A token as it is written, and its line."""

    line: int
    kind: str
    text: str


class NumberedTemplate:
    """A template that compiles, as a syntax tree, with the place of each node.

    Attributes:
        tree: Jinja's nodes.
    """

    def __init__(self, text: str, environment: Any) -> None:
        self._tokens: list[Token] = []
        self.tree = self._parse(text, environment)

    def _parse(self, text: str, environment: Any) -> Any:
        from jinja2.lexer import TokenStream
        from jinja2.parser import Parser

        tokens, lexer = self._tokens, environment.lexer

        class NumberingEnvironment(type(environment)):  # type: ignore[misc]
            def _tokenize(self, source: str, name: Any, filename: Any = None, state: Any = None) -> TokenStream:
                def numbered() -> Iterator[tuple[int, str, str]]:
                    for number, token in enumerate(lexer.tokeniter(source, name, filename, state)):
                        tokens.append(Token(*token))
                        yield number, token[1], token[2]

                return TokenStream(lexer.wrap(numbered(), name, filename), name, filename)

        numbering = NumberingEnvironment()
        numbering.extensions = {name: extension.bind(numbering) for name, extension in environment.extensions.items()}
        return Parser(numbering, text).parse()

    def line_of(self, place: int) -> int:
        """Return the line of a token."""
        return self._tokens[place].line

    def tag_at(self, place: int) -> str:
        """Return the tag around a token, cut where it is long: what the token stands in stays."""
        first = next((at for at in range(place, -1, -1) if self._tokens[at].kind in _BEGIN), place)
        last = next((at for at in range(place, len(self._tokens)) if self._tokens[at].kind in _END), place)
        before = _line("".join(token.text for token in self._tokens[first:place]))
        after = _line("".join(token.text for token in self._tokens[place : last + 1]))
        if len(before) + len(after) <= LONGEST_SHOWN:
            return before + after
        half = LONGEST_SHOWN // 2
        before = before if len(before) <= half else f"...{before[-half:]}"
        room = LONGEST_SHOWN - len(before)
        return before + (after if len(after) <= room else f"{after[:room]}...")


def _line(text: str) -> str:
    """Return a text on one line."""
    lines = " ".join(text.split())
    return lines + (" " if text[-1:].isspace() else "")
