"""Families: which work is a table in docs/targets.md, made of what is built and run here.

`SLMPACK_WRITE_FAMILIES=1` writes the table anew.
"""

import os
from pathlib import Path

import pytest
from families import COLUMNS, EXPORTED, FAMILIES, Found, table, table_in, with_table
from family_runs import Where, build_families, export_family
from places import HARNESS, PROJECT

from slmpack.errors import BuildError
from slmpack.machine.child import run_in_child

pytestmark = [pytest.mark.slow, pytest.mark.families, pytest.mark.release]

DOCUMENT = PROJECT / "docs" / "targets.md"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    folder = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HARNESS))
        builds, _ = run_in_child(
            build_families, Where(folder=folder), log=folder / "log", limit_seconds=2000, failure=BuildError,
            doing="the builds of all families",
        )  # fmt: skip
    return builds.found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, workspace: Path) -> dict[str, Found]:
    return {name: export_family(name, tmp_path_factory.mktemp("family"), workspace) for name in EXPORTED}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_the_builder_answers_as_transformers_does(built: dict[str, Found], name: str) -> None:
    assert built[name].float32 == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_its_int4_package_decodes_and_reads_text_as_its_source(built: dict[str, Found], name: str) -> None:
    assert built[name].cpu_int4 == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_its_cuda_packages_run_by_the_kernels_for_cpus(built: dict[str, Found], name: str) -> None:
    cells = dict(zip(COLUMNS, built[name].cells, strict=True))
    found = {text for column, text in cells.items() if column.startswith("cuda")}
    assert found == {"yes"}


@pytest.mark.parametrize("name", EXPORTED)
def test_a_family_of_optimum_answers_as_transformers_does(exported: dict[str, Found], name: str) -> None:
    assert exported[name].float32 == ""
    assert exported[name].cpu_int4 == ""


def test_the_document_says_what_was_found(built: dict[str, Found], exported: dict[str, Found]) -> None:
    lines = table(built | exported)
    document = DOCUMENT.read_text(encoding="utf-8")
    if os.environ.get("SLMPACK_WRITE_FAMILIES") == "1":
        DOCUMENT.write_text(with_table(document, lines), encoding="utf-8")
        document = DOCUMENT.read_text(encoding="utf-8")
    assert table_in(document) == lines, "with SLMPACK_WRITE_FAMILIES=1 this test writes it anew"
