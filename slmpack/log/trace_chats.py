"""Chats from traces: what a served model answered, and people marked as good, as data to learn from.

    traces:/EXPERIMENT?until=MS --search, feedback `user` true--> request and answer of each --> a line of chats.jsonl

A trace has the texts of its request only where the server was told to write them. `until` is the moment at which the
data were named, so that a retraining which reads them twice reads the same.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from slmpack.errors import DataError, UsageError
from slmpack.source.mlflow_errors import final_errors

if TYPE_CHECKING:
    from mlflow.entities import Trace

SCHEME = "traces:/"
FEEDBACK = "user"  # the name of the feedback by which people mark an answer
CHATS = "chats.jsonl"
TRACES_A_PAGE = 100
_FORM = re.compile(r"traces:/(?P<experiment>[^?]+)(\?until=(?P<until>\d{1,15}))?")


def at_this_moment(text: str) -> str:
    """Return the name of the traces up to now; one that names its moment stays.

    Raises:
        UsageError: it names no experiment.
    """
    experiment, until = _parts(text)
    return text if until is not None else f"{SCHEME}{experiment}?until={time.time_ns() // 1_000_000}"


def write_good_chats(text: str, into: Path) -> Path:
    """Write the chats whose answers were marked as good to a file in the folder `into`, the oldest first.

    Raises:
        UsageError: `text` names no experiment.
        DataError: there is no such experiment, no answer was marked as good, or none was traced with its texts.
    """
    experiment, until = _parts(text)
    path, marked, written = into / CHATS, 0, 0
    with final_errors(DataError, f"to read {text}"), path.open("w", encoding="utf-8") as file:
        for trace in _good(_experiment_id(unquote(experiment)), until):
            marked += 1
            if (messages := _messages(trace)) is not None:
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                written += 1
    if not written:
        found = (
            f"{marked} answers marked as good, none of them with its texts" if marked else "no answer marked as good"
        )
        advice = "serve with --trace-texts" if marked else "mark answers: POST /v1/feedback"
        raise DataError(f"{text} has {found}", "chats to learn from", advice)
    return path


def _parts(text: str) -> tuple[str, int | None]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} names no traces", f"{SCHEME}EXPERIMENT", "correct the name")
    return match["experiment"], None if match["until"] is None else int(match["until"])


def _experiment_id(name: str) -> str:
    from mlflow import MlflowClient

    experiment = MlflowClient().get_experiment_by_name(name)
    if experiment is None:
        raise DataError(f"MLflow has no experiment {name}", "the one that the server traces to", "check the name")
    return str(experiment.experiment_id)


def _good(experiment_id: str, until: int | None) -> "Iterator[Trace]":
    """Yield the traces whose last feedback of people says that the answer was good."""
    from mlflow import MlflowClient

    client, token = MlflowClient(), None
    while token != "":
        page = client.search_traces(
            locations=[experiment_id],
            filter_string=f"feedback.{FEEDBACK} = 'true'",
            max_results=TRACES_A_PAGE,
            order_by=["timestamp_ms ASC"],
            page_token=token,
        )
        yield from (trace for trace in page if _is_good(trace, until))
        token = page.token or ""


def _is_good(trace: "Trace", until: int | None) -> bool:
    from mlflow.entities import Feedback

    said = [
        each
        for each in trace.info.assessments
        if isinstance(each, Feedback)
        and each.name == FEEDBACK
        and (until is None or (each.create_time_ms or 0) <= until)
    ]
    return bool(said) and max(said, key=lambda each: each.create_time_ms or 0).value is True


def _messages(trace: "Trace") -> list[dict[str, str]] | None:
    """Return the chat with its answer; None where the trace has no texts, or several answers."""
    span: Any = trace.data.spans[0] if trace.data.spans else None
    asked, answered = (span.inputs or {}, span.outputs or {}) if span is not None else ({}, {})
    choices = answered.get("choices") or []
    if not asked.get("messages") or len(choices) != 1:
        return None
    turns = [*asked["messages"], {"role": "assistant", "content": choices[0]["message"]["content"]}]
    return [{"role": turn["role"], "content": _text(turn["content"])} for turn in turns]


def _text(content: object) -> str:
    """Return the text of a message: a string, or its text parts joined, as the model read them."""
    return "".join(part["text"] for part in content) if isinstance(content, list) else str(content)
