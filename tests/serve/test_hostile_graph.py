"""A package whose graph overflows the runtime's stack, with manifests that fit it: nobody opens it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from command_line import SLMPACK, environment
from hostile_graphs import edit_graph, nest_functions

from slmpack.log.staging import staged_model
from slmpack.machine.store import MANIFEST, Manifest, digest_files
from slmpack.records import Interface, Package

pytestmark = pytest.mark.slow
FOUND = "model.onnx has functions or training of its own, which no build writes"


@pytest.fixture(scope="module")
def hostile(small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The logged model."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    with staged_model(small_package, Interface.CHAT, "small", "0" * 64, workspace) as staged:
        shutil.copytree(staged, folder)
    package = folder / "artifacts/package"
    for path in (package, *package.iterdir()):
        path.chmod(0o755)
    edit_graph(package, nest_functions)
    seal(package)
    yield folder


def seal(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(Manifest(files=digest_files(folder, "test"), facts={}).model_dump_json())


def test_a_consumer_gets_an_error_and_no_crash(hostile: Path) -> None:
    with pytest.raises(Exception, match=FOUND):
        mlflow.pyfunc.load_model(str(hostile))


@pytest.mark.parametrize(
    "words", [["chat", "MODEL", "Hello"], ["serve", "MODEL", "--port", "0"]], ids=["chat", "serve"]
)
def test_commands_refuse_it_in_a_line(hostile: Path, words: list[str]) -> None:
    command = [SLMPACK, *(str(hostile) if word == "MODEL" else word for word in words)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (1, 3, 4, 5), done.stderr
    assert FOUND in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
