"""Smoke: models that load but do not answer are refused by the answer itself."""

from pathlib import Path

import mlflow
import pytest
from mlflow.models import ModelSignature
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

from slmpack.errors import SmokeError
from slmpack.log.log import log_model
from slmpack.prove.smoke import QUESTION, SmokeRequest, ask_model, smoke_test
from slmpack.prove.through_server import NAME, SERVED, ask_server
from slmpack.records import Interface, LoggedModel, Package
from slmpack.reports import Check

# An honest model but for `answer`, which each test replaces; it counts words as tokens.
MODEL = """
import mlflow
from mlflow.pyfunc import PythonModel


class Model(PythonModel):
    calls = 0

    def answer(self, row):
        words = "once upon a time there was a lighthouse".split()[: int(row["max_tokens"])]
        reason = "length" if len(words) == int(row["max_tokens"]) else "stop"
        return " ".join(words), reason, len(words)

    def rows(self, model_input):
        return model_input.to_dict("records") if hasattr(model_input, "to_dict") else [model_input]

    def predict(self, context, model_input, params=None):
        Model.calls += 1
        answers = [self.completion(*self.answer(row)) for row in self.rows(model_input)]
        return answers[0] if len(answers) == 1 else answers

    def completion(self, text, reason, tokens):
        return {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
                "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}}

    def predict_stream(self, context, model_input, params=None):
        text, reason, tokens = self.answer(*self.rows(model_input))
        for count, word in enumerate(text.split(" ")):
            yield {"choices": [{"index": 0, "delta": {"content": " " * (count > 0) + word}, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}],
               "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}}

BROKEN

mlflow.models.set_model(Model())
"""


def logged(package: Package, folder: Path, broken: str) -> LoggedModel:
    code = folder / "broken_model.py"
    code.write_text(MODEL.replace("BROKEN", broken))
    with mlflow.start_run() as run:
        info = mlflow.pyfunc.log_model(
            name="broken",
            python_model=str(code),
            signature=ModelSignature(CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA),
            pip_requirements=["mlflow"],
        )
    return LoggedModel(
        package=package, interface=Interface.CHAT, name="broken", model_id=info.model_id, uri=info.model_uri,
        run_id=run.info.run_id, requirements=(), digest="0" * 64,
    )  # fmt: skip


BREAKS = {
    "an empty text": ('    def answer(self, row):\n        return "", "stop", 1', r"the answer ''; some text"),
    "an error": ('    def answer(self, row):\n        raise RuntimeError("no weights")', "RuntimeError: no weights"),
    "raw byte markers": (
        '    def answer(self, row):\n        return "TheĠcapital", "stop", 1',
        "'Ġ' in the answer .*; decoded text",
    ),
    "counts that do not add up": (
        "    def completion(self, *a):\n        done = super().completion(*a); done['usage']['total_tokens'] += 1\n"
        "        return done",
        "counts that add up",
    ),
    "one answer to a batch": (
        "    def predict(self, context, model_input, params=None):\n"
        "        return super().predict(context, model_input.head(1))",
        "1 answers to 2 rows; one answer a row",
    ),
    "a length that is not told": (
        "    def answer(self, row):\n        text, _, tokens = super().answer(row)\n"
        "        return text, 'stop', tokens",
        "finish_reason and completion_tokens .* at max_tokens 3",
    ),
    "another stream": (
        "    def predict_stream(self, *a, **k):\n        yield {'choices': [{'delta': {'content': 'other'}}]}",
        "the streamed answer 'other'",
    ),
    "a stream that never stops": (
        "    def predict_stream(self, context, model_input, params=None):\n        while True:\n"
        "            yield {'choices': [{'delta': {'content': 'on and '}}]}",
        "a stream that goes on after 27 chunks; 24 tokens at most",
    ),
    "greedy answers that differ": (
        "    def answer(self, row):\n        text, reason, tokens = super().answer(row)\n"
        "        return (text if row['max_tokens'] == 3 else f'{text} {Model.calls}'), reason, tokens",
        "the streamed answer|the same twice",
    ),
    "a prose answer": (
        "    def completion(self, text, *a):\n        return text",
        "an answer of another shape",
    ),
}


OVER_THE_PROCESS = ("an empty text", "an error")  # our error and another's; the others are ours, and are asked here


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKS)
def test_refuses(name: str, small_package: Package, store: Path, tmp_path: Path, workspace: Path) -> None:
    override, message = BREAKS[name]
    broken = f"class Honest(Model):\n    pass\n\n\nclass Model(Honest):\n{override}\n"
    model = logged(small_package, tmp_path, broken)
    with pytest.raises(SmokeError, match=message):
        smoke_test(model, workspace) if name in OVER_THE_PROCESS else ask_model(request_for(model))


def request_for(model: LoggedModel) -> SmokeRequest:
    return SmokeRequest(
        tracking_uri=mlflow.get_tracking_uri(), registry_uri=mlflow.get_registry_uri(), uri=model.uri,
        interface=model.interface, streams=True,
    )  # fmt: skip


@pytest.mark.slow
def test_an_honest_model_passes_the_checks_that_refuse_the_others(
    small_package: Package, store: Path, tmp_path: Path
) -> None:
    answers = ask_model(request_for(logged(small_package, tmp_path, "Model.device = 'cpu'")))
    assert len(answers.checks) == 6


@pytest.mark.slow
def test_a_model_that_never_answers_is_stopped_and_refused(
    small_package: Package, store: Path, tmp_path: Path, workspace: Path
) -> None:
    broken = (
        "class Honest(Model):\n    pass\n\n\nclass Model(Honest):\n    def answer(self, row):\n        while True: pass"
    )
    with pytest.raises(SmokeError, match="the smoke test took longer than 8 s and was stopped"):
        smoke_test(logged(small_package, tmp_path, broken), workspace, small_limit_seconds=8)


@pytest.mark.slow
@pytest.mark.parametrize("interface", Interface)
def test_measures_a_package_that_answers(
    interface: Interface, tiny_package: Package, store: Path, workspace: Path
) -> None:
    report = smoke_test(log_model(tiny_package, interface, "tiny-phi3", workspace, {}), workspace)
    assert report.speed.decode_tokens_per_second > 0
    assert report.speed.ttft_ms > 0
    assert report.speed.load_seconds > 0
    assert report.speed.peak_rss_bytes > tiny_package.size_bytes
    assert {check.name for check in report.checks} >= {"one question", "a batch of two", "a streamed answer"}
    assert report.checks[-1] == Check(name=NAME, found=SERVED)


@pytest.fixture(scope="module")
def served(small_package: Package, store: Path, workspace: Path) -> LoggedModel:
    return log_model(small_package, Interface.CHAT, "served", workspace, {})


@pytest.mark.slow
def test_a_server_that_answers_otherwise_than_the_wrapper_is_refused(served: LoggedModel, workspace: Path) -> None:
    found = r"the server's answer '.+'; the wrapper's own, 'Paris\.'; serve it yourself"
    with pytest.raises(SmokeError, match=found):
        ask_server(served, QUESTION, "Paris.", 6, workspace)


@pytest.mark.slow
def test_a_model_that_cannot_be_served_is_refused_with_the_servers_reason(served: LoggedModel, workspace: Path) -> None:
    gone = served.model_copy(update={"uri": f"models:/m-{'0' * 32}"})
    with pytest.raises(SmokeError, match=r"`slmpack serve` does not serve the model \(.*m-0+"):
        ask_server(gone, QUESTION, "Paris.", 6, workspace)


@pytest.mark.slow
def test_a_model_with_code_of_its_own_is_not_served(
    small_package: Package, store: Path, tmp_path: Path, workspace: Path
) -> None:
    check = ask_server(logged(small_package, tmp_path, ""), QUESTION, "once", 1, workspace)
    assert check == Check(name=NAME, found="not tried: the model has code of its own, which the server would not run")
