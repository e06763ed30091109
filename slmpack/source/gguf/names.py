"""GGUF names: what a checkpoint in Hugging Face's layout calls the matrices of a GGUF file, and how they are stored.

    blk.7.ffn_gate.weight, Q4_0 --> model.layers.7.mlp.gate_proj.weight, Q4_0

Only matrices are named: what a tensor's storage is worth knowing for is to keep its codes (see `quantise.lossless`),
and norms have none. Source: gguf/constants.py, MODEL_TENSORS, and gguf/tensor_mapping.py of ggml-org/llama.cpp.
"""

import re
from collections.abc import Iterable

from slmpack.source.gguf.header import TensorPlace

_WHOLE = {"token_embd": "model.embed_tokens", "output": "lm_head"}
_IN_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED = {"phi3": {"ffn_up": "mlp.gate_up_proj"}}


def checkpoint_name(name: str, architecture: str) -> str | None:
    """Return the checkpoint's name of a matrix of a GGUF file; None for a norm, a bias or what nobody knows."""
    match = re.fullmatch(r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>\w+)\.weight", name)
    if match is None:
        return None
    if match["layer"] is None:
        whole = _WHOLE.get(match["stem"])
        return f"{whole}.weight" if whole else None
    inner = (_IN_LAYER | _FUSED.get(architecture, {})).get(match["stem"])
    return f"model.layers.{match['layer']}.{inner}.weight" if inner else None


def matrix_storages(tensors: Iterable[TensorPlace], architecture: str) -> dict[str, str]:
    """Return how each matrix is stored, such as `Q4_0` or `F16`, by its name in the checkpoint."""
    named = ((checkpoint_name(tensor.name, architecture), tensor.storage) for tensor in tensors)
    return {name: storage for name, storage in named if name}
