"""Trust: a model whose code is not ours runs only where somebody said so."""

import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
import yaml  # type: ignore[import-untyped]
from command_line import SLMPACK, environment, error_lines, slmpack
from mlflow import MlflowClient

from slmpack.build.build import build_package
from slmpack.errors import SourceError, TrustError
from slmpack.log.ask import load_model
from slmpack.log.log import MANIFEST_TAG, log_model
from slmpack.log.restore import restore_model
from slmpack.log.trust import known_wrappers, require_trusted, require_trusted_folder
from slmpack.machine.store import sha256_of
from slmpack.publish.rollback import read_version
from slmpack.records import Interface, LoggedModel, Package, Snapshot, Target, digest_of

Change = Callable[[Path], object]
HI = [{"role": "user", "content": "Hi"}]
STRANGER = """
import os, sys
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

{at_import}


class Model(PythonModel):
    def predict(self, context, model_input, params=None):
        {at_question}

    def predict_stream(self, context, model_input, params=None):
        {at_question}
        yield ""


set_model(Model())
"""


@pytest.fixture(scope="module")
def logged(tiny_package: Package, workspace: Path, store: Path) -> Path:
    """The artifacts of a model of ours."""
    return artifacts_of(log_model(tiny_package, Interface.CHAT, "ours", workspace, {}))


@pytest.fixture(scope="module")
def checkpoint(tiny_snapshot: Snapshot, workspace: Path, store: Path) -> Path:
    """The artifacts of a checkpoint that was logged for `transformers`."""
    package = build_package(tiny_snapshot, Target.TRANSFORMERS, None, workspace)
    return artifacts_of(log_model(package, Interface.CHAT, "checkpoint", workspace, {}))


def artifacts_of(model: LoggedModel) -> Path:
    location = MlflowClient().get_logged_model(model.model_id).artifact_location
    return Path(location.removeprefix("file://"))


def _copy_small(source: str, into: str) -> None:
    (os.link if source.endswith((".data", ".safetensors")) else shutil.copy)(source, into)


@pytest.fixture
def copy(logged: Path, tmp_path: Path) -> Path:
    return copied(logged, tmp_path)


def copied(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of a model that a stranger may change; what is large is a link."""
    place = tmp_path / "model"
    shutil.copytree(folder, place, copy_function=_copy_small)
    for path in place.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            path.chmod(0o644)
    return place


def flavour(**changed: object) -> Change:
    """Return what changes the settings that MLflow loads by."""

    def change(folder: Path) -> None:
        read = yaml.safe_load((folder / "MLmodel").read_text())
        read["flavors"]["python_function"] |= changed
        (folder / "MLmodel").write_text(yaml.safe_dump(read))

    return change


def write(name: str, text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return change


def append(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text)


def test_our_own_models_are_trusted(logged: Path, checkpoint: Path) -> None:
    require_trusted_folder("ours", logged)
    require_trusted_folder("checkpoint", checkpoint)


@pytest.mark.parametrize(("change", "found"), [
    (append("chat_model.py", "\nimport evil\n"), "a chat_model.py that is of no release"),
    (append("chat_model.py", " "), "a chat_model.py that is of no release"),
    (write("chat_model.py", "#" * 2_000_000), "files that cannot be read"),
    (write("code/tokenizers.py", ""), "code of its own ('code/tokenizers.py')"),
    (flavour(code="code"), "code of its own ('code')"),
    (flavour(code="artifacts"), "code of its own"),
    (flavour(loader_module="evil"), "loader_module in its MLmodel"),
    (flavour(loader_module="mlflow.sklearn"), "loader_module in its MLmodel"),
    (flavour(model_code_path="../chat_model.py"), "model_code_path in its MLmodel"),
    (flavour(python_model="python_model.pkl"), "python_model in its MLmodel"),
    (flavour(data="data"), "data in its MLmodel"),
    (flavour(artifacts={}), "artifacts in its MLmodel"),
    (write("MLmodel", "flavors: {}"), "files that cannot be read (KeyError)"),
    (write("MLmodel", "flavors: [1]"), "files that cannot be read (TypeError)"),
    (write("MLmodel", "[" * 100_000), "files that cannot be read (ValueError)"),
    (write("MLmodel", "a: !!python/object/apply:os.system [false]"), "files that cannot be read"),
    (lambda folder: (folder / "chat_model.py").unlink(), "files that cannot be read (FileNotFoundError)"),
])  # fmt: skip
def test_a_model_that_runs_other_code_is_refused_by_what_it_has(copy: Path, change: Change, found: str) -> None:
    change(copy)
    with pytest.raises(TrustError) as refused:
        require_trusted_folder("models:/x/1", copy)
    assert str(refused.value).startswith(f"models:/x/1 has {found}")
    assert str(refused.value).endswith("if you trust its author, give --trust-code")


@pytest.mark.parametrize(("change", "found"), [
    (append("model/config.json", ""), None),
    (write("model/config.json", '{"auto\\u005fmap": {}}'), "auto_map in model/config.json"),
    (write("components/tokenizer/tokenizer_config.json", '{"auto_map": {}}'), "auto_map in components/tokenizer"),
    (write("model/modeling.py", ""), "code of its own ('model/modeling.py')"),
    (write("model/pytorch_model.bin", ""), "a pickle (model/pytorch_model.bin)"),
    (write("model/config.json", "[" * 100_000), "files that cannot be read"),
    (flavour(code="model"), "code of its own"),
])  # fmt: skip
def test_a_checkpoint_that_brings_code_is_refused(
    checkpoint: Path, tmp_path: Path, change: Change, found: str | None
) -> None:
    place = copied(checkpoint, tmp_path)
    change(place)
    if found is None:
        require_trusted_folder("checkpoint", place)
        return
    with pytest.raises(TrustError) as refused:
        require_trusted_folder("checkpoint", place)
    assert found in str(refused.value)


def test_a_wrapper_of_an_earlier_release_is_known_by_its_digest() -> None:
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in known_wrappers())


def test_bytecode_beside_our_wrapper_is_not_run(copy: Path, tmp_path: Path) -> None:
    """Python takes unchecked bytecode for its source without a look at that."""
    evil, marker = tmp_path / "evil.py", tmp_path / "marker"
    evil.write_text(f"open({str(marker)!r}, 'w')\nraise SystemExit(0)\n")
    cached = copy / "__pycache__" / f"chat_model.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert "".join(load_model(str(copy)).stream(HI, {}))
    assert not marker.exists()


def save_stranger(folder: Path, at_import: str, at_question: str) -> str:
    code = folder / "code.py"
    code.write_text(STRANGER.format(at_import=at_import, at_question=at_question))
    mlflow.pyfunc.save_model(
        str(folder / "model"), python_model=str(code), pip_requirements=["mlflow-skinny"],
        input_example={"prompt": "hi"} if "exit" not in at_question + at_import else None,
        signature=mlflow.models.infer_signature({"prompt": "hi"}, "x"),
    )  # fmt: skip
    return str(folder / "model")


@pytest.mark.parametrize(("error", "told"), [
    ("sys.exit(0)", r"its code ends the process \(exit code 0\)"),
    ("raise KeyError('x')", "'x'"),
    ("raise GeneratorExit", "GeneratorExit"),
    ("class Own(BaseException): pass\n        raise Own('\\x1b[2J')", r"\\x1b\[2J"),
])  # fmt: skip
def test_whatever_a_models_code_raises_is_an_error_of_ours(tmp_path: Path, error: str, told: str) -> None:
    uri = save_stranger(tmp_path, "", error)
    with pytest.raises(SourceError, match=told):
        list(load_model(uri, trust_code=True).stream(HI, {}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "leave", ["sys.exit(0)", "os._exit(0)", "import atexit; atexit.register(os._exit, 0); sys.exit(0)"]
)
def test_a_strangers_exit_is_no_success(tmp_path: Path, leave: str) -> None:
    marker = tmp_path / "ran"
    uri = save_stranger(tmp_path, "", f"open({str(marker)!r}, 'w'); {leave}")
    refused = slmpack("chat", uri, "Hi", cwd=tmp_path)
    assert refused.returncode == 1
    (line,) = error_lines(refused)
    assert line.endswith("give --trust-code")
    assert not marker.exists()
    trusted = slmpack("chat", uri, "Hi", "--trust-code", cwd=tmp_path)
    assert trusted.returncode == 1
    assert error_lines(trusted)
    assert marker.exists()


def forge(model: LoggedModel, place: Path) -> None:
    """Give a logged model other code, and all that it says of itself the digests of that."""

    def rewrite(name: str, text: str) -> None:
        (place / name).unlink()  # read-only, and another name of a file of the workspace
        (place / name).write_text(text)

    rewrite("chat_model.py", (place / "chat_model.py").read_text() + "\nimport this\n")
    told = json.loads((place / "slmpack.json").read_text())
    wrapper = sha256_of(place / "chat_model.py")
    told["digest"] = digest_of([model.package.digest, model.interface, model.requirements, wrapper])
    rewrite("slmpack.json", json.dumps(told))
    listed = json.loads((place / "manifest.json").read_text())
    for file in listed["files"]:
        path = place / file["name"]
        file |= {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
    rewrite("manifest.json", json.dumps(listed))
    MlflowClient().set_logged_model_tags(model.model_id, {MANIFEST_TAG: sha256_of(place / "manifest.json")})


def test_verify_and_rollback_look_before_they_load(tiny_package: Package, store: Path, workspace: Path) -> None:
    model = log_model(tiny_package, Interface.CHAT, "forged", workspace, {})
    forge(model, artifacts_of(model))
    with pytest.raises(TrustError, match=r"a chat_model\.py that is of no release"):
        restore_model(model.uri, workspace)
    MlflowClient().create_registered_model("forged")
    MlflowClient().create_model_version("forged", model.uri, model_id=model.model_id)
    with pytest.raises(TrustError, match="models:/forged/1 has a chat_model"):
        read_version("forged", 1)


@pytest.mark.slow
def test_an_answer_is_harmless_on_a_terminal_and_whole_in_a_pipe(tmp_path: Path) -> None:
    answer = "\\x1b]0;owned\\x07 caf\\xe9\\n"
    uri = save_stranger(tmp_path, "", f"yield '{answer}'")
    command = [SLMPACK, "chat", uri, "Hi", "--trust-code"]
    piped = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, check=True)
    assert piped.stdout.decode() == "\x1b]0;owned\x07 café\n\n"
    ours, terminal = os.openpty()
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=terminal, stderr=subprocess.DEVNULL):
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while block := os.read(ours, 4096):
                shown += block
    os.close(ours)
    assert shown.decode().replace("\r\n", "\n") == "\\x1b]0;owned\\x07 café\n\n"


def test_aliases_in_an_mlmodel_are_not_written_out() -> None:
    grown = ", ".join(f"&{new} [{', '.join(['*' + old] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
    content = f"flavors: {{python_function: {{code: [&a [x], {grown}]}}}}"
    with pytest.raises(TrustError, match=r"^the model has files that cannot be read \(ValueError\); "):
        require_trusted("the model", ["MLmodel"], lambda _: content.encode())
