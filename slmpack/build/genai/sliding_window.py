"""Sliding-window attention where the builder has the window in the KV cache: it belongs into attention alone.

The builder writes `sliding_window` into genai_config.json, and the runtime then cuts the cache to it. That fails in
two ways:

* Phi-3, Mistral: no layers are named there, and `local_window_size` of every GroupQueryAttention stays -1. The cache
  ends near the window, and any sequence past it (2,047 tokens for Phi-3-mini, whose context is 4,096) fails.
* Gemma 2 and 3: the layers are named, and their nodes have `sliding_window_cache`. Then the cache must be as long as
  the window: any request whose `max_length` is shorter (4,096 tokens for Gemma 2) fails, and so would nearly all.

What transformers computes is a whole cache, and attention that looks back `sliding_window` positions.

Source: found by experiment with onnxruntime-genai 0.18.0. Phi-3 in float32 over 3,000 tokens: with `local_window_size`
equal to the config's `sliding_window` the logits equal those of transformers within 1e-6; with one more or less, or
without a window, they differ by 0.01 to 0.1 behind it. Gemma 2: "KV cache capacity (16) must be at least
local_window_size (24)"; with a whole cache the logits are the same over 84 tokens and a window of 24.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmpack.machine.json_file import write_json

CACHE = "sliding_window_cache"


def move_window_into_attention(package: Path) -> None:
    """Mend a freshly built folder in place; one that needs nothing is left as it is."""
    import onnx

    config = json.loads((package / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    if "sliding_window" not in decoder:
        return
    graph = onnx.load(package / decoder["filename"], load_external_data=False)
    attentions = [node for node in graph.graph.node if node.op_type == "GroupQueryAttention"]
    named = decoder["sliding_window"].get("layers") != []
    moved = (
        _keep_whole_cache(attentions) if named else _set_window(attentions, decoder["sliding_window"]["window_size"])
    )
    if not moved:
        return
    onnx.save(graph, package / decoder["filename"])
    del decoder["sliding_window"]
    write_json(package / "genai_config.json", config)


def _set_window(attentions: Sequence[Any], size: int) -> bool:
    """Give all layers the window; False, and nothing is changed, if one of them has one already."""
    windows = [each for node in attentions for each in node.attribute if each.name == "local_window_size"]
    if not windows or any(window.i != -1 for window in windows):
        return False
    for window in windows:
        window.i = size
    return True


def _keep_whole_cache(attentions: Sequence[Any]) -> bool:
    """Take the cut cache from the layers that have it; they have the window. False if none has."""
    cut = [(node, each) for node in attentions for each in node.attribute if each.name == CACHE]
    for node, attribute in cut:
        node.attribute.remove(attribute)
    return bool(cut)
