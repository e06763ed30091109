"""The table of attacks in docs/trust.md: each module and each test that it names is there."""

import ast
import re

import pytest
from places import PROJECT

DOCUMENT = PROJECT / "docs" / "trust.md"
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| [a-q]: ", line)
]


def functions_in(name: str) -> set[str]:
    tree = ast.parse((PROJECT / "tests" / name).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_attack_has_a_row() -> None:
    assert {row[0][0] for row in ROWS} == set("abcdefghijklmnopq")


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:20] for row in ROWS])
def test_the_modules_and_tests_of_an_attack_are_there(row: list[str]) -> None:
    _, refused_by, _, tests = row
    assert all((PROJECT / module).is_file() for module in re.findall(r"`(slmpack/[^`]+)`", refused_by))
    named = re.findall(r"`([^`]+)::([^`]+)`", tests)
    assert named or tests == "none"
    for file, function in named:
        assert function in functions_in(file)
