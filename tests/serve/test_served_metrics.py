"""What `/metrics` says, read by Prometheus' own parser, after requests whose figures are known."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import Served, wait_for

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
COUNTERS = (
    "prompt_tokens_total", "completion_tokens_total", "reused_prompt_tokens_total", "gone_clients_total",
    "broken_answers_total", "time_to_first_token_seconds_count", "time_per_output_token_seconds_count",
    "request_seconds_count",
)  # fmt: skip


def counts(served: Served) -> dict[str, float]:
    return {name: served.value(name, model="tiny") for name in COUNTERS}


def growth(served: Served, *bodies: Any, path: str = CHAT) -> tuple[dict[str, float], list[Any]]:
    """Return by how much each counter grew while bodies were answered, and the answers."""
    before = counts(served)
    answers = [served.post(path, body)[1] for body in bodies]
    after = counts(served)
    return {name: after[name] - before[name] for name in COUNTERS}, answers


def test_the_text_is_what_prometheus_reads(served: Served) -> None:
    status, text = served.get("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert all(name.startswith("slmpack_") for name in families)
    assert all(family.documentation for family in families.values())
    kinds = {name: family.type for name, family in families.items()}
    assert kinds["slmpack_requests"] == "counter"
    assert kinds["slmpack_time_to_first_token_seconds"] == "histogram"
    assert kinds["slmpack_time_per_output_token_seconds"] == "histogram"
    assert kinds["slmpack_slots_busy"] == "gauge"


def test_tokens_and_times_of_an_answer_are_counted_once(served: Served) -> None:
    chat = {"messages": FRANCE, "max_tokens": 7}
    grown, (first, second) = growth(served, chat, {**chat, "n": 2})
    assert grown["completion_tokens_total"] == 7 + 14
    assert grown["prompt_tokens_total"] == first["usage"]["prompt_tokens"] + second["usage"]["prompt_tokens"]
    assert grown["reused_prompt_tokens_total"] == sum(
        each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in (first, second)
    )
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert grown["time_to_first_token_seconds_count"] == 2
    assert grown["time_per_output_token_seconds_count"] == 2
    assert grown["request_seconds_count"] == 2
    assert grown["gone_clients_total"] == grown["broken_answers_total"] == 0


def test_a_request_that_is_refused_has_no_tokens(served: Served) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    refused = served.value("requests_total", path=CHAT, status="400")
    grown, _ = growth(
        served,
        {"messages": FRANCE, "temperature": 3},
        {"messages": FRANCE, "response_format": schema},
        {"messages": FRANCE, "response_format": schema, "stream": True},
    )
    assert set(grown.values()) == {0}
    assert served.value("requests_total", path=CHAT, status="400") == refused + 3


def test_requests_are_counted_by_path_and_status(served: Served) -> None:
    expected = [(CHAT, "200"), ("/v1/completions", "200"), ("/invocations", "200"), ("/v1/models", "200"),
                ("other", "404"), (CHAT, "404")]  # fmt: skip
    before = [served.value("requests_total", path=path, status=status) for path, status in expected]
    served.post(CHAT, {"messages": FRANCE, "max_tokens": 1})
    served.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    served.post("/invocations", {"messages": FRANCE, "max_tokens": 1})
    served.get("/v1/models")
    served.get("/nowhere/" + "x" * 50)
    served.post(CHAT, {"messages": FRANCE, "model": "other"})
    after = [served.value("requests_total", path=path, status=status) for path, status in expected]
    assert [late - early for late, early in zip(after, before, strict=True)] == [1] * 6


def test_the_buckets_of_a_histogram_grow(served: Served) -> None:
    served.post(CHAT, {"messages": FRANCE, "max_tokens": 3})
    families = {each.name: each for each in text_string_to_metric_families(served.get("/metrics")[1].decode())}
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds", "request_seconds"):
        samples = families[f"slmpack_{name}"].samples
        buckets = [sample.value for sample in samples if sample.name.endswith("_bucket")]
        (count,) = (sample.value for sample in samples if sample.name.endswith("_count"))
        (seconds,) = (sample.value for sample in samples if sample.name.endswith("_sum"))
        assert buckets == sorted(buckets)
        assert buckets[-1] == count > 0
        assert seconds > 0


def test_the_gauges_say_what_is_held(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 200}], "max_tokens": 1}
    prompt = served.post(CHAT, body)[1]["usage"]["prompt_tokens"]
    wait_for(lambda: served.value("slots_busy") == 0)
    assert served.value("up") == 1
    assert served.value("slots") == 4
    assert served.value("queue") == served.value("engine_restarts") == 0
    limit = served.value("kv_bytes_limit")
    assert limit % (4 * 4096) == 0
    assert prompt * limit / (4 * 4096) <= served.value("kv_bytes") <= limit
