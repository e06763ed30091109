"""Checkpoints with Phi-3-mini's shape and random weights: they say nothing of quality, and all of time and memory.

Source of the sizes: config.json of microsoft/Phi-3-mini-4k-instruct. The vocabulary is that of the tokenizer that is
copied, so that parity can be proved; with its 49,152 rows 32 layers have 3.93 billion parameters, 7.85 GB.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Phi3Config

HIDDEN, INNER, HEADS, VOCABULARY = 3072, 8192, 32, 49152
LAYERS_A_SHARD = 16
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_phi3_shape(folder: Path, layers: int, tokenizer: Path) -> None:
    """Write a sharded checkpoint in bfloat16, one shard in memory at a time."""
    folder.mkdir(parents=True)
    config = Phi3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=4096,
        original_max_position_embeddings=4096, sliding_window=2047, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    config.architectures, config.dtype = ["Phi3ForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    generator = torch.Generator().manual_seed(0)
    shards = list(_shards(layers))
    index: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({key: _tensor(shape, generator) for key, shape in shapes.items()}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _shards(layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    yield {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN),
           "model.norm.weight": (HIDDEN,)}  # fmt: skip
    for first in range(0, layers, LAYERS_A_SHARD):
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(first, min(first + LAYERS_A_SHARD, layers)):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _LAYER.items()}
        yield shapes


_LAYER = {
    "self_attn.qkv_proj.weight": (3 * HIDDEN, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.gate_up_proj.weight": (2 * INNER, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INNER),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
}


def _tensor(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
