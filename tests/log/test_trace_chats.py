"""Answers that people marked as good become chats to learn from; by MLflow's own traces."""

import json
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import AssessmentSource

from slmpack.errors import DataError, UsageError
from slmpack.log.chat_artifacts import fetch_data, is_artifact
from slmpack.log.datasets import find_data
from slmpack.log.experiment import made_experiment
from slmpack.log.trace_chats import FEEDBACK

ADA = [{"role": "user", "content": "Who was Ada?"}]


def trace(question: object, answer: str | None, experiment: str = "served") -> str:
    """Log a trace as a server does; without texts where there is no answer."""
    made = made_experiment(mlflow.MlflowClient(), experiment)
    inputs = None if answer is None else {"messages": question}
    span = mlflow.start_span_no_context("chat", inputs=inputs, experiment_id=made.experiment_id)
    if answer is not None:
        span.set_outputs({"choices": [{"message": {"role": "assistant", "content": answer}}]})
    span.end()
    return str(span.trace_id)


def mark(trace_id: str, *, good: bool) -> None:
    mlflow.flush_trace_async_logging()
    source = AssessmentSource(source_type="HUMAN", source_id="ada")
    mlflow.log_feedback(trace_id=trace_id, name=FEEDBACK, value=good, source=source)
    time.sleep(0.002)  # the next one is later


def chats(text: str, into: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in fetch_data(text, into).read_text().splitlines()]


def test_answers_marked_as_good_are_the_chats(mlflow_store: Path, tmp_path: Path) -> None:
    mark(trace(ADA, "A mathematician."), good=True)
    mark(trace(ADA, "A fish."), good=False)
    trace(ADA, "Nobody looked at this one.")
    mark(changed := trace(ADA, "First good, then not."), good=True)
    mark(changed, good=False)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "was she?"}]}]
    mark(trace(parts, "The first programmer."), good=True)
    assert chats(find_data("traces:/served").text, tmp_path / "data") == [
        [*ADA, {"role": "assistant", "content": "A mathematician."}],
        [{"role": "user", "content": "Who was she?"}, {"role": "assistant", "content": "The first programmer."}],
    ]


def test_what_is_marked_later_is_no_part_of_data_that_were_named_before(mlflow_store: Path, tmp_path: Path) -> None:
    mark(trace(ADA, "A mathematician."), good=True)
    found = find_data("traces:/served")
    mark(trace(ADA, "A countess."), good=True)
    assert len(chats(found.text, tmp_path / "a")) == 1
    assert len(chats(find_data("traces:/served").text, tmp_path / "b")) == 2
    assert found.name == "traces:/served"
    assert find_data(found.text).text == found.text


def test_traces_without_texts_say_what_to_do(mlflow_store: Path, tmp_path: Path) -> None:
    mark(trace(ADA, None), good=True)
    with pytest.raises(DataError, match=r"1 answers marked as good, none of them with its texts; .*--trace-texts"):
        fetch_data("traces:/served", tmp_path / "data")


def test_nothing_marked_and_no_experiment_are_said(mlflow_store: Path, tmp_path: Path) -> None:
    trace(ADA, "A mathematician.")
    mlflow.flush_trace_async_logging()
    with pytest.raises(DataError, match="no answer marked as good; chats to learn from; mark answers"):
        fetch_data("traces:/served", tmp_path / "data")
    with pytest.raises(DataError, match="MLflow has no experiment nothing"):
        fetch_data("traces:/nothing", tmp_path / "data")


def test_traces_are_data_in_mlflow() -> None:
    assert is_artifact("traces:/served")
    with pytest.raises(UsageError, match="names no traces"):
        find_data("traces:/served?until=yesterday")
