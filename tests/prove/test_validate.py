"""Validation: sound models pass, and each kind of broken one is refused by the check that is for it."""

import json
import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from command_line import children_with
from made_proofs import files_of
from mlflow import MlflowClient
from mlflow.pyfunc.model import PythonModel

from slmpack.build.build import build_package
from slmpack.errors import CheckError
from slmpack.log.interfaces import check_answer, input_example_of, signature_of, wrapper_signature_of
from slmpack.log.log import log_model
from slmpack.log.requirements import requirements_for
from slmpack.log.staging import link_tree
from slmpack.machine.environments import run_to_log
from slmpack.machine.side_by_side import side_by_side
from slmpack.prove.validate import validate_model
from slmpack.records import Interface, LoggedModel, Package, Snapshot, Target

CHECK_NAMES = [
    "signature", "input example", "no pickle", "requirements", "metadata", "no leak", "files", "graph", "prediction",
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(store: Path, small_package: Package, workspace: Path) -> LoggedModel:
    return log_model(small_package, Interface.CHAT, "tiny", workspace, {})


def broken(sound: LoggedModel, change: Callable[[Path], None]) -> LoggedModel:
    """Log the files of `sound` once more, with a change that somebody could have made."""
    client = MlflowClient()
    experiment = client.get_run(sound.run_id).info.experiment_id
    model_id = client.create_logged_model(experiment, "broken", sound.run_id).model_id
    link_tree(files_of(sound.model_id), files_of(model_id))
    change(files_of(model_id))
    client.finalize_logged_model(model_id, "READY")
    return sound.model_copy(update={"model_id": model_id, "uri": f"models:/{model_id}"})


def rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Return the change of `old` to `new` in a file."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).unlink()  # a linked file is not written through
        (folder / name).write_text(text.replace(old, new))

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def example_with(example: dict[str, object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "input_example.json").unlink()
        (folder / "input_example.json").write_text(json.dumps(example))

    return change


BREAKS = {
    "a field less in the signature": ("signature", rewrite("MLmodel", '"name": "top_p"', '"name": "top_q"')),
    "requests cut to the signature": (
        "signature", rewrite("MLmodel", "is_signature_from_type_hint: true", "is_signature_from_type_hint: false"),
    ),
    "no input example": ("input example", remove("input_example.json")),
    "an example with another field": ("input example", example_with({"prompt": "hi"})),
    "an example of the wrong type": ("input example", example_with({"messages": "hi", "max_tokens": 4})),
    "a pickle beside the code": ("no pickle", lambda folder: (folder / "python_model.pkl").write_bytes(b"\x80\x04.")),
    "a pickle that is named in MLmodel": (
        "no pickle", rewrite("MLmodel", "model_code_path: chat_model.py", "python_model: chat_model.py"),
    ),
    "another loader": ("no pickle", rewrite("MLmodel", "mlflow.pyfunc.loaders.code_model", "mlflow.pyfunc.model")),
    "a loose requirement": ("requirements", rewrite("requirements.txt", "numpy==", "numpy>=")),
    "a requirement too few": ("requirements", rewrite("requirements.txt", "onnxruntime-genai==", "another-runtime==")),
    "a requirement too many": ("requirements", rewrite("requirements.txt", "numpy==", "torch==2.0.0\nnumpy==")),
    "an editable requirement": ("requirements", rewrite("requirements.txt", "numpy==", "-e .\nnumpy==")),
    "another task": ("metadata", rewrite("MLmodel", "task: llm/v1/chat", "task: llm/v1/completions")),
    "another digest": ("metadata", rewrite("MLmodel", "digest: ", "digest: 0")),
    "an absolute path": ("no leak", rewrite("MLmodel", "uri: package", "uri: /somewhere/package")),
    "a file address": ("no leak", rewrite("conda.yaml", "- pip:", "- file:///wheels/pip.whl\n- pip:")),
    "the home folder": ("no leak", rewrite("python_env.yaml", "python: ", f"python: in{Path.home()}x ")),
    "a file of the package gone": ("files", remove("artifacts/package/genai_config.json")),
    "no requirements": ("files", remove("requirements.txt")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", BREAKS)
def test_broken_model_is_refused_by_its_check(sound: LoggedModel, workspace: Path, what: str) -> None:
    name, change = BREAKS[what]
    model = broken(sound, change)

    with pytest.raises(CheckError) as refusal:
        validate_model(model, workspace)

    assert str(refusal.value).startswith(f"{name}: ")
    assert str(refusal.value).count("; ") >= 2  # found; expected; what to do
    assert list(MlflowClient().search_registered_models()) == []


@pytest.mark.slow
def test_sound_chat_model_passes_every_check(sound: LoggedModel, workspace: Path) -> None:
    report = validate_model(sound, workspace)

    assert report.model == sound
    assert [check.name for check in report.checks] == CHECK_NAMES
    assert "choices" in report.checks[-1].found


@pytest.mark.slow
def test_sound_prompt_model_passes_every_check(store: Path, small_package: Package, workspace: Path) -> None:
    model = log_model(small_package, Interface.PROMPT, "tiny", workspace, {})

    assert [check.name for check in validate_model(model, workspace).checks] == CHECK_NAMES


@pytest.mark.slow
def test_sound_transformers_model_passes_every_check(store: Path, small_snapshot: Snapshot, workspace: Path) -> None:
    package = build_package(small_snapshot, Target.TRANSFORMERS, None, workspace)
    model = log_model(package, Interface.CHAT, "tiny", workspace, {})

    assert [check.name for check in validate_model(model, workspace).checks] == [
        name for name in CHECK_NAMES if name != "graph"
    ]


WRAPPER = """
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel

    ANSWER = {{
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{{"index": 0, "finish_reason": "stop", "message": {{"role": "assistant", "content": "hi"}}}}],
    }}

    class Wrapper(PythonModel):
        def predict(self, context, model_input, params=None):
            {body}

    set_model(Wrapper())
"""


def wrapper_that(body: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "chat_model.py").unlink()
        (folder / "chat_model.py").write_text(textwrap.dedent(WRAPPER).format(body=body))

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise RuntimeError('no answer today')", "prediction of the input example failed with .*no answer today"),
        ("return [ANSWER]", "an answer of type list; one object"),
        ("return {**ANSWER, 'created': 'now'}", "created: .*long"),
    ],
)
def test_model_that_answers_wrongly_is_refused(sound: LoggedModel, workspace: Path, body: str, told: str) -> None:
    model = broken(sound, wrapper_that(body))

    with pytest.raises(CheckError, match=told):
        validate_model(model, workspace)


def test_a_refusal_ends_the_command_that_makes_the_clean_environment(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def make() -> int:
        return run_to_log(["sh", "-c", "touch begun; sleep 86399"], dict(os.environ), tmp_path, tmp_path / "log", 86400)

    def refuse() -> None:
        while not begun.exists():
            time.sleep(0.01)
        raise CheckError("prediction", "an answer", "log the model again")

    with pytest.raises(CheckError, match=r"^prediction"):
        side_by_side(make, refuse)
    assert children_with("sleep 86399", os.getpid()) == []  # it did not sleep on until it ended by itself


class Pickled(PythonModel):
    """What MLflow pickles by default: an object instead of a file."""

    def predict(self, context: object, model_input: object, params: object = None) -> object:
        return model_input


@pytest.mark.slow
def test_pickled_model_is_refused(sound: LoggedModel, workspace: Path) -> None:
    with mlflow.start_run(experiment_id=MlflowClient().get_run(sound.run_id).info.experiment_id):
        info = mlflow.pyfunc.log_model(
            name="pickled", python_model=Pickled(), signature=wrapper_signature_of(Interface.CHAT),
            input_example=input_example_of(Interface.CHAT), pip_requirements=list(requirements_for(Target.CPU_INT4)),
            metadata={"task": "llm/v1/chat"},
        )  # fmt: skip
    model = sound.model_copy(update={"model_id": info.model_id, "uri": f"models:/{info.model_id}"})

    with pytest.raises(CheckError, match=r"^no pickle: "):
        validate_model(model, workspace)


@pytest.mark.slow
def test_model_that_does_not_exist_is_refused(sound: LoggedModel, workspace: Path) -> None:
    missing = sound.model_copy(update={"model_id": "m-" + "0" * 32, "uri": "models:/m-" + "0" * 32})

    with pytest.raises(CheckError, match="MLflow refused to read models:/m-0"):
        validate_model(missing, workspace)


ANSWER: dict[str, object] = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


def test_answer_that_fits_the_schema_passes() -> None:
    schema = signature_of(Interface.CHAT).outputs

    assert check_answer(ANSWER, schema) == "choices, created, id, model, object, usage"
    assert check_answer("some text", signature_of(Interface.PROMPT).outputs) == "answer"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"created": 1.5}, "created"),
        ({"created": True}, "created"),
        ({"choices": None}, "choices"),
        ({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "hi"}}]}, "choices"),
        ({"usage": {"prompt_tokens": 1}}, "usage"),
        ({"more": 1}, "an answer with more"),
    ],
)
def test_answer_that_does_not_fit_the_schema_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(CheckError, match=told):
        check_answer(ANSWER | change, signature_of(Interface.CHAT).outputs)


@pytest.mark.parametrize("answer", [None, 3, ["a"], {"text": "a"}])
def test_prompt_answer_is_one_string(answer: object) -> None:
    with pytest.raises(CheckError, match="answer fits the output schema"):
        check_answer(answer, signature_of(Interface.PROMPT).outputs)
