"""Which row a prompt gets, and how much of it the row holds already."""

import pytest

from slmpack.records import Package
from slmpack.serve.slot_graph import SlotGraph
from slmpack.serve.slots import Slots


@pytest.fixture(scope="module")
def graph(small_package: Package) -> SlotGraph:
    return SlotGraph(small_package.path, 3, 512, threads=1)


@pytest.fixture
def slots(graph: SlotGraph) -> Slots:
    for slot in range(graph.slots):
        graph.cut(slot, 0)
    return Slots(graph, graph.slots)


def read(slots: Slots, graph: SlotGraph, prompt: list[int], *, reuse: bool = True) -> tuple[int, int]:
    """Read a whole prompt, as the scheduler does."""
    place, known = slots.take(prompt, reuse=reuse)
    graph.advance(place, prompt[known:])
    slots.fill(place, prompt[known:])
    return place, known


def numbers(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def test_the_next_turn_of_a_conversation_goes_on_in_its_row(slots: Slots, graph: SlotGraph) -> None:
    first = numbers(10, 100)
    place, known = read(slots, graph, first)
    assert known == 0
    graph.step({place: 5})  # a token of the answer is no part of a prompt
    slots.give_back(place)
    assert int(graph.lengths[place]) == 100
    assert read(slots, graph, first + numbers(500, 30)) == (place, 100)


def test_an_odd_token_is_computed_again(slots: Slots, graph: SlotGraph) -> None:
    first = numbers(10, 51)
    place, _ = read(slots, graph, first)
    slots.give_back(place)
    assert read(slots, graph, first + numbers(500, 30)) == (place, 50)


def test_the_same_prompt_again_computes_its_last_tokens(slots: Slots, graph: SlotGraph) -> None:
    prompt = numbers(10, 60)
    place, _ = read(slots, graph, prompt)
    slots.give_back(place)
    assert read(slots, graph, prompt) == (place, 58)


def test_a_system_prompt_is_copied_from_a_row_in_use(slots: Slots, graph: SlotGraph) -> None:
    system = numbers(10, 80)
    first, _ = read(slots, graph, system + numbers(500, 20))
    second, known = read(slots, graph, system + numbers(700, 20))
    assert second != first
    assert known == 80
    assert int(graph.lengths[first]) == 100


def test_a_long_conversation_is_not_cut_for_another_with_its_beginning(slots: Slots, graph: SlotGraph) -> None:
    system = numbers(10, 40)
    long, _ = read(slots, graph, system + numbers(500, 200))
    slots.give_back(long)
    other, known = read(slots, graph, system + numbers(900, 10))
    slots.give_back(other)
    assert other != long
    assert known == 40
    assert read(slots, graph, [*system, *numbers(500, 200), 7, 8]) == (long, 240)


def test_the_row_that_waited_longest_is_given_up(slots: Slots, graph: SlotGraph) -> None:
    for seed in range(3):
        slots.give_back(read(slots, graph, numbers(1000 * seed, 30))[0])
    read(slots, graph, [*numbers(1000, 30), 1, 2])
    place, known = read(slots, graph, numbers(5000, 30))
    assert (place, known) == (0, 0)
    assert slots.has_free


def test_little_in_common_is_not_worth_a_row(slots: Slots, graph: SlotGraph) -> None:
    place, _ = read(slots, graph, numbers(10, 100))
    slots.give_back(place)
    other, known = read(slots, graph, numbers(10, 14) + numbers(800, 30))
    assert known == 0
    assert other != place


def test_nothing_is_used_again_where_that_is_switched_off(slots: Slots, graph: SlotGraph) -> None:
    prompt = numbers(10, 60)
    slots.give_back(read(slots, graph, prompt)[0])
    assert read(slots, graph, prompt, reuse=False)[1] == 0
