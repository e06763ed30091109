"""Sliding-window attention where the builder puts the window on the cache alone (Phi-3, Mistral).

The builder writes `sliding_window` with no layers into genai_config.json and leaves `local_window_size` of every
GroupQueryAttention at -1. The runtime then ends the KV cache near the window, and any sequence past it (2,047 tokens
for Phi-3-mini, whose context is 4,096) fails. The other way round is what transformers computes: a whole cache, and
attention that looks back `sliding_window` positions.

Source: found by experiment with onnxruntime-genai 0.18.0 on a Phi-3 in float32 over 3,000 tokens: with
`local_window_size` equal to the config's `sliding_window` the logits equal those of transformers within 1e-6; with one
more or less, or without a window, they differ by 0.01 to 0.1 behind it.
"""

import json
from pathlib import Path

from slmpack.json_file import write_json


def move_window_into_attention(package: Path) -> None:
    """Mend a freshly built folder in place; one that needs nothing is left as it is."""
    import onnx

    config = json.loads((package / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    if decoder.get("sliding_window", {}).get("layers") != []:  # none, or layers that the builder knew
        return
    graph = onnx.load(package / decoder["filename"], load_external_data=False)
    windows = [
        attribute
        for node in graph.graph.node
        if node.op_type == "GroupQueryAttention"
        for attribute in node.attribute
        if attribute.name == "local_window_size"
    ]
    if not windows or any(window.i != -1 for window in windows):
        return
    for window in windows:
        window.i = decoder["sliding_window"]["window_size"]
    onnx.save(graph, package / decoder["filename"])
    del decoder["sliding_window"]
    write_json(package / "genai_config.json", config)
