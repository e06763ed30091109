"""Feedback: what people say of an answer, by its id: `POST /v1/feedback`, written to the answer's trace."""

import asyncio
import re

from slmpack.log.chat_model import RequestError, plain_row, read_flag, read_text, require_known
from slmpack.serve.failures import NOT_FOUND, UNAVAILABLE, Failure
from slmpack.serve.tracing import WRITE_SECONDS, Tracer, UnknownAnswerError, UnwrittenTraceError

FIELDS = frozenset({"id", "good", "comment", "user"})
LONGEST_COMMENT = 4000  # characters
LONGEST_USER = 200
_ANSWER = re.compile(r"(chatcmpl|cmpl)-[0-9a-f]{32}")


async def write_feedback(body: object, tracer: Tracer | None) -> dict[str, object]:
    """Mark an answer as good or not, and return what was written.

    Raises:
        RequestError: a field is missing, or is not what it should be.
        Failure: there are no traces, none of that answer, or it is not written yet.
    """
    row = {key: value for key, value in plain_row(body, "request").items() if value is not None}
    require_known(row, FIELDS, "request")
    answer = read_text("id", row.get("id"))
    if not _ANSWER.fullmatch(answer):
        raise RequestError.about("id", answer, "the id of an answer")
    if "good" not in row:
        raise RequestError.about("good", None, "true or false")
    good = read_flag(row, "good", default=True)
    texts = {name: _short(row, name, most) for name, most in (("comment", LONGEST_COMMENT), ("user", LONGEST_USER))}
    if tracer is None:
        raise Failure(NOT_FOUND, "this server traces no answers; start it with --trace EXPERIMENT", code="no_traces")
    try:
        await asyncio.to_thread(tracer.feedback, answer, good=good, **texts)
    except UnknownAnswerError:
        message = f"id: {answer} was found; the id of an answer that was traced is expected"
        raise Failure(NOT_FOUND, message, param="id", code="answer_not_found") from None
    except UnwrittenTraceError:
        message = f"id: the trace of {answer} waits for MLflow; send the feedback again in some seconds"
        wait = {"Retry-After": f"{WRITE_SECONDS:.0f}"}
        raise Failure(UNAVAILABLE, message, "server_error", "id", "trace_not_written", wait) from None
    return {"object": "feedback", "id": answer, "good": good}


def _short(row: dict[str, object], field: str, most: int) -> str | None:
    if field not in row:
        return None
    text = read_text(field, row[field])
    if len(text) > most:
        raise RequestError(f"{field}: {len(text)} characters were found; at most {most} are expected")
    return text
