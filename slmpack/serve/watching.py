"""Watching: what is written down of an answer that has ended, in the log and in MLflow, if the user said so."""

import logging
import time
from collections.abc import Callable
from typing import Any

from slmpack.log.chat_model import Row
from slmpack.serve.answering import Exchange
from slmpack.serve.tracing import Traced, Tracer

logger = logging.getLogger(__name__)


class Watcher:
    """Writes down answers.

    Args:
        log_texts: whether their texts go to the log.
        tracer: where they are traced to; None: nowhere.
    """

    def __init__(self, tracer: Tracer | None, *, log_texts: bool) -> None:
        self.tracer = tracer
        self._log_texts = log_texts

    def watch(self, exchange: Exchange, body: object) -> None:
        """Have an answer written down when it ends; its request is now."""
        if self._log_texts:
            logger.info("request %s: %s", exchange.form.identity, body)
        if self._log_texts or self.tracer is not None:
            exchange.on_end = self._end_of(exchange, body)

    def _end_of(self, exchange: Exchange, body: object) -> Callable[[Row], None]:
        started_ns = time.time_ns()

        def end(answer: Row) -> None:
            if self._log_texts:
                logger.info("answer %s: %s", exchange.form.identity, answer["choices"])
            if self.tracer is not None:
                self.tracer.put(_traced(exchange, body, answer, started_ns))

        return end


def _traced(exchange: Exchange, body: object, answer: Any, started_ns: int) -> Traced:
    located = exchange.model.located
    facts = {"model": exchange.model.label, "version": located.version, "digest": located.digest}
    return Traced(
        kind="chat" if exchange.form.is_chat else "completion",
        facts={f"slmpack.{name}": str(value) for name, value in facts.items() if value is not None},
        request=body if isinstance(body, dict) else {},
        answer=answer,
        started_ns=started_ns,
        ended_ns=time.time_ns(),
    )
