"""Tracing: what was asked and answered, written to MLflow beside the answers, never before them.

    answer ends --queue--> thread --> MLflow trace, with the answer's id --POST /v1/feedback--> feedback `user`

The texts are written only where the user said so. A server that MLflow keeps waiting drops traces and counts them; an
answer never waits.
"""

import logging
import queue
import threading
from dataclasses import dataclass
from typing import Any

from slmpack.errors import PublishError
from slmpack.log.chat_model import Row
from slmpack.log.experiment import made_experiment
from slmpack.log.trace_chats import FEEDBACK
from slmpack.source.mlflow_errors import final_errors

logger = logging.getLogger(__name__)

MOST_WAITING = 1000
STOP_SECONDS = 5.0
WRITE_SECONDS = 5.0  # that feedback waits for the trace of its answer
COMPLETION = "slmpack.completion"  # the tag of a trace with the id of the answer


class UnknownAnswerError(LookupError):
    """No trace has the id of an answer."""


class UnwrittenTraceError(RuntimeError):
    """The trace of an answer waits for MLflow; what is said of it may be sent again."""


@dataclass
class Traced:
    """One answered request.

    Attributes:
        kind: `chat` or `completion`.
        facts: what is written in any case, beside tokens and times: model, version, digest.
        request, answer: as they went over the wire.
        started_ns, ended_ns: since 1970.
    """

    kind: str
    facts: dict[str, str]
    request: Row
    answer: dict[str, Any]
    started_ns: int
    ended_ns: int


class Tracer:
    """Writes traces to one experiment.

    Args:
        experiment: its name; it is made if need be.
        texts: whether requests and answers are written.

    Attributes:
        dropped: traces that were not written, since MLflow was too slow or away.
    """

    def __init__(self, experiment: str, *, texts: bool) -> None:
        """Find the experiment.

        Raises:
            PublishError: MLflow cannot be reached.
            LogError: the experiment is deleted.
        """
        from mlflow import MlflowClient

        with final_errors(PublishError, f"to trace to {experiment}"):
            self._experiment = str(made_experiment(MlflowClient(), experiment).experiment_id)
        self._texts = texts
        self.dropped = 0
        self._queue: queue.Queue[Traced | None] = queue.Queue(MOST_WAITING)
        self._unwritten: set[str] = set()  # ids of answers
        self._written = threading.Condition()  # of one more of them
        self._thread = threading.Thread(target=self._write_all, name="traces", daemon=True)
        self._thread.start()

    def put(self, traced: Traced) -> None:
        """Take a trace, and return at once."""
        with self._written:
            try:
                self._queue.put_nowait(traced)
            except queue.Full:
                self.dropped += 1
            else:
                self._unwritten.add(traced.answer["id"])

    def stop(self) -> None:
        """Write what waits, up to some seconds."""
        self._queue.put(None)
        self._thread.join(STOP_SECONDS)

    def feedback(self, completion: str, *, good: bool, comment: str | None, user: str | None) -> None:
        """Mark the answer with an id as good or not, once its trace is written.

        Raises:
            UnknownAnswerError: no trace has the id.
            UnwrittenTraceError: its trace is not written yet.
            PublishError: MLflow cannot be reached.
        """
        import mlflow
        from mlflow.entities import AssessmentSource

        self._wait_until_written(completion)
        with final_errors(PublishError, "to write the feedback"):
            found = mlflow.MlflowClient().search_traces(
                locations=[self._experiment],
                filter_string=f"tag.`{COMPLETION}` = '{completion}'",
                include_spans=False,
                flush=True,
            )
            if not found:
                raise UnknownAnswerError(completion)
            mlflow.log_feedback(
                trace_id=found[0].info.trace_id,
                name=FEEDBACK,
                value=good,
                rationale=comment,
                source=AssessmentSource(source_type="HUMAN", source_id=user or "unknown"),
            )

    def _wait_until_written(self, completion: str) -> None:
        """Wait for this trace, and for no other: nobody waits for an answer that was never traced."""
        with self._written:
            if not self._written.wait_for(lambda: completion not in self._unwritten, WRITE_SECONDS):
                raise UnwrittenTraceError(completion)

    def _write_all(self) -> None:
        while (traced := self._queue.get()) is not None:
            try:
                self._write(traced)
            except Exception as error:  # MLflow's, and its server's
                self.dropped += 1
                logger.warning("a trace was not written: %s", " ".join(str(error).split())[:200])
            with self._written:
                self._unwritten.discard(traced.answer["id"])
                self._written.notify_all()

    def _write(self, traced: Traced) -> None:
        import mlflow

        span: Any = mlflow.start_span_no_context(
            traced.kind,
            span_type="CHAT_MODEL" if traced.kind == "chat" else "LLM",
            inputs=traced.request if self._texts else None,
            tags={COMPLETION: traced.answer["id"], **traced.facts},
            experiment_id=self._experiment,
            start_time_ns=traced.started_ns,
        )
        if self._texts:
            span.set_outputs(traced.answer)
        usage = traced.answer["usage"]
        span.set_attribute(
            "mlflow.chat.tokenUsage",
            {
                "input_tokens": usage["prompt_tokens"],
                "output_tokens": usage["completion_tokens"],
                "total_tokens": usage["total_tokens"],
            },
        )
        span.end(end_time_ns=traced.ended_ns)
