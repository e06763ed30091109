"""Answering: one request for chats or texts, from its checked body to OpenAI's answer, whole or streamed."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from slmpack.log.chat_model import Request, RequestError, Row
from slmpack.serve.answers import Form, Usage, choices_of, merged
from slmpack.serve.chat_request import Extras, read_chat, read_choices, read_completion
from slmpack.serve.metrics import Metrics
from slmpack.serve.served_model import Piece, ServedModel


@dataclass
class Exchange:
    """A request that can be answered.

    Attributes:
        requests: one a choice.
        on_end: is given the whole answer when it has ended, and after it was sent; None: nobody wants it.
    """

    model: ServedModel
    requests: list[Request]
    extras: Extras
    form: Form
    usage: Usage
    metrics: Metrics
    started: float
    first: float | None = None
    on_end: Callable[[Row], None] | None = None

    def pieces(self) -> AsyncGenerator[Piece]:
        """Yield the pieces of all choices as they come."""
        raw = not self.form.is_chat
        return merged([
            self.model.answer(
                request, self.model.rule_of(request, self.extras, index), index, reuse=self.extras.reuse, raw=raw
            )
            for index, request in enumerate(self.requests)
        ])  # fmt: skip

    async def whole(self) -> Row:
        """Return the whole answer."""
        found = [piece async for piece in self._counted()]
        return self.form.whole(choices_of(found, len(self.requests)), self.usage)

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the answer as server-sent events; the first waits for the first token, so that it can be refused."""
        async with aclosing(self._counted()) as pieces:
            begun: set[int] = set()
            async for piece in pieces:
                if piece.index not in begun and (head := self.form.first(piece.index)) is not None:
                    begun.add(piece.index)
                    yield self._event(head)
                for chunk in self.form.chunks(piece):
                    yield self._event(chunk)
        if self.extras.include_usage:
            yield event_of(self.form.last(self.usage))
        yield b"data: [DONE]\n\n"

    def _event(self, chunk: Row) -> bytes:
        return event_of(chunk | {"usage": None} if self.extras.include_usage else chunk)

    async def _counted(self) -> AsyncGenerator[Piece]:
        """Yield the pieces; count what they cost, also where the client goes away."""
        name = self.model.label
        pieces, seen = self.pieces(), list[Piece]()
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if self.first is None:
                        self._count_begin(name)
                    self.usage.count(piece.tokens)
                    self.metrics.completion_tokens.labels(name).inc(len(piece.tokens))
                    if self.on_end is not None:
                        seen.append(piece)
                    yield piece
            self._count_end(name)
            if self.on_end is not None:
                self.on_end(self.form.whole(choices_of(seen, len(self.requests)), self.usage))
        except (GeneratorExit, asyncio.CancelledError):
            self.metrics.gone.labels(name).inc()
            raise
        except Exception:
            if self.first is not None:  # else it was refused, which its status says
                self.metrics.broken.labels(name).inc()
            raise

    def _count_begin(self, name: str) -> None:
        self.first = time.monotonic()
        self.metrics.first_token.labels(name).observe(self.first - self.started)
        self.metrics.prompt_tokens.labels(name).inc(self.usage.prompt)

    def _count_end(self, name: str) -> None:
        metrics, usage, now = self.metrics, self.usage, time.monotonic()
        metrics.reused_tokens.labels(name).inc(usage.reused)
        metrics.whole.labels(name).observe(now - self.started)
        if self.first is not None and usage.completion > len(self.requests):
            later = (usage.completion - len(self.requests)) / len(self.requests)
            metrics.token.labels(name).observe((now - self.first) / later)


def event_of(row: Row) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def chat_exchange(model: ServedModel, body: object, metrics: Metrics) -> Exchange:
    """Return what answers a chat request.

    Raises:
        RequestError: it cannot be answered; the message names the field.
    """
    started = time.monotonic()
    row, extras, tooled = await asyncio.to_thread(read_chat, body, model.texts.vocabulary, model.tool_form)
    request = await model.read_chat(row, tooled)
    choices = [request] * request.sampling.n
    exchange = _exchange(
        model, choices, extras, is_chat=True, prompt=len(request.prompt_ids), metrics=metrics, at=started
    )
    exchange.form.tool_form = None if tooled is None or tooled.tools is None else tooled.form
    return exchange


async def completion_exchange(model: ServedModel, body: object, metrics: Metrics) -> Exchange:
    """Return what answers a request for texts; `chat_exchange` says what it raises."""
    started = time.monotonic()
    rows, extras = await asyncio.to_thread(read_completion, body, model.texts.vocabulary)
    count = read_choices(body if isinstance(body, dict) else {})
    requests = await model.read_raw(rows)
    choices = [request for request in requests for _ in range(count)]
    prompt = sum(len(request.prompt_ids) for request in requests)
    return _exchange(model, choices, extras, is_chat=False, prompt=prompt, metrics=metrics, at=started)


def _exchange(
    model: ServedModel, requests: Sequence[Request], extras: Extras, *, is_chat: bool, prompt: int, metrics: Metrics,
    at: float,
) -> Exchange:  # fmt: skip
    if len(requests) > model.capacity:
        raise RequestError(f"n: {len(requests)} answers were found in one request; this server takes at most "
                           f"{model.capacity} at a time")  # fmt: skip
    if any(len(request.prompt_ids) == 0 for request in requests):  # of letters that a tokenizer leaves out
        raise RequestError(f"{'messages' if is_chat else 'prompt'}: a text without a token was found; one or more are "
                           "expected")  # fmt: skip
    logprobs = extras.logprobs is not None
    form = Form(is_chat, model.label, model.texts.tokenizer, model.texts.end_tokens, logprobs)
    return Exchange(model, list(requests), extras, form, Usage(prompt), metrics, at)
