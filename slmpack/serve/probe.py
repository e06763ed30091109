"""Probe: what a package's graph does alike alone and beside others, tried at every start.

Two answers must not depend on each other, nor on the parts a prompt is read in. Whether they do is a matter of kernels:
4-bit ones of onnxruntime 1.31.1 compute each row by itself, 8-bit ones take rows in pairs and round otherwise.
"""

from dataclasses import dataclass

import numpy as np

from slmpack.serve.slot_graph import SlotGraph

TOKENS = 48  # of the prompt that is tried; a few are enough, since a kernel is chosen by the number of rows
STEPS = 2


@dataclass(frozen=True)
class Exactness:
    """What gives bit-equal logits.

    Attributes:
        parts: a prompt read in parts of an even number of tokens.
        together: a step of several rows.
    """

    parts: bool
    together: bool


def probe(graph: SlotGraph) -> Exactness:
    """Compare a prompt in one piece with one in parts, and a row alone with three; all slots are empty then."""
    prompt = np.random.default_rng(0).integers(0, graph.shape.vocabulary, min(TOKENS, graph.context - STEPS)).tolist()
    whole = graph.advance(0, prompt).copy()
    half = len(prompt) // 4 * 2
    graph.advance(graph.slots - 1, prompt[:half])
    parts = np.array_equal(graph.advance(graph.slots - 1, prompt[half:]), whole)
    rows = range(min(3, graph.slots))
    for row in rows[1:]:
        graph.copy(0, row, len(prompt))
    together = True
    token = int(whole.argmax())
    for _ in range(STEPS):
        alone = graph.step({0: token})[0].copy()
        graph.cut(0, int(graph.lengths[0]) - 1)
        found = graph.step(dict.fromkeys(rows, token))
        together = together and all(np.array_equal(logits, alone) for logits in found.values())
        token = int(alone.argmax())
    for slot in range(graph.slots):
        graph.cut(slot, 0)
    return Exactness(parts=parts, together=together)
