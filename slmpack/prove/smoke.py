"""Smoke: load the logged model by its URI in a process of its own, as a consumer would, and ask it.

MLflow warns at most about a model that cannot answer, and the runtime takes token ids outside the vocabulary without
a word; so the answers themselves are looked at. What it costs to answer is measured in the same process, last, when
every page of the weights has been touched. Then the model is served and asked over HTTP (`through_server`).
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from slmpack.errors import SmokeError
from slmpack.machine.child import run_in_child
from slmpack.machine.hardware import device_of, provider_here
from slmpack.machine.limits import limit_seconds
from slmpack.machine.store import log_folder
from slmpack.progress import report
from slmpack.prove.through_server import NAME, NOT_TRIED, ask_server
from slmpack.prove.timing import measure_speed
from slmpack.records import Interface, LoggedModel, Provider, Record, Target
from slmpack.reports import Check, SmokeReport, Speed

SMOKE_LIMIT_SECONDS = 1800.0
SHORT_TOKENS = 24
SPEED_TOKENS = 64
FRAME_CHUNKS = 2  # what a stream may have beside a chunk a token: the role at its start, the reason at its end

Message = dict[str, str]
QUESTION: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]
OTHER_QUESTION: list[Message] = [{"role": "user", "content": "Name three animals."}]
STORY: list[Message] = [{"role": "user", "content": "Tell me a long story about a lighthouse and the sea."}]
TURNS: list[Message] = [
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Hello, Ada."},
    {"role": "user", "content": "What is my name?"},
]
# How byte-level BPE and SentencePiece write a space or a newline: in an answer they mean a wrong decoder.
BYTE_MARKERS = ("Ġ", "Ċ", "▁")


class SmokeRequest(Record):
    """What the process is to load and from which tracking server; `streams` is whether the flavour can.

    Attributes:
        provider: what the package is to run by.
    """

    tracking_uri: str
    registry_uri: str
    uri: str
    interface: Interface
    streams: bool
    provider: Provider = "cpu"


class SmokeAnswers(Record):
    """What the process found.

    Attributes:
        answer: to `QUESTION`.
    """

    checks: tuple[Check, ...]
    answer: str
    speed: Speed


def smoke_test(model: LoggedModel, workspace: Path, *, small_limit_seconds: float = SMOKE_LIMIT_SECONDS) -> SmokeReport:
    """Load `model` by its URI in a new process, ask it, and measure what that costs.

    Args:
        small_limit_seconds: for all of it, of a package up to 4 GB; a model that never answers is refused then.

    A package for a GPU that this machine lacks answers by the provider for CPUs, which the report says.

    Raises:
        SmokeError: it does not load, or an answer is not one.
    """
    import mlflow

    request = SmokeRequest(
        tracking_uri=mlflow.get_tracking_uri(),
        registry_uri=mlflow.get_registry_uri(),
        uri=model.uri,
        interface=model.interface,
        streams=model.package.target is not Target.TRANSFORMERS,
        provider=provider_here(model.package.target),
    )
    log = log_folder(workspace) / f"smoke-{model.digest[:12]}.log"
    answers, _ = run_in_child(
        ask_model,
        request,
        log=log,
        limit_seconds=limit_seconds(small_limit_seconds, model.package.size_bytes),
        failure=SmokeError,
        doing="the smoke test",
    )
    device = device_of(request.provider)
    checks = (*answers.checks, *_server_checks(model, request.provider, answers.answer, workspace))
    return SmokeReport(model=model, checks=checks, speed=answers.speed, device=device)


def _server_checks(model: LoggedModel, provider: Provider, answer: str, workspace: Path) -> tuple[Check, ...]:
    """Ask the model through the server as well, where it can be served here.

    Args:
        answer: the wrapper's own to `QUESTION`.
    """
    target = model.package.target
    if target is Target.TRANSFORMERS:  # which `slmpack serve` does not take
        return ()
    if provider != target.provider:
        return (Check(name=NAME, found=f"{NOT_TRIED}: this machine lacks what {target} is for"),)
    return (ask_server(model, QUESTION, answer, SHORT_TOKENS, workspace),)


def ask_model(request: SmokeRequest) -> SmokeAnswers:
    """Run in a child: load by URI, ask, measure."""
    os.environ.update(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false", HF_HUB_OFFLINE="1")
    import mlflow

    mlflow.set_tracking_uri(request.tracking_uri)
    mlflow.set_registry_uri(request.registry_uri)
    started = time.perf_counter()
    model = Consumer(mlflow.pyfunc.load_model(request.uri, model_config=_config_of(request)), request)
    load_seconds = time.perf_counter() - started
    model.require_provider(request.provider)
    steps = CHECKS[request.interface]
    checks = []
    for done, check in enumerate(steps, start=1):
        checks.append(check(model))
        report("smoke", done, len(steps), "answers")
    speed = measure_speed(model.measure, load_seconds, peak_rss_bytes)
    return SmokeAnswers(checks=tuple(checks), answer=model.answer, speed=speed)


def _config_of(request: SmokeRequest) -> dict[str, object]:
    """Short and greedy answers, by the settings that any consumer may override."""
    if not request.streams:
        return {"do_sample": False}
    return {"max_tokens": SHORT_TOKENS, "execution_provider": request.provider}


class Consumer:
    """Asks one loaded model, of any interface and flavour."""

    def __init__(self, model: Any, request: SmokeRequest) -> None:
        self._model = model
        self.chats = request.interface is Interface.CHAT
        self.streams = request.streams

    def require_provider(self, provider: Provider) -> None:
        """Refuse a model that runs on another provider than requested, such as on the CPU for want of CUDA.

        Raises:
            SmokeError: it does.
        """
        if not self.streams:
            return
        found = str(getattr(self._model.unwrap_python_model(), "device", "cpu"))  # older wrappers know CPUs only
        if found != provider:
            raise SmokeError(f"the model runs on {found}", provider, "see what CUDA lacks: slmpack targets")

    @cached_property
    def answer(self) -> str:
        """The answer to `QUESTION`, which others are compared with; computed when it is first used."""
        (answer,) = self.ask(QUESTION)
        return str(answer["text"])

    def ask(self, *chats: list[Message], max_tokens: int = SHORT_TOKENS) -> list[dict[str, Any]]:
        """Return an answer a chat, all from one call.

        Raises:
            SmokeError: there is not one well-formed answer a row.
        """
        answers = self._model.predict(self._rows(chats, max_tokens))
        listed = answers if isinstance(answers, list) else [answers]
        if len(listed) != len(chats):
            raise SmokeError(f"{len(listed)} answers to {len(chats)} rows", "one answer a row", _ADVICE)
        return [_answer_of(answer, self.chats) for answer in listed]

    def _rows(self, chats: tuple[list[Message], ...], max_tokens: int) -> Any:
        import pandas as pd

        if not self.chats:
            return pd.DataFrame({"prompt": [chat[-1]["content"] for chat in chats]})
        rows = [{"messages": chat, "max_tokens": max_tokens} for chat in chats]
        return rows[0] if len(rows) == 1 else pd.DataFrame(rows)

    def stream(self, chat: list[Message], max_tokens: int) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yield the text of each chunk as it comes, and the usage where a chunk tells it.

        Raises:
            SmokeError: it goes on beyond the requested number of tokens.
        """
        for count, chunk in enumerate(self._model.predict_stream(self._rows((chat,), max_tokens))):
            if count > max_tokens + FRAME_CHUNKS:
                raise SmokeError(f"a stream that goes on after {count} chunks", f"{max_tokens} tokens at most", _ADVICE)
            if self.chats:
                yield chunk["choices"][0]["delta"].get("content") or "", chunk.get("usage")
            else:
                yield chunk, None

    def measure(self) -> tuple[float, float]:
        """Return time to first token in milliseconds and decode speed in tokens a second."""
        return self._measure_stream() if self.streams else self._measure_whole()

    def _measure_stream(self) -> tuple[float, float]:
        started = time.perf_counter()
        first, tokens = started, 0
        for count, (text, usage) in enumerate(self.stream(STORY, SPEED_TOKENS), start=1):
            first = time.perf_counter() if text and first == started else first
            tokens = usage["completion_tokens"] if usage else max(tokens, count)
        return (first - started) * 1000, _rate(tokens - 1, time.perf_counter() - first)

    def _measure_whole(self) -> tuple[float, float]:
        started = time.perf_counter()
        self.ask(STORY, max_tokens=1)
        first = time.perf_counter()
        (answer,) = self.ask(STORY, max_tokens=SPEED_TOKENS)
        more = answer["usage"]["completion_tokens"] - 1
        # The second call's own prefill is as long as the first call.
        return (first - started) * 1000, _rate(more, (time.perf_counter() - first) - (first - started))


_ADVICE = "ask the model yourself with `slmpack chat`"


def _rate(tokens: int, seconds: float) -> float:
    return max(tokens, 0) / seconds if seconds > 0 else 0.0


def _answer_of(answer: Any, is_chat: bool) -> dict[str, Any]:
    """Return the answer as {text, finish_reason, usage}; the last two are None for a prompt."""
    if not is_chat:
        return {"text": _checked(answer), "finish_reason": None, "usage": None}
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        adds_up = usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    except (KeyError, IndexError, TypeError) as error:
        raise SmokeError(f"an answer of another shape: {str(answer)[:120]!r}", "a chat completion", _ADVICE) from error
    if not adds_up or usage["prompt_tokens"] < 1:
        raise SmokeError(f"usage {usage}", "counts that add up", _ADVICE)
    if reason not in {"stop", "length"}:
        raise SmokeError(f"finish_reason {reason!r}", "stop or length", _ADVICE)
    return {"text": _checked(text), "finish_reason": reason, "usage": usage}


def _checked(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise SmokeError(f"the answer {text!r}", "some text", _ADVICE)
    if found := [marker for marker in BYTE_MARKERS if marker in text]:
        raise SmokeError(f"{found[0]!r} in the answer {text[:80]!r}", "decoded text", "check the tokenizer's decoder")
    return text


def _check_answer(model: Consumer) -> Check:
    return Check(name="one question", found=model.answer)


def _check_batch(model: Consumer) -> Check:
    first, second = model.ask(QUESTION, OTHER_QUESTION)
    return Check(name="a batch of two", found=f"{first['text']} | {second['text']}")


def _check_turns(model: Consumer) -> Check:
    (answer,) = model.ask(TURNS)
    return Check(name="several turns", found=answer["text"])


def _check_length(model: Consumer) -> Check:
    (answer,) = model.ask(STORY, max_tokens=3)
    found = (answer["finish_reason"], answer["usage"]["completion_tokens"])
    if found != ("length", 3):
        raise SmokeError(f"finish_reason and completion_tokens {found} at max_tokens 3", "('length', 3)", _ADVICE)
    return Check(name="max_tokens reached", found="finish_reason length")


def _check_repeatable(model: Consumer) -> Check:
    (again,) = model.ask(QUESTION)
    if again["text"] != model.answer:
        raise SmokeError(f"greedy answers {model.answer!r} and {again['text']!r}", "the same twice", _ADVICE)
    return Check(name="greedy twice", found="the same text")


def _check_stream(model: Consumer) -> Check:
    if not model.streams:
        return Check(name="a streamed answer", found="not offered by MLflow's transformers flavour")
    pieces = [text for text, _ in model.stream(QUESTION, SHORT_TOKENS)]
    if "".join(pieces) != model.answer:
        raise SmokeError(f"the streamed answer {''.join(pieces)!r}", f"the whole one, {model.answer!r}", _ADVICE)
    return Check(name="a streamed answer", found=f"{len(pieces)} chunks, the same text")


CHECKS: dict[Interface, tuple[Callable[[Consumer], Check], ...]] = {
    Interface.CHAT: (_check_answer, _check_batch, _check_turns, _check_stream, _check_length, _check_repeatable),
    Interface.PROMPT: (_check_answer, _check_batch, _check_stream, _check_repeatable),
}


def peak_rss_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    Not ru_maxrss on Linux: it keeps the high water mark of the process that started us.
    """
    if sys.platform == "linux":
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
