"""The real model behind a real server: its words are the wrapper's very words, and its structured answers are valid."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
from openai import AsyncOpenAI, OpenAI
from served import Served, client_of, serving, wait_for, wrapper_of

from slmpack.log.chat_model import ChatModel
from slmpack.records import Package
from slmpack.serve.grammar import Grammars
from slmpack.serve.jobs import Job, Refusal, Token
from slmpack.serve.sampling import SamplingRule
from slmpack.serve.scheduler import Scheduler
from slmpack.serve.slot_graph import SlotGraph

pytestmark = pytest.mark.slow

SUBJECTS = (
    "the capital of France", "rain", "a good breakfast", "prime numbers", "Ada Lovelace", "the sea", "\u6771\u4eac",
    "r\u00e9sum\u00e9s", "how a bicycle works", "\U0001f600", "sorting a list in Python", "the moon", "bread",
    "thunder", "a short poem", "chess", "the French Revolution", "tea", "magnets", "glaciers",
)  # fmt: skip
WAYS = (
    "What do you know of {}?", "Tell me about {} in one sentence.", "{}?", "Explain {} to a child.", "Why {}?",
    "Write a line on {}. " + "Take your time, and think of all that matters here. " * 12, "Do you like {}?",
    "List three facts about {}.", "Translate into German: {}", "Again and again, " * 40 + "{}",
)  # fmt: skip
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "country": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 30},
        "sights": {"type": "array", "items": {"type": "string", "maxLength": 40}, "minItems": 1, "maxItems": 3},
        "season": {"enum": ["spring", "summer", "autumn", "winter"]},
    },
    "required": ["city", "country", "days", "sights", "season"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def real(smollm2_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(smollm2_package, tmp_path_factory.mktemp("real"), workspace, "--context", "2048") as found:
        yield found


@pytest.fixture(scope="module")
def client(real: Served) -> Iterator[OpenAI]:
    with client_of(real) as found:
        yield found


@pytest.fixture(scope="module")
def wrapper(real: Served) -> ChatModel:
    return wrapper_of(real)


def chats(subjects: int) -> list[Any]:
    """Return chats of all lengths, ten for each subject, some of several turns."""
    questions = [way.format(subject) for way in WAYS for subject in SUBJECTS[-subjects:]]
    found: list[Any] = [[{"role": "user", "content": text}] for text in questions]
    for index in range(0, len(found), 7):
        found[index] = [
            {"role": "system", "content": "You are brief."}, *found[index],
            {"role": "assistant", "content": "I see."}, {"role": "user", "content": "Go on."},
        ]  # fmt: skip
    return found


@pytest.mark.parametrize("subjects", [3, pytest.param(len(SUBJECTS), marks=pytest.mark.release)])
def test_greedy_answers_are_the_wrapper_s_very_text(real: Served, wrapper: ChatModel, subjects: int) -> None:
    """Eight at a time, in an order in which long and short ones meet; some with nothing used again."""
    requests = chats(subjects)
    count = len(requests)
    expected: list[Any] = [
        wrapper.predict(None, {"messages": chat, "max_tokens": 16})  # type: ignore[arg-type]
        for chat in requests
    ]

    async def all_of_them() -> list[Any]:
        turns = asyncio.Semaphore(8)
        async with AsyncOpenAI(base_url=f"{real.address}/v1", api_key="none", timeout=600) as several:

            async def answer(index: int) -> Any:
                async with turns:
                    return await several.chat.completions.create(
                        model="tiny",
                        messages=requests[index],
                        max_tokens=16,
                        extra_body={"cache_prompt": index % 3 > 0},
                    )

            order = sorted(range(count), key=lambda index: index * 37 % count)
            answers = await asyncio.gather(*(answer(index) for index in order))
            return [answers[order.index(index)] for index in range(count)]

    found = asyncio.run(all_of_them())
    differing = [
        (index, mine.choices[0].message.content, its["choices"][0]["message"]["content"])
        for index, (mine, its) in enumerate(zip(found, expected, strict=True))
        if mine.choices[0].message.content != its["choices"][0]["message"]["content"]
        or mine.choices[0].finish_reason != its["choices"][0]["finish_reason"]
        or mine.usage.completion_tokens != its["usage"]["completion_tokens"]
    ]
    assert differing == []
    reused = sum(answer.usage.prompt_tokens_details.cached_tokens for answer in found)
    assert reused > 0


def test_answers_by_a_schema_are_valid_and_about_the_question(client: OpenAI) -> None:
    described: Any = {"type": "json_schema", "json_schema": {"name": "trip", "strict": True, "schema": TRIP}}
    for city in ("Paris", "Rome", "Tokyo", "Berlin"):
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"Plan a trip to {city}."}], response_format=described,
            max_tokens=300,
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "stop"
        trip = json.loads(answer.choices[0].message.content or "")
        jsonschema.validate(trip, TRIP)
        assert trip["city"]


def test_an_answer_in_json_is_valid_where_the_model_ends_it(client: OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model="tiny", response_format={"type": "json_object"}, max_tokens=400, temperature=0.7, seed=seed,
            messages=[{"role": "user", "content": "Give me a person with name and age as JSON."}],
        )
        for seed in range(4)
    ]  # fmt: skip
    ended = [answer for answer in answers if answer.choices[0].finish_reason == "stop"]
    assert ended
    for answer in ended:
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_the_answer_says_paris_and_stops_before_it_if_told(client: OpenAI, real: Served) -> None:
    asked: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="tiny", messages=asked, max_tokens=20)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    stopped = client.chat.completions.create(model="tiny", messages=asked, max_tokens=20, stop=["aris"])
    assert stopped.choices[0].message.content == str(answer.choices[0].message.content).partition("aris")[0]
    assert stopped.choices[0].finish_reason == "stop"
    wait_for(lambda: real.value("slots_busy") == 0)


def test_the_parts_of_a_prompt_change_no_bit_of_a_real_models_probabilities(smollm2_package: Package) -> None:
    """A last token read by itself goes through another kernel; a tiny model's differences are too small to see."""
    vocabulary, ends = 49152, frozenset({2})
    graph = SlotGraph(smollm2_package.path, 1, 512, threads=2)
    for length in (65, 97, 129, 257):
        prompt = np.random.default_rng(length).integers(3, vocabulary, length).tolist()
        found = []
        for part in (32, 128, 512):
            grammars = Grammars(smollm2_package.path, vocabulary, ends)
            scheduler = Scheduler(graph, ends, grammars, part=part, reuse=False)
            scheduler.add(Job(part, prompt, 1, SamplingRule(logprobs=2)))
            (token,) = [each for each in turns(scheduler) if isinstance(each, Token)]
            found.append(token.chosen.likeliest)
            graph.cut(0, 0)
        assert found[0] == found[1] == found[2], length


def turns(scheduler: Scheduler) -> Iterator[Token | Refusal]:
    while scheduler.has_work:
        yield from scheduler.turn()
