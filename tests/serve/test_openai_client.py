"""The official `openai` client against a real server of a tiny model."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from serve_process import held
from served import Served, client_of, wait_for, wrapper_of

from slmpack.log.chat_model import ChatModel

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
LONG: Any = {"max_tokens": 4000, "logit_bias": {2: -100}}  # without the token that ends a turn
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Ada", "Grace", "Barbara"]},
        "year": {"type": "integer", "minimum": 1800, "maximum": 1999},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "town": {"anyOf": [{"$ref": "#/$defs/town"}, {"type": "null"}]},
    },
    "required": ["name", "year", "tags", "town"],
    "additionalProperties": False,
    "$defs": {"town": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                       "required": ["zip"], "additionalProperties": False}},
}  # fmt: skip


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with client_of(served) as found:
        yield found


@pytest.fixture(scope="module")
def wrapper(served: Served) -> ChatModel:
    return wrapper_of(served)


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": FRANCE, "max_tokens": 12} | fields)


@contextmanager
def connection_of(served: Served, **fields: Any) -> Iterator[HTTPConnection]:
    """Have a chat sent while the block runs; the client leaves at its end."""
    connection = HTTPConnection("127.0.0.1", served.port)
    body = json.dumps({"messages": FRANCE, "max_tokens": 12} | fields).encode()
    connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
    try:
        yield connection
    finally:
        connection.close()


def left_requests(served: Served) -> float:
    """Return how many chats were left by their clients."""
    return served.value("requests_total", path=CHAT, status="499")


def text_of(answer: Any, index: int = 0) -> str:
    return str(answer.choices[index].message.content)


def joined(stream: Any) -> tuple[str, list[Any]]:
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, chunks


# ------------------------------------------------------------------------------------------ one answer


def test_a_chat_is_answered_and_its_usage_adds_up(client: OpenAI) -> None:
    answer = ask(client)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_is_the_whole_answer_in_parts(client: OpenAI) -> None:
    text, chunks = joined(ask(client, stream=True))
    assert text == text_of(ask(client))
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_says_its_usage_at_its_end_if_that_is_asked_for(client: OpenAI) -> None:
    _, chunks = joined(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens == ask(client).usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_message_that_the_server_wrote_may_be_sent_back(client: OpenAI) -> None:
    said = ask(client).choices[0].message
    again = ask(client, messages=[*FRANCE, said, {"role": "user", "content": "And of Italy?"}])
    dumped = ask(client, messages=[*FRANCE, said.model_dump(), {"role": "user", "content": "And of Italy?"}])
    assert text_of(again) == text_of(dumped)
    assert again.usage.prompt_tokens > ask(client).usage.prompt_tokens


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_has_at_most_as_many_tokens_as_asked(client: OpenAI, field: str) -> None:
    answer = client.chat.completions.create(model="tiny", messages=FRANCE, **{field: 5})  # type: ignore[call-overload]
    assert answer.usage.completion_tokens == 5


# ------------------------------------------------------------------------------------------ stop


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("start", [1, 4, 9, 15])
def test_no_part_of_a_stop_string_gets_out(client: OpenAI, start: int, streams: bool) -> None:
    """Each of these lies across the borders of tokens."""
    full = text_of(ask(client, max_tokens=24))
    stop = full[start : start + 11]
    expected = full[: full.index(stop)]
    if not streams:
        answer = ask(client, max_tokens=24, stop=["never there", stop])
        assert (text_of(answer), answer.choices[0].finish_reason) == (expected, "stop")
        assert answer.usage.completion_tokens < 24
        return
    text, chunks = joined(ask(client, max_tokens=24, stop=stop, stream=True))
    assert text == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_no_part_of_a_stop_string_is_among_the_logprobs(client: OpenAI) -> None:
    full = text_of(ask(client, max_tokens=24))
    stop = full[9:20]
    answer = ask(client, max_tokens=24, stop=stop, logprobs=True)
    spelt = b"".join(bytes(each.bytes) for each in answer.choices[0].logprobs.content)
    assert spelt.decode(errors="replace").startswith(text_of(answer))
    assert stop not in spelt.decode(errors="replace")


# ------------------------------------------------------------------------------------------ sampling


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(client: OpenAI) -> None:
    hot = {"temperature": 1.2, "max_tokens": 16}
    first, again, other = (text_of(ask(client, seed=seed, **hot)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert len({text_of(ask(client, **hot)) for _ in range(3)}) == 3


def test_several_choices_differ_and_are_those_of_the_seeds_that_follow(client: OpenAI) -> None:
    answer = ask(client, n=3, seed=5, temperature=1.2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [text_of(answer, index) for index in range(3)]
    assert texts == [text_of(ask(client, seed=5 + index, temperature=1.2)) for index in range(3)]
    assert len(set(texts)) == 3
    assert answer.usage.completion_tokens == 36
    assert answer.usage.prompt_tokens == ask(client).usage.prompt_tokens


@pytest.mark.parametrize("narrow", [{"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}])
def test_narrow_sampling_is_greedy_however_hot(client: OpenAI, narrow: dict[str, Any]) -> None:
    assert text_of(ask(client, temperature=2, **narrow)) == text_of(ask(client))
    assert text_of(ask(client, temperature=2)) != text_of(ask(client))


def test_top_k_leaves_so_many_first_tokens(client: OpenAI) -> None:
    found = ask(client, logprobs=True, top_logprobs=2, max_tokens=1).choices[0].logprobs.content[0].top_logprobs
    answer = ask(client, n=16, seed=1, temperature=2, max_tokens=1, logprobs=True, extra_body={"top_k": 2})
    first = {choice.logprobs.content[0].token for choice in answer.choices}
    assert first == {each.token for each in found}


def test_logprobs_are_those_of_the_model(client: OpenAI) -> None:
    import math

    answer = ask(client, logprobs=True, top_logprobs=20)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        likeliest = [each.logprob for each in token.top_logprobs]
        assert len(likeliest) == 20
        assert likeliest == sorted(likeliest, reverse=True)
        assert sum(map(math.exp, likeliest)) <= 1
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, likeliest[0])
    spelt = b"".join(bytes(token.bytes) for token in content)
    assert spelt.decode(errors="replace").rstrip("\ufffd") == text_of(answer).rstrip("\ufffd")
    streamed = joined(ask(client, logprobs=True, top_logprobs=20, stream=True))[1]
    tokens = [each for chunk in streamed if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert tokens == content


def test_a_bias_bans_a_token_and_another_forces_it(client: OpenAI, wrapper: ChatModel) -> None:
    first = ask(client, logprobs=True, max_tokens=1)
    text = first.choices[0].logprobs.content[0]
    chosen = next(token for token in range(8192) if list(wrapper.runtime.tokenizer.bytes_of(token)) == text.bytes)
    banned = ask(client, logprobs=True, logit_bias={chosen: -100})
    assert text.bytes not in [token.bytes for token in banned.choices[0].logprobs.content]
    (forced,) = wrapper.runtime.tokenizer.encode("time")
    assert text_of(ask(client, logit_bias={forced: 100}, max_tokens=4)) == "timetimetimetime"


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_ends_a_repetition(client: OpenAI, wrapper: ChatModel, penalty: str) -> None:
    (time,) = wrapper.runtime.tokenizer.encode("time")
    bias = {"logit_bias": {time: 1.9}, "max_tokens": 24}
    plain, less = text_of(ask(client, **bias)), text_of(ask(client, **bias, **{penalty: 2.0}))
    assert plain.count("time") > 2 * less.count("time") > 0
    assert text_of(ask(client, **bias, **{penalty: -2.0})).count("time") >= plain.count("time")


# ------------------------------------------------------------------------------------------ structured answers


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_by_a_schema_is_valid(client: OpenAI, temperature: float) -> None:
    described: Any = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    answer = ask(client, n=6, seed=1, temperature=temperature, max_tokens=600, response_format=described)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), PERSON)


def test_a_stream_by_a_schema_is_valid(client: OpenAI) -> None:
    described: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    text, _ = joined(ask(client, max_tokens=600, response_format=described, stream=True, temperature=1, seed=3))
    jsonschema.validate(json.loads(text), PERSON)


def test_an_answer_in_json_is_an_object_as_far_as_it_goes(client: OpenAI) -> None:
    answer = ask(client, n=4, seed=1, temperature=1, max_tokens=60, response_format={"type": "json_object"})
    for choice in answer.choices:
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("schema", [
    {"$ref": "#"}, {"type": "integer", "minimum": 5, "maximum": 1}, {"type": "nonsense"}, {"not": {}},
    {"type": "string", "pattern": "(?=a)b"}, {"$ref": "http://127.0.0.1:9/other.json"}, {"const": "x" * 5000},
    {"type": "string", "x-guidance": {"lenient": True}}, {"enum": ["x" * 4000] * 17},
    {"type": "object", "properties": {f"k{index}": {} for index in range(1001)}},
    {"type": "integer", "multipleOf": 982451653},
])  # fmt: skip
def test_a_schema_that_cannot_be_followed_is_refused_and_the_field_named(client: OpenAI, schema: Any) -> None:
    described: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refusal:
            ask(client, response_format=described, stream=stream)
        assert str(refusal.value.param).startswith("response_format")
    assert text_of(ask(client))


def test_an_answer_whose_form_becomes_too_complex_is_an_error(client: OpenAI, wrapper: ChatModel) -> None:
    """The first token is found, and what may follow it is more than llguidance may look at."""
    brace, quote = (wrapper.runtime.tokenizer.encode(text)[0] for text in ("{", '"'))
    objects = [{"type": "object", "properties": {f"{letter}{index}": {} for index in range(900)}} for letter in "abc"]
    described: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"anyOf": objects}}}
    complex_one: Any = {"response_format": described, "logit_bias": {brace: 100, quote: 100}}
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, **complex_one)
    assert refusal.value.param == "response_format"
    stream = ask(client, **complex_one, stream=True)
    with pytest.raises(openai.APIError, match="response_format: a form that becomes too complex"):
        list(stream)
    assert text_of(ask(client))


# ------------------------------------------------------------------------------------------ several at a time


def test_the_async_client_gets_eight_answers_at_once_each_its_own(served: Served, client: OpenAI) -> None:
    prompts = [f"Tell me about the number {number}. " + "And more. " * number for number in range(8)]

    async def all_at_once() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0, timeout=600) as several:
            answers = await asyncio.gather(*(
                several.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": prompt}], max_tokens=12
                )
                for prompt in prompts
            ))  # fmt: skip
            return [text_of(answer) for answer in answers]

    one_by_one = [text_of(ask(client, messages=[{"role": "user", "content": prompt}])) for prompt in prompts]
    assert asyncio.run(all_at_once()) == one_by_one
    assert len(set(one_by_one)) > 4


def test_greedy_answers_are_the_wrapper_s_very_text(client: OpenAI, wrapper: ChatModel) -> None:
    chats: list[Any] = [
        [{"role": "user", "content": f"{index}: " + "word " * (index * index) + "\u00e9\u6f22\U0001f600"[: index % 4]}]
        for index in range(1, 25)
    ]
    expected: list[Any] = [
        wrapper.predict(None, {"messages": chat, "max_tokens": 16})  # type: ignore[arg-type]
        for chat in chats
    ]
    texts = [answer["choices"][0]["message"]["content"] for answer in expected]
    alone = [ask(client, messages=chat, max_tokens=16) for chat in chats]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda chat: ask(client, messages=chat, max_tokens=16), chats))
    fresh = ask(client, messages=chats[-1], max_tokens=16, extra_body={"cache_prompt": False})
    assert [text_of(answer) for answer in alone] == texts
    assert [text_of(answer) for answer in together] == texts
    assert text_of(fresh) == texts[-1]
    assert fresh.usage.prompt_tokens_details.cached_tokens == 0
    for mine, its in zip(alone, expected, strict=True):
        usage = its["usage"]
        assert (mine.usage.prompt_tokens, mine.usage.completion_tokens) == (
            usage["prompt_tokens"], usage["completion_tokens"],
        )  # fmt: skip


def test_a_client_that_goes_away_frees_its_slot_within_two_tokens(served: Served, client: OpenAI) -> None:
    before = served.value("completion_tokens_total")
    gone = served.value("gone_clients_total")
    stream = ask(client, **LONG, stream=True)
    next(stream)
    with held(served.engine()):  # it does not come to its end before the client has left
        seen = sum(1 for _, chunk in zip(range(4), stream, strict=False) if chunk.choices[0].delta.content)
        stream.close()
        wait_for(lambda: served.value("gone_clients_total") == gone + 1)
    wait_for(lambda: served.value("slots_busy") == 0)
    wait_for(lambda: served.value("gone_clients_total") == gone + 1)
    made = served.value("completion_tokens_total") - before
    assert seen < made < LONG["max_tokens"]  # those on their way when the client left, and not all


def test_a_client_that_goes_away_while_it_waits_never_gets_a_slot(served: Served, client: OpenAI) -> None:
    streams = [ask(client, n=4, **LONG, stream=True)]
    next(streams[0])
    prompts = served.value("prompt_tokens_total")
    with held(served.engine()):  # no answer ends, and no slot is free, before the others have left
        for streams_too in (False, True):
            left = left_requests(served)
            with connection_of(served, stream=streams_too):
                pass
            wait_for(partial(lambda before: left_requests(served) == before + 1, left))
    wait_for(lambda: served.value("queue") == 0)
    streams[0].close()
    wait_for(lambda: served.value("slots_busy") == 0)
    assert served.value("prompt_tokens_total") == prompts


# ------------------------------------------------------------------------------------------ texts


def test_a_text_is_gone_on_with(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8)
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    stream = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_several_texts_have_their_answers_in_order(client: OpenAI) -> None:
    prompts = ["Once upon a time", "import numpy as", "To be or not"]
    answer = client.completions.create(model="tiny", prompt=prompts, max_tokens=6, n=2, logprobs=3)
    alone = [client.completions.create(model="tiny", prompt=prompt, max_tokens=6) for prompt in prompts]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == [each.choices[0].text for each in alone for _ in range(2)]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone if each.usage)
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert choice.logprobs.top_logprobs is not None
        assert len(choice.logprobs.tokens) == 6
        assert all(len(each) == 3 for each in choice.logprobs.top_logprobs)


def test_the_models_are_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert model.model_dump()["slmpack"]["engine"] == "slots"


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("fields", "param"), [
    ({"temperature": 3}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 100_000}, "max_tokens"),
    ({"top_p": 0}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"n": 17}, "n"),
    ({"stop": [""]}, "stop"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"logit_bias": {"8192": 1}}, "logit_bias"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"extra_body": {"max_token": 3}}, "max_token"),
    ({"extra_body": {"response_format": {"type": "xml"}}}, "response_format.type"),
    ({"messages": [{"role": "developer", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
     "messages[0].content[0].type"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_and_the_field_named(client: OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, **fields)
    assert refusal.value.param == param
    assert refusal.value.type == "invalid_request_error"
    assert param in str(refusal.value)


def test_a_prompt_over_the_context_is_refused_with_both_lengths(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"prompt of \d{4} tokens was found; the context .* 4096") as found:
        ask(client, messages=[{"role": "user", "content": "word " * 4500}])
    assert found.value.code == "context_length_exceeded"


def test_a_model_that_is_not_served_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        ask(client, model="gpt-4")
    assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="x")


def test_a_full_queue_is_a_rate_limit_with_a_time(served: Served, client: OpenAI) -> None:
    stream = ask(client, n=16, **LONG, stream=True)
    next(stream)
    with held(served.engine()), pytest.raises(openai.RateLimitError) as refusal:  # the queue stays full
        ask(client)
    assert int(refusal.value.response.headers["retry-after"]) >= 1
    stream.close()
    wait_for(lambda: served.value("slots_busy") + served.value("queue") == 0)
    assert text_of(ask(client))


def test_a_client_s_timeout_ends_the_answer(served: Served, client: OpenAI) -> None:
    with held(served.engine()), pytest.raises(openai.APITimeoutError):
        ask(client, **LONG, timeout=0.3)
    wait_for(lambda: served.value("slots_busy") == 0)
