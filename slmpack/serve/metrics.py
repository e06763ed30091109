"""Metrics in Prometheus' text form: requests, tokens, times, queue, slots and the bytes of keys and values."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from slmpack.serve.models import Models
from slmpack.serve.tracing import Tracer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1)
REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """What is counted as it happens, and what is read when somebody looks."""

    def __init__(self, models: Models, tracer: Tracer | None = None) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered, by path and HTTP status", "path", "status")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts", "model")
        self.reused_tokens = self._counter("reused_prompt_tokens", "Tokens of prompts that were not computed", "model")
        self.completion_tokens = self._counter("completion_tokens", "Tokens of answers", "model")
        self.broken = self._counter("broken_answers", "Answers that ended with an error after they had begun", "model")
        self.gone = self._counter("gone_clients", "Answers whose client went away", "model")
        self.first_token = self._histogram("time_to_first_token_seconds", "From request to first token",
                                           FIRST_TOKEN_SECONDS)  # fmt: skip
        self.token = self._histogram("time_per_output_token_seconds", "Between tokens, mean of an answer",
                                     TOKEN_SECONDS)  # fmt: skip
        self.whole = self._histogram("request_seconds", "From request to the end of its answer", REQUEST_SECONDS)
        self._registry.register(_Now(models))
        if tracer is not None:
            dropped = Gauge("slmpack_dropped_traces", "Traces that MLflow did not take", registry=self._registry)
            dropped.set_function(lambda: tracer.dropped)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"slmpack_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"slmpack_{name}", text, ("model",), buckets=buckets, registry=self._registry)

    def text(self) -> bytes:
        """Return all of it in Prometheus' text form."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What the engines are doing at this moment."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        gauges = {
            "up": "1 while the model's process computes",
            "slots": "Slots of the model",
            "slots_busy": "Slots in use",
            "queue": "Answers that wait for a slot",
            "kv_bytes": "Bytes that keys and values take",
            "kv_bytes_limit": "Bytes that keys and values take at most",
            "engine_restarts": "How often the model's process was started again",
        }
        families = {name: GaugeMetricFamily(f"slmpack_{name}", text, labels=["model"]) for name, text in gauges.items()}
        for model in self._models.all():
            load = model.engine.load
            values = {
                "up": model.engine.is_ready,
                "slots": model.slots,
                "slots_busy": load.slots,
                "queue": load.waiting,
                "kv_bytes": load.taken_tokens * model.bytes_per_token,
                "kv_bytes_limit": model.kv_bytes,
                "engine_restarts": model.engine.restarts,
            }
            for name, value in values.items():
                families[name].add_metric([model.label], float(value))
        return families.values()
