"""Through the server: what `slmpack serve` answers for the logged model is what its own wrapper answers.

One child process serves the model on a free port of the loopback and asks it over HTTP, as a client of OpenAI's API
would; the server's engine is a process below it. The model need not be a registered version for that.

    health -> models -> a chat -> the same chat, streamed -> a bad request -> stop
"""

import json
import logging
import os
import queue
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from slmpack.errors import SlmpackError, SmokeError, TrustError
from slmpack.machine.child import run_in_child
from slmpack.machine.forks import MLFLOW, forked_with
from slmpack.machine.limits import limit_seconds
from slmpack.machine.store import log_folder
from slmpack.progress import report
from slmpack.records import LoggedModel, Record
from slmpack.reports import Check
from slmpack.signing.policy import VARIABLE as TRUST_POLICY

logger = logging.getLogger(__name__)

NAME, SERVED = "through the server", "the same text, whole and streamed; HTTP 400 for a bad request"
SERVER_LIMIT_SECONDS = 300.0
NOT_TRIED = "not tried"
ANSWER_SECONDS = 120.0  # without a byte
ADVICE = "serve it yourself with `slmpack serve`, and ask it"
BAD_FIELD = "temperature"


class ServedChat(Record):
    """What the child is to serve and ask.

    Attributes:
        messages: the chat.
        expected: the wrapper's own answer to it.
        max_tokens: of that answer at most.
        answer_seconds: until the first byte of an answer.
    """

    tracking_uri: str
    registry_uri: str
    uri: str
    messages: tuple[dict[str, str], ...]
    expected: str
    max_tokens: int
    answer_seconds: float
    workspace: Path


def ask_server(
    model: LoggedModel,
    messages: list[dict[str, str]],
    expected: str,
    max_tokens: int,
    workspace: Path,
    *,
    small_limit_seconds: float = SERVER_LIMIT_SECONDS,
) -> Check:
    """Serve `model`, ask it, and stop the server.

    Args:
        expected: the wrapper's own greedy answer of `max_tokens` to `messages`.
        small_limit_seconds: for all of it, of a package up to 4 GB.

    Raises:
        SmokeError: the server does not start, or answers otherwise.
    """
    import mlflow

    size = model.package.size_bytes
    request = ServedChat(
        tracking_uri=mlflow.get_tracking_uri(),
        registry_uri=mlflow.get_registry_uri(),
        uri=model.uri,
        messages=tuple(messages),
        expected=expected,
        max_tokens=max_tokens,
        answer_seconds=limit_seconds(ANSWER_SECONDS, size),
        workspace=workspace,
    )
    check, _ = run_in_child(
        serve_and_ask,
        request,
        log=log_folder(workspace) / f"smoke-served-{model.digest[:12]}.log",
        limit_seconds=limit_seconds(small_limit_seconds, size),
        failure=SmokeError,
        doing="the smoke test through the server",
    )
    return check


@forked_with(*MLFLOW, "slmpack.serve.serve", "uvicorn", "httpx")
def serve_and_ask(request: ServedChat) -> Check:
    """Run in a child: serve in this thread, since a signal stops the server, and ask in another.

    Raises:
        SmokeError: the server does not start, or answers otherwise.
    """
    import mlflow

    from slmpack.serve.options import ServeOptions
    from slmpack.serve.serve import serve

    os.environ[TRUST_POLICY] = ""  # it is signed once it is proved
    mlflow.set_tracking_uri(request.tracking_uri)
    mlflow.set_registry_uri(request.registry_uri)
    signal.signal(signal.SIGINT, lambda *_: None)  # the server stops at it, and passes it on to this
    addresses: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1, "smoke-client") as pool:
        check = pool.submit(_ask_and_stop, request, addresses)
        try:
            serve([request.uri], ServeOptions(port=0, slots=1), request.workspace, logger.info, addresses.put)
        except TrustError:  # the wrapper that was asked is another than the one whose rules the server follows
            return Check(name=NAME, found=f"{NOT_TRIED}: the model has code of its own, which the server would not run")
        except SlmpackError as error:
            raise SmokeError(f"`slmpack serve` does not serve the model ({error})", "a server that does") from error
        finally:
            addresses.put(None)
        return check.result()


def _ask_and_stop(request: ServedChat, addresses: "queue.SimpleQueue[str | None]") -> Check:
    """Ask once the server listens; stop it in the end."""
    if (address := addresses.get()) is None:
        raise SmokeError("the server ended before it listened", "one that listens", ADVICE)
    try:
        return _ask(request, address)
    finally:
        os.kill(os.getpid(), signal.SIGINT)


def _ask(request: ServedChat, address: str) -> Check:
    import httpx

    with httpx.Client(base_url=address, timeout=request.answer_seconds, trust_env=False) as client:
        try:
            steps = _require_ready, _require_answer, _require_stream, _require_refusal
            chat: dict[str, Any] = {
                "model": _served_name(client),
                "messages": list(request.messages),
                "max_tokens": request.max_tokens,
                "temperature": 0,
                "cache_prompt": False,
            }
            for done, step in enumerate(steps, start=1):
                step(client, chat, request.expected)
                report("smoke", done, len(steps), "steps through the server")
        except httpx.HTTPError as error:
            found = f"no answer over HTTP ({type(error).__name__}: {error})"
            raise SmokeError(f"the server gave {found}", "one to each request", ADVICE) from error
    return Check(name=NAME, found=SERVED)


def _served_name(client: Any) -> str:
    """Return the name of the one model that is served."""
    rows = _json(client.get("/v1/models"), "/v1/models")["data"]
    if len(rows) != 1:
        raise SmokeError(f"the server lists {len(rows)} models", "the one that it serves", ADVICE)
    return str(rows[0]["id"])


def _require_ready(client: Any, _chat: dict[str, Any], _expected: str) -> None:
    _json(client.get("/health"), "/health")


def _require_answer(client: Any, chat: dict[str, Any], expected: str) -> None:
    answer = _json(client.post("/v1/chat/completions", json=chat), "a chat")
    text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
    _require_same("the server's answer", text, expected)
    if usage["prompt_tokens"] + usage["completion_tokens"] != usage["total_tokens"]:
        raise SmokeError(f"the server's usage {usage}", "counts that add up", ADVICE)


def _require_stream(client: Any, chat: dict[str, Any], expected: str) -> None:
    with client.stream("POST", "/v1/chat/completions", json=chat | {"stream": True}) as response:
        if response.status_code != 200:
            response.read()
            _json(response, "a streamed chat")
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    if not data or data[-1] != "[DONE]":
        raise SmokeError(f"a stream that ends with {data[-1:]}", "[DONE] as its last event", ADVICE)
    choices = [choice for event in data[:-1] for choice in json.loads(event).get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    _require_same("the server's streamed answer", text, expected)


def _require_refusal(client: Any, chat: dict[str, Any], _expected: str) -> None:
    response = client.post("/v1/chat/completions", json=chat | {BAD_FIELD: "hot"})
    error = response.json().get("error") if response.status_code == 400 else None
    if error is None or error.get("param") != BAD_FIELD:
        found = f"HTTP {response.status_code} {response.text[:120]!r}"
        raise SmokeError(f"the server's answer to a bad request: {found}", "HTTP 400 that names the field", ADVICE)


def _require_same(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise SmokeError(f"{what} {found!r}", f"the wrapper's own, {expected!r}", ADVICE)


def _json(response: Any, what: str) -> Any:
    """Return the JSON of an answer.

    Raises:
        SmokeError: its status is not 200.
    """
    if response.status_code != 200:
        found = f"the server's answer to {what}: HTTP {response.status_code} {response.text[:200]!r}"
        raise SmokeError(found, "HTTP 200", ADVICE)
    return response.json()
