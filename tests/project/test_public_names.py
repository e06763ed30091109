"""The public names: what `import slmpack` gives, what it does not import, and the doors of the chapters."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from places import PROJECT

import slmpack
from slmpack.telemetry import SWITCHES

CHAPTERS = sorted(path.parent for path in (PROJECT / "slmpack").glob("*/__init__.py"))
WITHOUT_A_DOOR = {"checkpoint", "machine"}
HEAVY = {"mlflow", "numpy", "prefect", "pydantic", "torch", "transformers"}


def door_of(chapter: Path) -> list[str]:
    """Return the names after `Door:` in the docstring of a chapter, `module.name` each."""
    docstring = ast.get_docstring(ast.parse((chapter / "__init__.py").read_text(encoding="utf-8"))) or ""
    found = re.search(r"^Door: (.*?)(\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return [] if found is None else re.split(r",\s+", found[1].strip())


def names_of(module: Path) -> set[str]:
    """Return what a module defines at its top."""
    names = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return names


@pytest.mark.parametrize("name", slmpack.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(slmpack, name)
    assert found.__name__ == name
    assert found.__module__.startswith("slmpack.")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(slmpack.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    imported = {
        each.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for each in node.names
    }
    assert imported.keys() == set(slmpack.__all__)
    assert {name: getattr(slmpack, name).__module__ for name in imported} == imported


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = slmpack.no_such_name  # type: ignore[attr-defined]
    assert slmpack.__version__ == version("slmpack")
    assert {*slmpack.__all__, "__version__"} <= set(dir(slmpack))


def test_importing_slmpack_imports_nothing_that_takes_long() -> None:
    program = "import slmpack, sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not HEAVY & set(ast.literal_eval(done.stdout))


def test_a_public_name_switches_telemetry_off_before_it_is_imported() -> None:
    program = "import slmpack, os, json; slmpack.Target; print(json.dumps(dict(os.environ)))"
    unset = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=unset)
    assert json.loads(done.stdout).items() >= SWITCHES.items()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.name)
def test_every_name_in_a_chapters_door_is_there(chapter: Path) -> None:
    door = door_of(chapter)
    assert bool(door) is (chapter.name not in WITHOUT_A_DOOR)
    for entry in door:
        module, _, name = entry.rpartition(".")
        assert name in names_of(chapter / f"{module.replace('.', '/')}.py"), entry
