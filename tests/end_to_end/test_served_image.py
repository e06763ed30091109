"""The image without an engine: the steps of deploy/Dockerfile in an empty folder, and a server that runs from it.

The server runs as the image's user, with its environment, its entry point and, where we are root, on a file system that
is read-only but for the temporary folder. Its model comes from a real MLflow server.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import image_file
import pytest
from command_line import environment
from made_proofs import proofs_of
from mlflow_server import used_mlflow_server
from places import PROJECT
from serve_process import ServeProcess, running_server, wait_until_ended

from slmpack.log.log import log_model
from slmpack.publish.publish import publish_version
from slmpack.records import Interface, Package
from slmpack.signing.keys import SigningKey, new_key
from slmpack.signing.policy import VARIABLE

pytestmark = pytest.mark.slow

MOST_BYTES = 600e6
BASE_BYTES = 135e6  # python:3.11-slim, unpacked; Debian 13, x86-64
NAME = "served"
KEY = "a-key-of-the-tests-0123456789"
HEAVY = ("torch", "transformers", "prefect", "peft", "accelerate", "sqlalchemy", "pip", "setuptools")
COMPLETE = """
import sys
from importlib.metadata import distribution, distributions
from packaging.requirements import Requirement
for each in distributions():
    for line in each.requires or () if each.name != "slmpack" else ():
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            found = distribution(need.name).version
            assert need.specifier.contains(found, prereleases=True), (each.name, line, found)
"""
LOADED = "import slmpack.serve.serve, slmpack.serve.app, sys; print(*sys.modules)"


def builder(folder: Path) -> dict[str, str]:
    """Return the environment of the build stage, whose Python and pip are those of the tests."""
    programs = folder / "programs"
    programs.mkdir()
    for name, words in (("python", [sys.executable]), ("pip", [sys.executable, "-m", "pip"])):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    return kept | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def run_build_stage(folder: Path) -> None:
    """Do what the first stage of the Dockerfile does, with /opt/slmpack at `folder`/prefix."""
    work, settings = folder / "build", builder(folder)
    work.mkdir()
    for each in image_file.stages()[0]:
        if each.name == "ENV":
            settings |= dict(word.split("=", 1) for word in each.words)
        elif each.name == "COPY":
            *sources, target = each.words
            for source in sources:
                copy(PROJECT / source, work / target / Path(source).name if target == "./" else work / target)
        elif each.name == "RUN":
            script = image_file.place_in(folder, each.text)
            if script.startswith("pip install "):  # for the build alone: the tests' own packages stay as they are
                script += " --dry-run"
            done = subprocess.run(["sh", "-ec", script], cwd=work, env=settings, capture_output=True, text=True,
                                  check=False)  # fmt: skip
            assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder that every user may enter, with the image's packages in `prefix`, which nobody may write."""
    with tempfile.TemporaryDirectory(prefix="slmpack-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        run_build_stage(folder)
        shutil.rmtree(folder / "build")
        if os.geteuid() != 0:  # root becomes another user, who may not write there
            subprocess.run(["chmod", "-R", "a-w", folder / "prefix"], check=True)
        yield folder
        if os.geteuid() != 0:
            subprocess.run(["chmod", "-R", "u+w", folder / "prefix"], check=True)


def python(root: Path, *arguments: str) -> str:
    """Run the image's Python and return what it prints."""
    words = [str(root / "prefix" / "bin" / "python"), *arguments]
    done = subprocess.run(words, env=of_image(root), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def of_image(root: Path) -> dict[str, str]:
    """Return the environment that a process of the image has."""
    settings = {name: image_file.place_in(root, value) for name, value in image_file.settings().items()}
    path = settings["PATH"].replace("$PATH", "/usr/bin:/bin")
    return settings | {"PATH": path, "TMPDIR": str(root / "tmp")}


# ------------------------------------------------------------------------------------------ what is in it


def test_it_is_small_and_has_nothing_that_trains_or_builds(root: Path) -> None:
    size = sum(path.lstat().st_size for path in (root / "prefix").rglob("*"))
    assert size + BASE_BYTES < MOST_BYTES
    (packages,) = (root / "prefix" / "lib").glob("python3*/site-packages")
    names = {str(each.name).lower() for each in distributions(path=[str(packages)])}
    assert "slmpack" in names
    assert not names.intersection(HEAVY)


def test_every_package_has_what_it_needs(root: Path) -> None:
    assert python(root, "-c", COMPLETE) == ""


def test_the_server_imports_nothing_that_only_workers_have(root: Path) -> None:
    loaded = set(python(root, "-c", LOADED).split())
    assert {"fastapi", "mlflow", "tokenizers"} <= loaded


def test_a_database_that_it_cannot_read_is_said_in_one_line(root: Path) -> None:
    command = [root / "prefix" / "bin" / "slmpack", "serve", "models:/a@b", "--workspace", root / "tmp" / "none"]
    done = subprocess.run(list(map(str, command)), env=of_image(root) | {"MLFLOW_TRACKING_URI": "sqlite:///a.db"},
                          cwd=root, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "this installation has no client of databases; the address of an MLflow server; set" in done.stderr
    shutil.rmtree(root / "tmp" / "none", ignore_errors=True)


# ------------------------------------------------------------------------------------------ what it does


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return new_key(tmp_path_factory.mktemp("key") / "release.pem")


@pytest.fixture(scope="module")
def address(
    small_package: Package, key: SigningKey, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """An MLflow server with a signed version, which hands out its artifacts itself."""
    with used_mlflow_server(tmp_path_factory.mktemp("mlflow")) as found:
        model = log_model(small_package, Interface.CHAT, NAME, workspace, trace={})
        publish_version(model, proofs_of(model), key=key)
        yield found


def become(root: Path) -> list[str]:
    """Return the words before a command that make it the image's user, on a file system that can only be read."""
    if os.geteuid() != 0:
        return []
    user, group = image_file.one("USER").text.split(":")
    temporary = shlex.quote(str(root / "tmp"))
    mounts = f'mount --bind {temporary} {temporary} && mount -o remount,bind,ro / && exec "$@"'
    rights = ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "+dac_read_search"]  # Python may be in /root
    setpriv = ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs", *rights]
    return ["unshare", "--mount", "sh", "-c", mounts, "sh", *setpriv]


@pytest.fixture(scope="module")
def server(root: Path, address: str, key: SigningKey) -> Iterator[ServeProcess]:
    temporary = root / "tmp"
    temporary.mkdir(exist_ok=True)
    temporary.chmod(0o1777)
    keys = root / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o440)
    program = [*become(root), str(root / "prefix" / "bin" / "slmpack")]
    arguments = [*image_file.command()[1:], f"models:/{NAME}@cpu-int4", "--api-key-file", str(keys), "--slots", "2"]
    trust = root / "trust.toml"
    trust.write_text(f"[trust.keys.release]\npublic_key = '''{key.public_pem()}'''\nnames = ['{NAME}']\n")
    trust.chmod(0o444)
    settings = of_image(root) | {"MLFLOW_TRACKING_URI": address, VARIABLE: str(trust)}
    with running_server(arguments, temporary, command=program, env=settings, cwd=temporary) as found:
        yield found


def test_it_answers_as_another_user_with_a_read_only_tree_and_stops_when_it_is_told(
    server: ServeProcess, root: Path, tmp_path: Path
) -> None:
    assert server.get("/ready")[0] == 200
    assert server.get("/v1/models", KEY)[1]["data"][0]["slmpack"]["proved"]
    status, answer = server.chat(KEY)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 4)
    assert server.chat()[0] == 401

    port = server.address.rpartition(":")[2]
    program, *words, code = image_file.healthcheck()
    check = [str(root / "prefix" / "bin" / program), *words, code.replace(":8000/", f":{port}/")]
    assert subprocess.run(check, env=of_image(root), check=False, capture_output=True).returncode == 0

    family = server.family()
    if os.geteuid() == 0:
        user = int(image_file.one("USER").text.split(":")[0])
        assert {each.uids().effective for each in family} == {user}
        root_of = Path(f"/proc/{family[0].pid}/mounts").read_text().splitlines()
        assert next(line for line in reversed(root_of) if line.split()[1] == "/").split()[3].startswith("ro")
    assert server.stop(signal.SIGTERM) == 0
    assert not wait_until_ended(family)
    assert subprocess.run(check, env=of_image(root), check=False, capture_output=True).returncode != 0
    work = root / "tmp" / "work"
    assert not list((work / "scratch").iterdir())  # what was downloaded is gone with it
