"""Which prompt is read next, and that every answer is what it would be alone."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import onnxruntime_genai as og
import pytest

from slmpack.records import Package
from slmpack.serve.generator_graph import GeneratorGraph
from slmpack.serve.grammar import GrammarError, Grammars, json_grammar
from slmpack.serve.jobs import Job, Token
from slmpack.serve.sampling import SamplingRule
from slmpack.serve.scheduler import Graph, Scheduler
from slmpack.serve.slot_graph import SlotGraph

ENDS = frozenset({2})
VOCABULARY = 8192
Make = Callable[..., Scheduler]


@pytest.fixture(scope="module")
def graph(small_package: Package) -> SlotGraph:
    return SlotGraph(small_package.path, 4, 512, threads=1)


@pytest.fixture(scope="module")
def runtime(small_package: Package) -> og.Model:
    return og.Model(str(small_package.path))


@pytest.fixture
def make(graph: SlotGraph, small_package: Package) -> Iterator[Make]:
    def scheduler(on: Graph = graph, **named: object) -> Scheduler:
        return Scheduler(on, ENDS, Grammars(small_package.path, VOCABULARY, ENDS), **named)  # type: ignore[arg-type]

    yield scheduler
    for slot in range(graph.slots):
        graph.cut(slot, 0)


def job(number: int, length: int, new: int = 12, **fields: object) -> Job:
    ids = np.random.default_rng(number).integers(3, VOCABULARY, length)
    return Job(number, [int(token) for token in ids], new, **fields)  # type: ignore[arg-type]


def run(scheduler: Scheduler) -> dict[int, list[Token]]:
    """Return the tokens of every job, in the order in which they came."""
    found: dict[int, list[Token]] = {}
    while scheduler.has_work:
        for token in scheduler.turn():
            assert isinstance(token, Token)
            found.setdefault(token.id, []).append(token)
    return found


def ids_of(tokens: list[Token]) -> list[int]:
    return [token.chosen.token for token in tokens]


def by_runtime(model: og.Model, wanted: Job) -> list[int]:
    """Return the runtime's own greedy answer."""
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(wanted.prompt) + wanted.max_tokens)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(wanted.prompt, np.int32))
    found: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
        if found[-1] in ENDS:
            break
    return found


def test_many_answers_at_a_time_are_the_runtimes_own(make: Make, runtime: og.Model) -> None:
    """Ten on four slots, of lengths on both sides of a part, with parts of 32."""
    jobs = [job(number, length) for number, length in enumerate((1, 2, 3, 31, 32, 33, 64, 65, 97, 200))]
    scheduler = make(part=32)
    for each in jobs:
        scheduler.add(each)
    found = run(scheduler)
    assert {number: ids_of(tokens) for number, tokens in found.items()} == {
        each.id: by_runtime(runtime, each) for each in jobs
    }
    assert all(tokens[-1].finish == "length" or tokens[-1].chosen.token in ENDS for tokens in found.values())
    assert all(token.finish is None for tokens in found.values() for token in tokens[:-1])


def test_the_parts_of_a_prompt_change_no_probability(make: Make) -> None:
    """65 tokens in parts of 32 leave one, which may not be a part of its own; of 129 the last is alone in its tile."""
    for length in (65, 127, 128, 129, 130, 257, 258):
        found = []
        for part in (32, 128, 512):
            scheduler = make(part=part, reuse=False)
            scheduler.add(job(length, length, new=2, rule=SamplingRule(logprobs=2)))
            (tokens,) = run(scheduler).values()
            found.append([round(token.chosen.logprob or 0, 6) for token in tokens])
        assert found[0] == found[1] == found[2], length


def test_a_prompt_used_again_changes_no_probability(make: Make) -> None:
    """Of 257 tokens 129 are read together, of 229 no 129."""
    for length in (229, 257, 130, 258):
        scheduler = make()
        whole = job(length, length, new=2, rule=SamplingRule(logprobs=2))
        scheduler.add(whole)
        (fresh,) = run(scheduler).values()
        for known in (100, 126, 128, 150):
            again = make()
            again.add(Job(1, [*whole.prompt[:known], 5, 6], 1))
            run(again)
            again.add(whole)
            (found,) = run(again).values()
            assert found[0].reused == min(known, length - (129 if length == 257 else 2)) // 2 * 2
            assert [round(each.chosen.logprob or 0, 6) for each in found] == [
                round(each.chosen.logprob or 0, 6) for each in fresh
            ]


def test_a_prompt_used_again_changes_no_token(make: Make, runtime: og.Model) -> None:
    scheduler = make(part=32)
    scheduler.add(first := job(1, 101))
    (tokens,) = run(scheduler).values()
    turn = Job(2, [*first.prompt, *ids_of(tokens), *job(3, 20).prompt], 12)
    scheduler.add(turn)
    (found,) = run(scheduler).values()
    assert found[0].reused == 100
    assert ids_of(found) == by_runtime(runtime, turn)
    scheduler.add(Job(4, turn.prompt, 12, reuse=False))
    (fresh,) = run(scheduler).values()
    assert fresh[0].reused == 0
    assert ids_of(fresh) == ids_of(found)


def test_generators_in_turn_give_the_same_answers(make: Make, runtime: og.Model) -> None:
    scheduler = make(GeneratorGraph(runtime, 2), together=False, reuse=False)
    jobs = [job(number, 20 + number) for number in range(4)]
    for each in jobs:
        scheduler.add(each)
    found = run(scheduler)
    assert {number: ids_of(tokens) for number, tokens in found.items()} == {
        each.id: by_runtime(runtime, each) for each in jobs
    }


def test_a_short_prompt_does_not_wait_for_a_long_one(make: Make) -> None:
    scheduler = make(part=32, clock=lambda: 0.0)
    scheduler.add(job(1, 400))
    assert list(scheduler.turn()) == []
    scheduler.add(job(2, 20))
    assert next(token.id for token in list(scheduler.turn())) == 2


def test_a_long_prompt_that_waited_goes_before_a_short_one(make: Make) -> None:
    now = 0.0
    scheduler = make(part=512, clock=lambda: now)
    scheduler.add(job(1, 400))
    now = 2.0  # 400 tokens a second
    scheduler.add(job(2, 20))
    assert next(token.id for token in list(scheduler.turn())) == 1


def test_a_cancelled_job_frees_its_slot_and_the_others_go_on(make: Make, runtime: og.Model) -> None:
    scheduler = make()
    kept = job(2, 30)
    for each in (job(1, 30, new=400), kept, job(3, 300)):
        scheduler.add(each)
    found = [token for token in scheduler.turn() if isinstance(token, Token)]
    scheduler.cancel(1)
    scheduler.cancel(3)
    rest = run(scheduler)
    assert scheduler.state()["slots"] == 0
    assert rest.keys() == {2}
    assert ids_of([token for token in found if token.id == 2] + rest[2]) == by_runtime(runtime, kept)


def test_the_end_of_a_turn_ends_an_answer(make: Make) -> None:
    scheduler = make()
    scheduler.add(job(1, 20, rule=SamplingRule(bias={2: 1000.0})))
    (tokens,) = run(scheduler).values()
    assert [(token.chosen.token, token.finish) for token in tokens] == [(2, "stop")]


def test_answers_with_seeds_do_not_depend_on_their_neighbours(make: Make) -> None:
    rule = SamplingRule(temperature=1.0, seed=5)
    scheduler = make()
    scheduler.add(job(1, 30, rule=rule))
    (alone,) = run(scheduler).values()
    for each in (job(7, 11), job(1, 30, rule=rule), job(9, 50, rule=SamplingRule(temperature=1.0))):
        scheduler.add(each)
    assert ids_of(run(scheduler)[1]) == ids_of(alone)


def test_a_grammar_bounds_what_is_written(make: Make, small_package: Package) -> None:
    from slmpack.log.chat_model import TextTokenizer

    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 9}}, "required": ["age"],
              "additionalProperties": False}  # fmt: skip
    scheduler = make()
    for seed in range(4):
        rule = SamplingRule(temperature=1.0, seed=seed, grammar=json_grammar(schema))
        scheduler.add(job(seed, 20, new=200, rule=rule))
    for tokens in run(scheduler).values():
        assert tokens[-1].finish == "stop"
        found = json.loads(TextTokenizer(small_package.path).decode(ids_of(tokens)[:-1]))
        assert found.keys() == {"age"}
        assert isinstance(found["age"], int)


def test_a_grammar_that_cannot_be_followed_is_refused_before_anything_is_read(make: Make) -> None:
    scheduler = make()
    with pytest.raises(GrammarError, match="nonsense"):
        scheduler.add(job(1, 20, rule=SamplingRule(grammar=json_grammar({"type": "nonsense"}))))
    assert not scheduler.has_work


def test_a_job_is_the_same_behind_the_line() -> None:
    from slmpack.serve.jobs import Lines

    sent = job(3, 9, rule=SamplingRule(temperature=0.5, bias={7: -1.5}, logprobs=2, seed=2**62))
    (message,) = Lines().push(sent.to_line())
    assert Job.from_fields(message["new"]) == sent
