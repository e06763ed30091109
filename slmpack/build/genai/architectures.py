"""Architectures that the installed ONNX Runtime GenAI builder knows, read from its text."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def builder_architectures() -> frozenset[str]:
    """Return the architectures that the installed builder's text compares `config.architectures[0]` with.

    It is read, not imported: that takes seconds and changes the process. Empty where there is no such text, and then
    the builder itself is tried.
    """
    spec = find_spec("onnxruntime_genai")
    places = spec.submodule_search_locations or () if spec else ()
    for place in places:
        path = Path(place) / "models" / "builder.py"
        if path.is_file():
            return architectures_in(path.read_text(encoding="utf-8"))
    return frozenset()


def architectures_in(text: str) -> frozenset[str]:
    """Return the texts that `config.architectures[0]` is compared with by `==` or `in`; none if it is not Python."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "config.architectures[0]":
            found |= {
                each.value
                for side in node.comparators
                for each in ast.walk(side)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
    return frozenset(found)
