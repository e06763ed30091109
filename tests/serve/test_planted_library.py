"""A library that a package names is not loaded, however the name is hidden from the wrapper."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import SLMPACK, environment
from hostile_graphs import seal, stage_model

from slmpack.records import Package

pytestmark = pytest.mark.slow
COMPILER = shutil.which("cc")
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void loaded(void) { fclose(fopen(getenv("PLANTED_MARK"), "w")); }
void *RegisterCustomOps(void *options, const void *api) { return 0; }
"""
NAME = "model.onnx.more"  # a .so is refused by its name already, by chat and serve
OPEN = "import sys, onnxruntime_genai as og; og.Model(og.Config(sys.argv[1]))"
CONSUME = "import sys, mlflow; mlflow.pyfunc.load_model(sys.argv[1])"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that writes a file when it is loaded."""
    if COMPILER is None:
        pytest.skip("no C compiler (cc) makes a library")
    folder = tmp_path_factory.mktemp("planted")
    (folder / "evil.c").write_text(SOURCE)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", "evil.so", "evil.c"], cwd=folder, check=True)
    return folder / "evil.so"


@pytest.fixture(scope="module")
def model(small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logged model of the tests' own."""
    return stage_model(small_package, workspace, tmp_path_factory.mktemp("logged") / "model")


def name_library(model: Path, library: Path, *, twice: bool) -> Path:
    """Give the package a library and let it ask for that; if `twice`, in a second object of one key.

    The runtime takes libraries of the package's folder and of the working folder, and no others.
    """
    package = model / "artifacts/package"
    shutil.copy(library, package / NAME)
    path = package / "genai_config.json"
    asking = {"custom_ops_library": NAME}
    config = json.loads(path.read_text())
    if twice:
        text = json.dumps(config)
        hidden = json.dumps({"session_options": asking})
        path.write_text(text.replace('"decoder":', f'"decoder": {hidden}, "decoder":', 1))
    else:
        config["model"]["decoder"]["session_options"] |= asking
        path.write_text(json.dumps(config))
    seal(package)
    return package


def run(mark: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, env=environment(PLANTED_MARK=str(mark)), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "hidden by a second key"])
def test_a_package_that_names_a_library_is_refused_before_the_runtime_opens_it(
    planted: Path, model: Path, tmp_path: Path, *, twice: bool
) -> None:
    hostile = shutil.copytree(model, tmp_path / "model")
    package = name_library(hostile, planted, twice=twice)
    mark = tmp_path / "mark"
    for words in (
        [SLMPACK, "chat", str(hostile), "Hello"], [SLMPACK, "serve", str(hostile), "--port", "0"],
        [sys.executable, "-P", "-c", CONSUME, str(hostile)],
    ):  # fmt: skip
        done = run(mark, *words)
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        assert "custom_ops_library" in last or "the key 'decoder' is there twice" in last
    assert not mark.exists()
    run(mark, sys.executable, "-P", "-c", OPEN, str(package))
    assert mark.exists()  # the runtime by itself does load it
