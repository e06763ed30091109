"""Which graph a package is served by: slots of plain ONNX Runtime, or the runtime's generators in turn."""

import json
from pathlib import Path
from typing import Any

from slmpack.records import Record
from slmpack.serve.generator_graph import open_generators
from slmpack.serve.probe import probe
from slmpack.serve.scheduler import PART, Graph
from slmpack.serve.slot_graph import SlotGraph

WHOLE = 1 << 30  # a prompt is read in one part


class EnginePlan(Record):
    """What an engine process is to open.

    Attributes:
        folder: the package.
        slots: answers at a time.
        context: tokens of one prompt and its answer at most.
        provider: `cpu` or `cuda`.
    """

    folder: Path
    slots: int
    context: int
    threads: int
    provider: str
    end_tokens: frozenset[int]
    vocabulary: int


class OpenGraph(Record):
    """What was opened, and how it may be used.

    Attributes:
        kind: `slots` or `generators`.
        together: several answers take a step together.
        reuse: the beginning of earlier prompts is used again.
        part: tokens of a prompt that are read between two steps.
    """

    kind: str
    together: bool
    reuse: bool
    part: int


def open_graph(plan: EnginePlan) -> tuple[Graph, OpenGraph]:
    """Load the package's model."""
    if not has_slots(plan.folder, plan.provider):
        generators = open_generators(plan.folder, plan.slots, plan.threads, plan.provider)
        return generators, OpenGraph(kind="generators", together=False, reuse=False, part=WHOLE)
    graph = SlotGraph(plan.folder, plan.slots, plan.context, plan.threads)
    exact = probe(graph)
    part = PART if exact.parts else WHOLE
    return graph, OpenGraph(kind="slots", together=exact.together, reuse=exact.parts, part=part)


def has_slots(folder: Path, provider: str) -> bool:
    """Say whether the graph writes keys and values into the buffer it reads, with a length for each row.

    A graph with `If` chooses one way for all rows, by the longest: models with two tables of rotary angles do.
    """
    config = json.loads((folder / "genai_config.json").read_bytes())
    decoder = config["model"]["decoder"]
    inputs = {"input_ids", "attention_mask", "past_key_names", "past_value_names"}
    if provider != "cpu" or set(decoder["inputs"]) != inputs:
        return False
    if not config["search"].get("past_present_share_buffer"):
        return False
    return _attends_by_rows(folder / decoder["filename"])


def _attends_by_rows(graph: Path) -> bool:
    import onnx

    model: Any = onnx.load(graph, load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    floats = {onnx.TensorProto.FLOAT}
    types = {each.type.tensor_type.elem_type for each in model.graph.output}
    return "GroupQueryAttention" in kinds and "If" not in kinds and types == floats
