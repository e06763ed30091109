"""Small random checkpoints of families that the ONNX Runtime GenAI builder does not know, with a tokenizer of ours."""

import shutil
from pathlib import Path
from typing import Any

from checkpoints import write_random
from small_tokenizers import CHATML, LLAMA3, byte_level, split, token_id, write_source

from slmpack.machine.store import lock
from slmpack.records import Snapshot
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

CONTENT = 1  # another number writes the checkpoints anew
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 704  # rounded up from what the tokenizer has
CONTEXT = 256

_HEADS: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_SHORT: dict[str, Any] = {"n_layer": 3, "n_head": 4}
# Name to the class's name in transformers, without `Config`, and its arguments.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {**_SHORT, "n_embd": 64, "n_positions": CONTEXT}),
    "gpt-neox": ("GPTNeoX", {
        **_HEADS, "intermediate_size": 128, "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5},
    }),
    "opt": ("OPT", {**_HEADS, "word_embed_proj_dim": 64, "ffn_dim": 128, "max_position_embeddings": CONTEXT}),
    "opt-350m": ("OPT", {
        **_HEADS, "word_embed_proj_dim": 32, "ffn_dim": 128, "max_position_embeddings": CONTEXT,
        "do_layer_norm_before": False,
    }),
    "bloom": ("Bloom", {**_SHORT, "hidden_size": 64, "seq_length": CONTEXT}),
    "stablelm": ("StableLm", {
        **_HEADS, "intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5},
    }),
    "falcon": ("Falcon", {
        **_HEADS, "multi_query": True, "new_decoder_architecture": False, "alibi": False,
        "max_position_embeddings": CONTEXT,
    }),
    "falcon-rw": ("Falcon", {
        **_HEADS, "multi_query": False, "new_decoder_architecture": False, "alibi": True, "parallel_attn": False,
        "bias": True, "max_position_embeddings": CONTEXT,
    }),
    "falcon-11b": ("Falcon", {
        **_HEADS, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False,
        "max_position_embeddings": CONTEXT,
    }),
    "mpt": ("Mpt", {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": CONTEXT}),
}  # fmt: skip


def write_family(folder: Path, family: str, **changes: Any) -> Any:
    """Write a checkpoint in bfloat16, and return its model in float32.

    Args:
        family: one of `FAMILIES`, or the name of another class.
        changes: to the configuration.
    """
    name, config = FAMILIES.get(family, (family, {}))
    rules = byte_level(split(LLAMA3), specials=SPECIALS)
    end, begin = SPECIALS[2], SPECIALS[0]
    write_source(folder, rules, CHATML, {"bos_token": begin, "eos_token": end}, (end,), "PreTrainedTokenizerFast")
    ids = {"bos_token_id": token_id(rules, begin), "eos_token_id": token_id(rules, end), "pad_token_id": 0}
    return write_random(folder, name, {"vocab_size": VOCABULARY, **ids, **config, **changes})


def write_unknown(folder: Path) -> Any:
    """Write a checkpoint of an architecture that neither the builder nor optimum knows: Starcoder 2."""
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    return write_family(folder, "Starcoder2", **sizes)


def family_snapshot(family: str, workspace: Path) -> Snapshot:
    """Return the snapshot of a family's checkpoint, which is kept in the workspace, since its weights are linked to."""
    folder = workspace / "checkpoints" / f"exported-{CONTENT}" / family
    with lock(workspace, f"exported-{family}"):
        if not (folder / "model.safetensors").exists():
            shutil.rmtree(folder, ignore_errors=True)
            write_family(folder, family)
    return fetch_snapshot(resolve_source(str(folder)), workspace)
