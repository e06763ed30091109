"""`list`, `show` and `diff` as a person types them, over a real MLflow server and over a database."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import environment, error_lines, objects, processes_of, slmpack
from made_proofs import ALIAS, log_variant, publish
from mlflow import MlflowClient
from mlflow_server import used_mlflow_server

from slmpack.publish.view.listing import list_versions
from slmpack.publish.view.version import view_version
from slmpack.records import Package

pytestmark = pytest.mark.slow

NAME = "small"
PROGRAM = """
import sys
from flows.cli import run
code = run(sys.argv[1:])
sys.stderr.write(f"\\n{sorted({'prefect', 'torch', 'transformers', 'onnxruntime'} & sys.modules.keys())}")
sys.exit(code)
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, small_package: Package, workspace: Path
) -> Iterator[tuple[str, Path]]:
    """A server that has three versions of a model, and its folder."""
    folder = tmp_path_factory.mktemp("server")
    with used_mlflow_server(folder) as address:
        for variant in ("a", "b", "c"):
            publish(log_variant(small_package, variant, NAME, workspace))
        MlflowClient().set_registered_model_alias(NAME, "production", "2")
        yield address, folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_server_is_read_page_by_page(server: tuple[str, Path]) -> None:
    assert [each.version for each in list_versions(NAME, page_size=1).versions] == [3, 2, 1]
    assert [(each.version, each.aliases) for each in list_versions(page_size=1).versions] == [
        (3, (ALIAS,)), (2, ("production",)),
    ]  # fmt: skip


def test_the_command_shows_what_is_in_use_one_version_and_how_two_differ(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    def typed(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        own = {"MLFLOW_TRACKING_URI": server[0], "PREFECT_HOME": str(tmp_path / "prefect")}
        done = slmpack(*arguments, cwd=tmp_path, **own, **settings)
        assert (done.returncode, error_lines(done)) == (0, []), done.stderr
        return done

    head, *lines = typed("list").stdout.splitlines()
    assert head.startswith("NAME   VERSION  ALIASES ")
    assert [line.split()[:3] for line in lines] == [[NAME, "3", ALIAS], [NAME, "2", "production"]]
    (listed,) = objects(typed("list", NAME, "--json"))
    assert [each["version"] for each in listed["versions"]] == [3, 2, 1]
    shown = typed("show", f"{NAME}@production").stdout.splitlines()
    assert shown[0] == f"{NAME} version 2: proved in part"
    assert [line for line in shown if line.split()[0] == "in" and server[0] in line and "proof/version.html" in line]
    (view,) = objects(typed("show", f"models:/{NAME}@production", "--json"))
    assert (view["version"], view["previous"], view["aliases"]) == (2, 1, ["production"])
    (difference,) = objects(typed("diff", f"{NAME}@production", f"{NAME}@{ALIAS}", "--json"))
    assert (difference["before"], difference["now"]) == (2, 3)
    assert [each["label"] for each in difference["facts"]] == ["digest"]
    (tmp_path / "browser").write_text('#!/bin/sh\nprintf %s "$1" > "$(dirname "$0")/opened"\n')
    (tmp_path / "browser").chmod(0o755)
    place = ("--workspace", str(tmp_path / "workspace"))
    opened = typed("open", f"{NAME}@production", *place, BROWSER=f"{tmp_path / 'browser'} %s")
    page = Path(opened.stdout.removesuffix("\n"))
    assert (tmp_path / "opened").read_text() == page.as_uri()
    assert f"{NAME} version 2" in page.read_text()
    silent = typed("open", f"{NAME}@production", *place, BROWSER="", DISPLAY="", WAYLAND_DISPLAY="")
    assert (silent.stdout, "found no browser here" in silent.stderr) == (opened.stdout, True)
    assert not (tmp_path / "prefect").exists()
    assert processes_of(tmp_path / "prefect") == []
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("arguments", [("list",), ("show", f"{NAME}/1"), ("diff", f"{NAME}/1", f"{NAME}/2")])
def test_nothing_that_builds_or_orchestrates_is_imported(
    arguments: tuple[str, ...], server: tuple[str, Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=tmp_path, env=environment(MLFLOW_TRACKING_URI=server[0]), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]")


def test_a_database_that_may_only_be_read_is_read(server: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with sqlite3.connect(server[1] / "server.db") as before, sqlite3.connect(tmp_path / "store" / "copy.db") as copy:
        before.backup(copy)
    (tmp_path / "store" / "copy.db").chmod(0o444)
    done = slmpack(
        "list", NAME, "--json", cwd=tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'store' / 'copy.db'}"
    )
    assert [each["version"] for each in json.loads(done.stdout)["versions"]] == [3, 2, 1], done.stderr


def test_a_server_that_is_away_is_one_line(tmp_path: Path) -> None:
    for arguments in (["list"], ["show", f"{NAME}/1"], ["diff", f"{NAME}/1", f"{NAME}/2"]):
        done = slmpack(*arguments, cwd=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
        (line,) = error_lines(done)
        assert (done.returncode, done.stdout) == (1, "")
        assert "127.0.0.1:9" in line


def test_a_version_is_shown_although_its_run_is_gone(server: tuple[str, Path]) -> None:
    client = MlflowClient()
    model = client.get_logged_model(client.get_model_version(NAME, "1").tags["slmpack.model_id"])
    client.delete_run(str(model.source_run_id))
    assert view_version(f"{NAME}/1").quality["perplexity_ratio"] == 1.05
