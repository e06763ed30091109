"""A table of slots over a package's own graph: each row answers as if it were alone, and as the runtime does."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og
import pytest

from slmpack.build.build import build_package
from slmpack.records import Package, Recipe, Snapshot, Target
from slmpack.serve.open_graph import has_slots
from slmpack.serve.probe import Exactness, probe
from slmpack.serve.slot_graph import GraphShape, SlotGraph

CONTEXT = 256


@pytest.fixture(scope="module")
def graph(small_package: Package) -> SlotGraph:
    return SlotGraph(small_package.path, 4, CONTEXT, threads=1)


@pytest.fixture(autouse=True)
def empty_slots(graph: SlotGraph) -> None:
    for slot in range(graph.slots):
        graph.cut(slot, 0)


def prompt(graph: SlotGraph, length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, graph.shape.vocabulary, length)]


def alone(
    graph: SlotGraph, ids: list[int], steps: int, slot: int = 0
) -> tuple[list[int], list[npt.NDArray[np.float32]]]:
    """Return the greedy tokens of one prompt and the logits that each was chosen by."""
    graph.cut(slot, 0)
    logits = [graph.advance(slot, ids).copy()]
    tokens = [int(logits[0].argmax())]
    while len(tokens) < steps:
        logits.append(graph.step({slot: tokens[-1]})[slot].copy())
        tokens.append(int(logits[-1].argmax()))
    return tokens, logits


def test_a_row_has_the_logits_of_the_runtimes_own_generator(graph: SlotGraph, small_package: Package) -> None:
    ids = prompt(graph, 33)
    tokens, logits = alone(graph, ids, 12)
    parameters = og.GeneratorParams(model := og.Model(str(small_package.path)))
    parameters.set_search_options(max_length=64)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(ids, np.int32))
    for token, found in zip(tokens, logits, strict=True):
        np.testing.assert_array_equal(np.array(generator.get_logits())[0, -1], found)
        generator.append_tokens(np.array([token], np.int32))


def test_rows_of_different_lengths_step_together_as_they_do_alone(graph: SlotGraph) -> None:
    prompts = [prompt(graph, length, seed) for seed, length in enumerate((5, 40, 17, 100))]
    expected = [alone(graph, ids, 10) for ids in prompts]
    for slot, ids in enumerate(prompts):
        graph.cut(slot, 0)
        np.testing.assert_array_equal(graph.advance(slot, ids), expected[slot][1][0])
    for place in range(1, 10):
        found = graph.step({slot: tokens[place - 1] for slot, (tokens, _) in enumerate(expected)})
        for slot, (_, logits) in enumerate(expected):
            np.testing.assert_array_equal(found[slot], logits[place])


def test_a_row_between_two_that_step_keeps_what_it_holds(graph: SlotGraph) -> None:
    tokens, logits = alone(graph, prompt(graph, 30), 6, slot=1)
    graph.cut(1, 0)
    graph.advance(1, prompt(graph, 30))
    for slot in (0, 2):
        graph.advance(slot, prompt(graph, 9, seed=slot))
    for token in (3, 4, 5):
        graph.step({0: token, 2: token})
    np.testing.assert_array_equal(graph.step({1: tokens[0]})[1], logits[1])


@pytest.mark.parametrize("size", [2, 4, 16, 32])
def test_a_prompt_in_parts_is_the_prompt_in_one(graph: SlotGraph, size: int) -> None:
    ids = prompt(graph, 70)
    whole = graph.advance(0, ids).copy()
    for start in range(0, len(ids), size):
        last = graph.advance(1, ids[start : start + size])
    np.testing.assert_array_equal(last, whole)


def test_what_was_cut_off_is_forgotten(graph: SlotGraph) -> None:
    ids = prompt(graph, 40)
    whole = graph.advance(0, ids).copy()
    graph.advance(0, prompt(graph, 20, seed=1))
    graph.cut(0, 20)
    np.testing.assert_array_equal(graph.advance(0, ids[20:]), whole)


def test_a_copy_goes_on_as_its_original_would(graph: SlotGraph) -> None:
    ids = prompt(graph, 40)
    whole = graph.advance(0, ids).copy()
    graph.copy(0, 3, 24)
    np.testing.assert_array_equal(graph.advance(3, ids[24:]), whole)


def test_a_full_row_takes_no_more(graph: SlotGraph) -> None:
    graph.advance(0, prompt(graph, CONTEXT - 1))
    with pytest.raises(ValueError, match="slot 0 holds 255 tokens of 256; 2 more do not fit"):
        graph.advance(0, [1, 2])
    graph.advance(0, [1])


def test_slots_take_memory_when_they_are_written_to(small_package: Package) -> None:
    """8 rows of 100,000 tokens would be 1.6 GB."""
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    large = SlotGraph(small_package.path, 8, 100_000, threads=1)
    large.advance(7, [1, 2, 3, 4])
    assert 8 * 100_000 * GraphShape(small_package.path).bytes_per_token > 1.5e9
    assert process.memory_info().rss - before < 2e8


def test_four_bits_answer_alike_alone_and_together(graph: SlotGraph) -> None:
    assert probe(graph) == Exactness(parts=True, together=True)
    assert not graph.lengths.any()


def test_eight_bits_step_alone_since_two_rows_go_through_another_kernel(
    small_snapshot: Snapshot, workspace: Path
) -> None:
    package = build_package(small_snapshot, Target.CPU_INT8, Recipe.SMALL, workspace)
    graph = SlotGraph(package.path, 4, CONTEXT, threads=1)
    assert probe(graph) == Exactness(parts=True, together=False)
    ids = prompt(graph, 41)
    whole = graph.advance(0, ids).copy()
    graph.advance(1, ids[:24])
    np.testing.assert_array_equal(graph.advance(1, ids[24:]), whole)


def test_a_graph_of_the_builders_has_slots_on_a_cpu_only(small_package: Package) -> None:
    assert has_slots(small_package.path, "cpu")
    assert not has_slots(small_package.path, "cuda")
