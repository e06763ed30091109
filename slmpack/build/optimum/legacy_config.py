"""The checkpoint as the exporter's transformers (4.57) reads it: a translated config.json beside links to its weights.

transformers 5 writes some things of config.json under names that 4.57 does not read, and 4.57 then takes a default
without a word. What is translated:

    rope_parameters {rope_theta, partial_rotary_factor}    rope_theta, partial_rotary_factor; of gpt_neox
                                                           rotary_emb_base, rotary_pct
    rope_parameters of another type than `default`         rope_scaling
    dtype                                                  torch_dtype

Any other difference in reading is found when the graph's logits are compared with the source's.

Source: the configuration classes of transformers 4.57.6 and 5.22.2, and `RotaryEmbeddingConfigMixin` of the latter.
"""

from pathlib import Path
from typing import Any

from slmpack.checkpoint.headers import INDEX, is_weights
from slmpack.machine.json_file import read_json, write_json

CONFIG = "config.json"
LEFT_OUT = ("rope_parameters", "dtype", "auto_map")  # the last names code of the checkpoint's own
# What a model type calls the rotary base and the rotary share of a head in 4.57; others call them as transformers 5.
OWN_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


def write_for_exporter(checkpoint: Path, into: Path) -> None:
    """Fill the empty folder `into`; the checkpoint's weights are linked to, its tokenizer is left out."""
    for path in checkpoint.iterdir():
        if is_weights(path.name) or path.name == INDEX:
            (into / path.name).symlink_to(path.resolve())
    write_json(into / CONFIG, translated(read_json(checkpoint / CONFIG)))


def translated(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json of transformers 5 as 4.57 reads it; an older one stays as it is."""
    legacy = {name: value for name, value in config.items() if name not in LEFT_OUT}
    if "dtype" in config:
        legacy.setdefault("torch_dtype", config["dtype"])
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        legacy |= _rope(rope, OWN_NAMES.get(str(config.get("model_type")), {}))
    return legacy


def _rope(rope: dict[str, Any], own: dict[str, str]) -> dict[str, Any]:
    named = {own.get(name, name): rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if rope.get("rope_type", "default") == "default":
        return named
    return named | {"rope_scaling": {name: value for name, value in rope.items() if name != "rope_theta"}}
