"""MLflow's scoring protocol: the answers of `mlflow models serve`'s own code to the same bodies, and its paths."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from served import Served, serving

from slmpack.records import Interface, Package

pytestmark = pytest.mark.slow

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
ITALY = [{"role": "user", "content": "And of Italy?"}]
ROW: dict[str, Any] = {"messages": FRANCE, "max_tokens": 6}


@pytest.fixture(scope="module")
def served_prompts(
    small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A model of the prompt interface."""
    folder = tmp_path_factory.mktemp("prompts")
    with serving(small_package, folder, workspace, "--threads", "1", interface=Interface.PROMPT) as found:
        yield found


@pytest.fixture(scope="module")
def loaded(served: Served) -> Any:
    return mlflow.pyfunc.load_model(str(served.folder))


@pytest.fixture(scope="module")
def loaded_prompts(served_prompts: Served) -> Any:
    return mlflow.pyfunc.load_model(str(served_prompts.folder))


def by_mlflow(model: Any, body: object) -> tuple[int, Any]:
    """Return the status and the JSON that MLflow's scoring server answers."""
    try:
        answer = scoring_server.invocations(  # type: ignore[no-untyped-call]
            json.dumps(body).encode(), "application/json", model, model.metadata.get_input_schema()
        )
    except MlflowException as error:
        return error.get_http_status_code(), json.loads(error.serialize_as_json())  # type: ignore[no-untyped-call]
    return answer.status, json.loads(answer.response)


def essence(answer: Any) -> Any:
    """Return an answer without what differs each time, and without what only one of the servers writes."""
    if isinstance(answer, list):
        return [essence(each) for each in answer]
    if isinstance(answer, dict) and "predictions" in answer:
        return {"predictions": essence(answer["predictions"])}
    if not isinstance(answer, dict):
        return answer
    usage = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    choices = [
        (each["index"], each["message"]["role"], each["message"]["content"], each["finish_reason"])
        for each in answer["choices"]
    ]
    return {"object": answer["object"], "model": answer["model"], "choices": choices, "usage": usage}


@pytest.mark.parametrize("body", [
    ROW,
    {**ROW, "n": 2},
    {**ROW, "stream": False, "user": "u", "temperature": None, "tools": [], "logit_bias": {}, "logprobs": False},
    {"messages": FRANCE, "max_completion_tokens": 4, "stop": ["never"]},
    {**ROW, "temperature": 1.5, "top_k": 1, "custom_inputs": {"seed": 4}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]},
    {"inputs": ROW},
    {"inputs": [ROW]},
    {"inputs": [ROW, {"messages": ITALY, "max_completion_tokens": 3}]},
    {"inputs": {"messages": FRANCE}},
    {"inputs": {"messages": FRANCE, "stop": ["never"]}},
])  # fmt: skip
def test_a_body_is_answered_as_by_mlflow_s_server(served: Served, loaded: Any, body: Any) -> None:
    status, answer = served.post("/invocations", body)
    theirs = by_mlflow(loaded, body)
    assert (status, essence(answer)) == (200, essence(theirs[1]))
    assert theirs[0] == 200


@pytest.mark.parametrize("body", [
    {"messages": []}, {"messages": FRANCE, "max_token": 3}, {"inputs": {"messages": FRANCE, "temperature": 3}},
    {"inputs": [ROW, {"messages": FRANCE, "n": 0}]}, {"inputs": "text"}, {"inputs": []}, {"inputs": 5}, {"inputs": [5]},
    {"prompt": "Hello"}, {"inputs": {"messages": FRANCE, "stream": True}}, {"inputs": {"messages": FRANCE, "n": [2]}},
    {**ROW, "custom_inputs": {"seed": 4}, "seed": 5}, {**ROW, "params": {"max_tokens": 3}},
])  # fmt: skip
def test_what_mlflow_s_server_refuses_is_refused_with_its_fields(served: Served, loaded: Any, body: Any) -> None:
    status, answer = served.post("/invocations", body)
    theirs = by_mlflow(loaded, body)
    assert (status, theirs[0]) == (400, 400)
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
    assert answer["message"] == answer["error"]["message"]


@pytest.mark.parametrize("body", [
    {"dataframe_records": [ROW, {"messages": ITALY, "max_tokens": None}]},
    {"dataframe_split": {"columns": ["messages", "max_tokens"], "data": [[FRANCE, 6.0], [ITALY, None]]}},
    {"inputs": {"messages": [FRANCE, ITALY], "max_tokens": [6, None]}},
    {"instances": [ROW, {"messages": ITALY}]},
])  # fmt: skip
def test_tables_that_mlflow_takes_from_other_models_are_answered_row_by_row(
    served: Served, loaded: Any, body: Any
) -> None:
    expected = loaded.predict([ROW, {"messages": ITALY}])
    status, answer = served.post("/invocations", body)
    assert (status, essence(answer)) == (200, {"predictions": essence(expected)})


@pytest.mark.parametrize("body", [
    {"inputs": ROW, "params": {"max_tokens": 3}}, {"inputs": ROW, "other": 1}, {"inputs": ROW, "instances": [ROW]},
    {"inputs": {"messages": [FRANCE, ITALY], "max_tokens": [6]}}, {"inputs": [{**ROW, "model": "another"}]},
    {"dataframe_split": {"columns": ["messages", "messages"], "data": [[FRANCE, ITALY]]}},
    {"dataframe_split": {"columns": ["messages"], "data": [[FRANCE, 3]]}}, {"dataframe_split": [1]},
    {"dataframe_split": {"columns": ["messages"], "data": [[FRANCE]], "dtype": 1}},
    {"inputs": [ROW] * 17}, {"inputs": [ROW] * 65}, {"inputs": [{**ROW, "n": 16}, {**ROW, "max_tokens": 0}]},
])  # fmt: skip
def test_nothing_of_a_table_is_dropped_in_silence(served: Served, body: Any) -> None:
    assert served.post("/invocations", body)[0] == 400


def test_one_chat_may_be_streamed(served: Served, loaded: Any) -> None:
    import urllib.request

    request = urllib.request.Request(
        f"{served.address}/invocations", json.dumps({**ROW, "stream": True}).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=600) as answer:
        lines = [line.removeprefix(b"data: ") for line in answer.read().split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    assert "".join(deltas) == loaded.predict(ROW)["choices"][0]["message"]["content"]


def test_the_paths_of_mlflow_s_server_answer(served: Served) -> None:
    assert served.get("/ping")[0] == 200
    assert served.get("/health")[0] == 200
    assert served.get("/version") == (200, mlflow.__version__.encode())


@pytest.mark.parametrize("body", [
    {"prompt": "Hello", "max_tokens": 5}, {"prompt": "Hello", "max_completion_tokens": 4, "stop": "never"},
    {"inputs": ["Hello", {"prompt": "Good day", "max_tokens": 3}]}, {"inputs": "Hello"}, {"inputs": {"prompt": "Hi"}},
    {"inputs": [{"prompt": "Hi"}]},
])  # fmt: skip
def test_a_prompt_is_answered_as_by_mlflow_s_server(served_prompts: Served, loaded_prompts: Any, body: Any) -> None:
    status, answer = served_prompts.post("/invocations", body)
    theirs = by_mlflow(loaded_prompts, body)
    assert (status, answer) == theirs
    assert status == 200


@pytest.mark.parametrize("body", [
    {"prompt": "Hello", "n": 2}, {"messages": FRANCE}, {"prompt": ""}, {"prompt": 5}, {"prompt": "a", "logprobs": True},
    {"prompt": "a", "messages": FRANCE}, {"inputs": ["Hello", {"prompt": "a", "max_token": 3}]}, {"inputs": [["a"]]},
])  # fmt: skip
def test_what_is_no_prompt_is_refused(served_prompts: Served, loaded_prompts: Any, body: Any) -> None:
    status, answer = served_prompts.post("/invocations", body)
    assert (status, by_mlflow(loaded_prompts, body)[0]) == (400, 400), answer
    assert served_prompts.post("/invocations", {"prompt": "Hello", "max_tokens": 1})[0] == 200
