"""Bodies that nobody thought of, by schemathesis from the served description and by hypothesis around it.

SLMPACK_FUZZ_EXAMPLES says how many of each kind; without it there are 150, the same ones every time.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import same_examples  # noqa: F401
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from served import Served, wait_for

from slmpack.serve.openapi import CHAT, COMPLETION

pytestmark = pytest.mark.slow

CHOSEN = os.environ.get("SLMPACK_FUZZ_EXAMPLES")
EXAMPLES = int(CHOSEN or 150)
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=CHOSEN is None, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
)  # fmt: skip
ALLOWED = {200, 400, 404, 405, 413, 415, 429, 503}
PATIENCE_SECONDS = 600  # schemathesis gives a server 10 of its own accord
CHAT_PATH, TEXT_PATH, MLFLOW_PATH = "/v1/chat/completions", "/v1/completions", "/invocations"


@pytest.fixture(autouse=True)
def goes_on(served: Served) -> Iterator[None]:
    """After all of them the same process computes, nothing is left in its slots, and it answers."""
    yield
    wait_for(lambda: served.value("slots_busy") + served.value("queue") == 0)
    status, answer = served.post(CHAT_PATH, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 2)
    assert served.value("engine_restarts") == 0
    assert "Traceback" not in served.log.read_text()


def check(status: int, answer: Any, body: Any) -> None:
    """Look at what came: an answer as asked for, or an error in its form."""
    assert status in ALLOWED, (status, answer)
    if status != 200:
        error = answer["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "\n" not in error["message"]
        return
    if isinstance(answer, dict) and "choices" in answer:
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        assert answer["usage"]["completion_tokens"] <= limit * len(answer["choices"])
        prompts = body["prompt"] if isinstance(body.get("prompt"), list) else [1]
        assert len(answer["choices"]) == (body.get("n") or 1) * len(prompts)
        assert all(choice["finish_reason"] in ("stop", "length") for choice in answer["choices"])


def send(served: Served, path: str, body: Any) -> tuple[int, Any]:
    status, content = served.post_raw(path, body)
    if isinstance(body, dict) and body.get("stream") is True and status == 200:
        assert content.endswith(b"data: [DONE]\n\n")
        return status, None
    return status, json.loads(content)


# ------------------------------------------------------------------------------------------ hypothesis

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([10**400, -1, 2**63, 1e308, 5e-324, "", "\0", "\ud800", "\u202e", "<|im_end|>", "{{ 7*7 }}"]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", "wizard"]) | JSON, "content": st.text() | JSON},
    optional={"name": st.text() | JSON, "tool_calls": JSON, "refusal": JSON},
)
SCHEMA = st.recursive(
    st.sampled_from([{"type": "integer"}, {"type": "null"}, {"enum": ["a", 1]}, {}, True, {"const": None},
                     {"type": "string", "maxLength": 3}, {"$ref": "#"}, {"$ref": "#/x"}, {"type": "string",
                      "pattern": "^[ab]{2}$"}, {"pattern": "("}, {"minimum": 1e300}]),
    lambda inner: st.one_of(
        st.builds(lambda a, b: {"type": "object", "properties": {"a": a, "b": b}, "required": ["a"],
                                "additionalProperties": False}, inner, inner),
        st.builds(lambda a: {"type": "array", "items": a, "maxItems": 2}, inner),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"allOf": [a, b]}, inner, inner),
        st.dictionaries(st.sampled_from(["type", "items", "not", "oneOf", "properties", "$ref", "x-guidance"]), inner),
    ), max_leaves=6,
)  # fmt: skip


def fields_of(described: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return bodies that have some of the fields, with values that are right, nearly right, or anything."""
    right = {
        "temperature": st.sampled_from([0, 0.7, 2]), "n": st.integers(1, 3), "stream": st.booleans(),
        "top_p": st.sampled_from([0.1, 1]), "seed": st.integers(0, 9), "stop": st.sampled_from(["a", ["b", "the"]]),
        "logprobs": st.sampled_from([True, 3]), "top_logprobs": st.integers(0, 20), "top_k": st.integers(1, 50),
        "min_p": st.floats(0, 1), "presence_penalty": st.floats(-2, 2), "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 8191).map(str), st.floats(-100, 100), max_size=3),
        "stream_options": st.sampled_from([{"include_usage": True}, {}]), "cache_prompt": st.booleans(),
        "messages": st.lists(MESSAGE, min_size=1, max_size=3), "prompt": st.text(min_size=1) | st.lists(st.text()),
    }  # fmt: skip
    good: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "prompt": "Hello"}
    needed = {name: st.just(good[name]) for name in described["required"]} | {"max_tokens": st.integers(1, 8)}
    fitting = {name: right[name] for name in described["properties"] if name in right and name not in needed}
    wild = {name: right.get(name, JSON) | JSON for name in described["properties"] if name != "max_tokens"}
    if "response_format" in wild:
        fitting["response_format"] = wild["response_format"] = SCHEMA.map(
            lambda schema: {"type": "json_schema", "json_schema": {"schema": schema}}
        )
    return st.one_of(
        st.fixed_dictionaries(needed, optional=fitting),
        st.fixed_dictionaries({"max_tokens": needed["max_tokens"]}, optional=wild | {"a field of ours": JSON}),
    )


@pytest.mark.parametrize(("path", "described"), [(CHAT_PATH, CHAT), (TEXT_PATH, COMPLETION)])
def test_bodies_of_every_kind_are_answered_or_refused(served: Served, path: str, described: dict[str, Any]) -> None:
    @FUZZ
    @given(body=fields_of(described))
    def sends(body: Any) -> None:
        check(*send(served, path, body), body)

    before = [served.value("requests_total", path=path, status=status) for status in ("200", "400")]
    sends()
    after = [served.value("requests_total", path=path, status=status) for status in ("200", "400")]
    assert min(late - early for late, early in zip(after, before, strict=True)) > EXAMPLES / 10


@FUZZ
@given(body=st.one_of(
    JSON, st.binary(max_size=200), st.dictionaries(st.sampled_from(["inputs", "dataframe_split", "instances", "params",
    "dataframe_records", "messages", "prompt"]), JSON | st.fixed_dictionaries({"columns": JSON, "data": JSON})),
))  # fmt: skip
def test_anything_sent_to_mlflow_s_path_is_answered_or_refused(served: Served, body: Any) -> None:
    status, answer = send(served, MLFLOW_PATH, body)
    assert status in ALLOWED
    assert status == 200 or answer["message"]


@FUZZ
@given(schema=SCHEMA.filter(lambda schema: isinstance(schema, dict)))
def test_an_answer_by_any_schema_is_valid_or_the_schema_refused(served: Served, schema: Any) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 200, "temperature": 1, "seed": 1,
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}  # fmt: skip
    status, answer = send(served, CHAT_PATH, body)
    check(status, answer, body)
    if status == 200 and answer["choices"][0]["finish_reason"] == "stop":
        value = json.loads(answer["choices"][0]["message"]["content"])
        with contextlib.suppress(RecursionError):  # of an `anyOf` with itself in it, which JSON Schema leaves undefined
            jsonschema.Draft202012Validator(schema).validate(value)


# ------------------------------------------------------------------------------------------ schemathesis


def test_the_served_description_is_true(served: Served) -> None:
    """Every operation, with bodies that fit and that do not: no crash, and only answers of documented kinds."""
    schema = schemathesis.openapi.from_url(f"{served.address}/openapi.json", timeout=PATIENCE_SECONDS)
    checks = [schemathesis.checks.not_a_server_error, status_is_known]
    count = 0
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr] # an operation that cannot be read is an error

        @FUZZ
        @given(
            case=operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        def sends(case: Any) -> None:
            nonlocal count
            if isinstance(case.body, dict):
                case.body["max_tokens"] = 2 if case.body.get("max_tokens") is None else case.body["max_tokens"]
            count += 1
            case.call_and_validate(checks=checks, timeout=PATIENCE_SECONDS)

        sends()
    assert count > EXAMPLES


def status_is_known(context: Any, response: Any, case: Any) -> None:
    """Check the status, and the form of an error."""
    assert response.status_code in ALLOWED, response.text
    if response.status_code >= 400:
        assert "error" in response.json()
