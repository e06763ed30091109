"""Answers are traced to MLflow if the user said so, people mark them, and a retraining learns from the good ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from counting_proxy import counting_proxy
from mlflow.entities import Trace
from mlflow_server import running_mlflow_server
from served import Served, serving, wait_for

from slmpack.log.chat_artifacts import fetch_data
from slmpack.log.datasets import find_data
from slmpack.records import Package

pytestmark = pytest.mark.slow
CANARY = "a canary sits in the mine"
WRITES_TRACE = b"POST /api/3.0/mlflow/traces HTTP"
CHAT = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 6}


@pytest.fixture(scope="module")
def served(
    store: Path, small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("traced")
    with serving(small_package, folder, workspace, "--trace", "answers", "--trace-texts") as server:
        yield server


def trace_of(answer: dict[str, Any], experiment: str = "answers") -> Trace:
    """Return the trace of an answer, once all of it is written: its spans and its tags come one by one."""
    client = mlflow.MlflowClient()

    def found() -> Trace | None:
        made = client.get_experiment_by_name(experiment)
        traces = [] if made is None else client.search_traces(locations=[made.experiment_id])
        return next((each for each in traces if is_of(each, answer) and each.data.spans), None)

    return wait_for(found)


def is_of(trace: Trace, answer: dict[str, Any]) -> bool:
    return bool(trace.info.tags.get("slmpack.completion") == answer["id"])


def test_a_trace_has_the_version_the_tokens_and_the_texts(served: Served) -> None:
    _, answer = served.post("/v1/chat/completions", CHAT)
    trace = trace_of(answer)
    (span,) = trace.data.spans
    assert span.inputs["messages"] == CHAT["messages"]
    assert span.outputs["choices"] == answer["choices"]
    assert trace.info.tags["slmpack.model"] == "tiny"
    assert trace.info.token_usage == {
        "input_tokens": answer["usage"]["prompt_tokens"],
        "output_tokens": answer["usage"]["completion_tokens"],
        "total_tokens": answer["usage"]["total_tokens"],
    }


def test_a_stream_is_traced_as_the_whole_answer(served: Served) -> None:
    import urllib.request

    body = json.dumps(CHAT | {"stream": True}).encode()
    request = urllib.request.Request(
        f"{served.address}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as lines:
        chunks = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    trace = trace_of(chunks[0])
    assert trace.data.spans[0].outputs["choices"][0]["message"]["content"] == text


def test_answers_that_people_mark_as_good_are_learnt_from(served: Served, tmp_path: Path) -> None:
    good, bad = (served.post("/v1/chat/completions", CHAT | {"seed": seed, "temperature": 1})[1] for seed in (1, 2))
    said = {"id": good["id"], "good": True, "comment": "just so", "user": "ada"}
    assert served.post("/v1/feedback", said) == (200, {"object": "feedback", "id": good["id"], "good": True})
    assert served.post("/v1/feedback", {"id": bad["id"], "good": False})[0] == 200
    (feedback,) = trace_of(good).info.assessments
    assert (feedback.name, feedback.rationale, feedback.source.source_id) == ("user", "just so", "ada")
    path = fetch_data(find_data("traces:/answers").text, tmp_path / "data")
    text = good["choices"][0]["message"]["content"]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"messages": [*CHAT["messages"], {"role": "assistant", "content": text}]}  # type: ignore[misc]
    ]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"id": f"chatcmpl-{'0' * 32}", "good": True}, 404, "the id of an answer that was traced is expected"),
        ({"id": "' OR 1=1", "good": True}, 400, "the id of an answer is expected"),
        ({"id": f"chatcmpl-{'0' * 32}"}, 400, "good: None was found; true or false is expected"),
        ({"id": f"chatcmpl-{'0' * 32}", "good": "yes"}, 400, "good: 'yes' was found"),
        ({"id": f"chatcmpl-{'0' * 32}", "good": True, "stars": 5}, 400, "stars"),
        ({"id": f"chatcmpl-{'0' * 32}", "good": True, "comment": "x" * 5000}, 400, "comment: 5000 characters"),
    ],
)
def test_feedback_that_cannot_be_written_is_refused(served: Served, body: object, status: int, message: str) -> None:
    found, answer = served.post("/v1/feedback", body)
    assert (found, message in answer["error"]["message"]) == (status, True), answer


def test_feedback_on_an_answer_whose_trace_waits_for_mlflow_may_be_sent_again(
    small_package: Package, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an answer of this server's: that it is unknown would be wrong."""
    with running_mlflow_server(tmp_path) as address, counting_proxy(int(address.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
        monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")  # else MLflow's client waits in our place
        with serving(small_package, tmp_path, workspace, "--trace", "slow") as server:
            answers: list[Any] = []
            with proxy.holding(
                WRITES_TRACE, 600, begin=lambda: answers.append(server.post("/v1/chat/completions", CHAT)[1])
            ):  # MLflow has been sent the trace, and says nothing
                said = {"id": answers[0]["id"], "good": True}
                status, refused = server.post("/v1/feedback", said)
                assert (status, refused["error"]["code"]) == (503, "trace_not_written"), refused
                assert "send the feedback again" in refused["error"]["message"]
                assert server.post("/v1/feedback", said | {"id": f"chatcmpl-{'0' * 32}"})[0] == 404
            wait_for(lambda: server.post("/v1/feedback", said)[0] == 200)


def test_without_texts_none_is_written_anywhere(
    store: Path, small_package: Package, workspace: Path, tmp_path: Path
) -> None:
    with serving(small_package, tmp_path, workspace, "--trace", "silent") as server:
        _, answer = server.post("/v1/chat/completions", CHAT)
        trace = trace_of(answer, "silent")
        assert trace.data.spans[0].inputs is None
        assert trace.data.spans[0].outputs is None
    assert CANARY not in server.log.read_text()
    assert all(CANARY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_server_without_traces_says_how_to_have_them(small_package: Package, workspace: Path, tmp_path: Path) -> None:
    with serving(small_package, tmp_path, workspace, "--log-prompts") as server:
        _, chat = server.post("/v1/chat/completions", CHAT)
        status, answer = server.post("/v1/feedback", {"id": chat["id"], "good": True})
        assert (status, answer["error"]["code"]) == (404, "no_traces")
        assert "--trace EXPERIMENT" in answer["error"]["message"]
    assert CANARY in server.log.read_text()
