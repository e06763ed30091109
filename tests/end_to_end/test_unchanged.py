"""Unchanged: a source that did not move costs one request; whatever did move is packaged."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import environment, objects, slmpack
from hub_server import HubServer, Repository
from machines import write_variant
from mlflow_database import write_empty_database

from slmpack.publish.options import PackageOptions
from slmpack.publish.request import Request, check_request
from slmpack.publish.request_key import request_key
from slmpack.records import Interface, ModelSource, Recipe, SourceKind, Target
from slmpack.reports import QualityPolicy

pytestmark = pytest.mark.slow

QUALITY_TEXT = "What a model says of this text is compared with what its source says. " * 20  # one short window of it
SOURCE = ModelSource(text="hf://org/model", kind=SourceKind.HUB, location="org/model", revision="a" * 40, name="model")


def asked(
    recipe: Recipe = Recipe.AUTO, ratio: float = 1.1, target: Target = Target.CPU_INT4,
    interface: Interface = Interface.CHAT,
) -> Request:  # fmt: skip
    return check_request(
        target, PackageOptions(recipe=recipe, interface=interface, policy=QualityPolicy(max_perplexity_ratio=ratio)),
        None, None,
    )  # fmt: skip


def key(source: ModelSource = SOURCE, request: Request | None = None) -> str:
    return request_key(source, request or asked())


def test_the_request_key_depends_on_revision_recipe_policy_target_and_interface() -> None:
    moved = SOURCE.model_copy(update={"revision": "b" * 40})
    keys = [
        key(), key(moved), key(request=asked(Recipe.SMALL)), key(request=asked(ratio=1.2)),
        key(request=asked(target=Target.TRANSFORMERS)),
        key(request=asked(interface=Interface.PROMPT)),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_the_request_key_depends_on_the_builders_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    newer = tmp_path / "onnxruntime_genai-99.0.dist-info"
    newer.mkdir()
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-genai\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert key() != before


# Runs a command a line, as the command line's own process does, and writes its exit code below what it printed.
COMMANDS = """
import json, sys
from flows.cli import run
for line in sys.stdin:
    print(json.dumps({"code": run(json.loads(line))}), flush=True)
"""


@dataclass
class User:
    """Somebody with MLflow in a folder, and a machine that is new whenever they like."""

    folder: Path
    hub: HubServer
    api: str

    def arguments(self, machine: str, recipe: str) -> list[str]:
        """Return the command that packages on a machine, in the workspace of that machine."""
        return [
            "package", "hf://org/Tiny", "--json", "--recipe", recipe, "--workspace", str(self.folder / machine),
            "--waive-quality", "random weights, for a test", "--quality-text", str(self.folder / "quality.txt"),
        ]  # fmt: skip

    def settings(self, machine: str) -> dict[str, str]:
        """Return a machine's own settings: the Hub client's cache is its own."""
        return {
            "PREFECT_API_URL": self.api,
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / f"{machine}-hub"),
        }

    def package(self, machine: str, recipe: str) -> dict[str, Any]:
        """Package by the command itself."""
        done = slmpack(*self.arguments(machine, recipe), cwd=self.folder, **self.settings(machine))
        assert done.returncode == 0, done.stderr
        (outcome,) = objects(done)
        return outcome

    @contextmanager
    def packaging(self, machine: str) -> Iterator[Callable[[str], dict[str, Any]]]:
        """Yield what packages with a recipe, in one process for all of them, which imports everything once."""
        command, log = [sys.executable, "-P", "-c", COMMANDS], self.folder / f"{machine}.log"
        with (
            log.open("wb") as noise,
            subprocess.Popen(
                command, cwd=self.folder, env=environment(**self.settings(machine)), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise,
            ) as process,
        ):  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            write, lines = process.stdin, process.stdout

            def package(recipe: str) -> dict[str, Any]:
                write.write(json.dumps(self.arguments(machine, recipe)) + "\n")
                write.flush()
                outcome, ended = json.loads(lines.readline()), json.loads(lines.readline())
                assert ended == {"code": 0}, log.read_text()
                return dict(outcome)

            yield package


@pytest.fixture
def user(steady_phi3: Path, tmp_path: Path, prefect_api: str) -> Iterator[User]:
    (tmp_path / "user").mkdir()
    write_empty_database(tmp_path / "user" / "mlflow.db")
    (tmp_path / "user" / "quality.txt").write_text(QUALITY_TEXT)
    shutil.copytree(steady_phi3, tmp_path / "repository")
    with HubServer({"org/Tiny": Repository(tmp_path / "repository")}) as hub:
        yield User(tmp_path / "user", hub, prefect_api)


def test_an_unchanged_source_costs_a_new_machine_one_request_and_a_moved_one_is_packaged(
    user: User, steady_phi3: Path, tmp_path: Path
) -> None:
    with user.packaging("one") as package:
        first = package("small")
        user.hub.requests.clear()
        again = user.package("two", "small")
        assert (first["status"], again["status"], again["version"]) == ("published", "unchanged", 1)
        assert [request.method for request in user.hub.requests] == ["GET"]
        assert user.hub.downloads() == []
        assert list(again["seconds"]) == ["resolve", "find"]
        assert not (user.folder / "two" / "snapshots").exists()

        other = package("stock-small")
        assert (other["status"], other["version"]) == ("published", 2)

        write_variant(steady_phi3, tmp_path / "moved", seed=7)
        repository = user.hub.repositories["org/Tiny"]
        user.hub.repositories["org/Tiny"] = replace(repository, folder=tmp_path / "moved", commit="d00d" * 10)
        moved = package("stock-small")
        assert (moved["status"], moved["version"]) == ("published", 3)
