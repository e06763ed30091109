"""Failures in OpenAI's form: {"error": {"message", "type", "param", "code"}}, with the status that says whose it is."""

import re
from dataclasses import dataclass, field

from slmpack.errors import PublishError
from slmpack.log.chat_model import RequestError, TokenizerError
from slmpack.serve.engine import BusyError, EngineDiedError, RefusedError

BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TIMEOUT, TOO_LARGE = 400, 401, 404, 408, 413
UNSUPPORTED, BUSY, UNAVAILABLE = 415, 429, 503
DEAD_SECONDS = 2  # until a process that died is likely to be back
FIELD = re.compile(r"([\w.\[\]-]+): ")


@dataclass(eq=False)
class Failure(Exception):  # noqa: N818 - it is an answer
    """An answer that says what is wrong."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def to_row(self) -> dict[str, object]:
        """Return the body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def failure_of(error: Exception) -> Failure | None:
    """Return the answer to a request that raised `error`; None where nobody foresaw it."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, RequestError | TokenizerError):
        return _of_request(str(error))
    if isinstance(error, RefusedError):
        return _of_request(f"response_format: {error} was found; a schema that can be followed is expected")
    return _of_server(error)


def _of_server(error: Exception) -> Failure | None:
    """Return the answer to a request that this server cannot answer at this moment."""
    if isinstance(error, BusyError):
        wait = {"Retry-After": str(error.retry_seconds)}
        return Failure(BUSY, str(error), "rate_limit_error", code="queue_full", headers=wait)
    if isinstance(error, EngineDiedError):
        wait = {"Retry-After": str(DEAD_SECONDS)}
        return Failure(UNAVAILABLE, str(error), "server_error", code="engine_unavailable", headers=wait)
    if isinstance(error, PublishError):  # MLflow's, which only feedback waits for
        return Failure(UNAVAILABLE, str(error), "server_error", code="mlflow_unavailable")
    return None


def _of_request(message: str) -> Failure:
    """Return the answer to a request that cannot be answered; the message begins with the field."""
    code = "context_length_exceeded" if "context window" in message else "invalid_value"
    named = FIELD.match(message)
    return Failure(BAD_REQUEST, message, param=None if named is None else named[1], code=code)
