"""Families beside the builder's: taken as transformers saves them, and as they lie on the Hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import CHATML, QWEN2, byte_level, split, write_source

from slmpack.checkpoint.inspect import inspect_checkpoint
from slmpack.checkpoint.shapes import ShapeRequest, compare_shapes

pytestmark = pytest.mark.slow  # torch and transformers are imported

ROWS = 704  # for tokens
WIDE: dict[str, Any] = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# Class, configuration, and the context length that it says.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 2}, 1024),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", WIDE | {"intermediate_size": 48}, 2048),
    "OPTForCausalLM": ("OPTConfig", WIDE | {"ffn_dim": 48, "word_embed_proj_dim": 32}, 2048),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": ROWS, "hidden_size": 32, "n_layer": 2, "n_head": 2}, 2048),
    "StableLmForCausalLM": ("StableLmConfig", WIDE | {"intermediate_size": 48, "num_key_value_heads": 2}, 4096),
    "FalconForCausalLM": ("FalconConfig", WIDE, 2048),
    "MptForCausalLM": ("MptConfig", {"vocab_size": ROWS, "d_model": 32, "n_layers": 2, "n_heads": 2}, 2048),
}

Tensors = dict[str, Any]


def write_family(folder: Path, name: str) -> Path:
    import torch
    import transformers

    rules = byte_level(split(QWEN2), specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    write_source(folder, rules, CHATML, {"eos_token": "<|im_end|>"}, ("<|im_end|>",), "PreTrainedTokenizerFast")
    kind, settings, _ = FAMILIES[name]
    torch.manual_seed(0)
    model: Any = getattr(transformers, name)(getattr(transformers, kind)(**settings))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_takes_what_transformers_saves(tmp_path: Path, name: str) -> None:
    folder = write_family(tmp_path / "model", name)
    facts = inspect_checkpoint(folder)
    assert (facts.architecture, facts.layers, facts.context_length) == (name, 2, FAMILIES[name][2])
    compare_shapes(ShapeRequest(folder=folder))


# ---------------------------------------------------------------------------------------------- as they lie on the Hub


def gpt2(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """openai-community/gpt2: no prefix, and the causal mask of every layer."""
    import torch

    config["n_ctx"] = 1024
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(2)}
    return masks | {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def gpt_neox(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """EleutherAI/pythia: masks and frequencies beside the weights, and the rotation's settings of their own."""
    import torch

    config.pop("rope_parameters")
    config |= {"rotary_pct": 0.25, "rotary_emb_base": 10000}
    for layer in range(2):
        stem = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{stem}.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        tensors[f"{stem}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{stem}.rotary_emb.inv_freq"] = torch.ones(2)
    return tensors


def opt(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """facebook/opt: the names that the decoder alone has, and the head written out."""
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
    config.pop("tie_word_embeddings")
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def bloom(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """bigscience/bloom: no prefix, `n_embed`, and the length that it was trained with."""
    config["n_embed"] = config.pop("hidden_size")
    config |= {"seq_length": 1024, "offset_alibi": 100, "num_attention_heads": config.pop("n_head")}
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def stablelm(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """stabilityai/stablelm-2: the rotation's settings of their own, and frequencies beside the weights."""
    import torch

    config.pop("rope_parameters")
    config |= {"rope_theta": 10000, "partial_rotary_factor": 0.25, "norm_eps": 1e-5, "rotary_scaling_factor": 1.0}
    return tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}


def falcon(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """tiiuae/falcon: no context length, code of its own, and the head written out."""
    config.pop("max_position_embeddings")
    config.pop("rope_parameters", None)
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"}
    return tensors | {"lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}


def mpt(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """mosaicml/mpt: its own code's class, and settings of that code."""
    config |= {"architectures": ["MPTForCausalLM"], "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"}}
    config |= {
        "init_device": "cpu",
        "tokenizer_name": "EleutherAI/gpt-neox-20b",
        "norm_type": "low_precision_layernorm",
    }
    return tensors


OLDER: dict[str, tuple[Callable[[dict[str, Any], Tensors], Tensors], int]] = {
    "GPT2LMHeadModel": (gpt2, 1024),
    "GPTNeoXForCausalLM": (gpt_neox, 2048),
    "OPTForCausalLM": (opt, 2048),
    "BloomForCausalLM": (bloom, 1024),
    "StableLmForCausalLM": (stablelm, 4096),
    "FalconForCausalLM": (falcon, 2048),
    "MptForCausalLM": (mpt, 2048),
}


@pytest.mark.parametrize("name", OLDER)
def test_takes_what_lies_on_the_hub_and_loads_the_same_weights(tmp_path: Path, name: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    folder = write_family(tmp_path / "model", name)
    ids = torch.arange(12)[None]
    saved: Any = AutoModelForCausalLM.from_pretrained(folder)
    change, context = OLDER[name]
    config = json.loads((folder / "config.json").read_text())
    tensors = change(config, load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    facts = inspect_checkpoint(folder)
    assert (facts.architecture, facts.layers, facts.context_length) == (name, 2, context)
    compare_shapes(ShapeRequest(folder=folder))
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded(ids).logits, saved(ids).logits)


def test_a_layer_that_is_not_there_is_missed_in_every_family(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from slmpack.errors import SourceError

    for name in FAMILIES:
        folder = write_family(tmp_path / name, name)
        tensors = load_file(folder / "model.safetensors")
        save_file({key: each for key, each in tensors.items() if ".1." not in key}, folder / "model.safetensors")
        with pytest.raises(SourceError, match=r"has no weights for layer 1; all 2 layers"):
            inspect_checkpoint(folder)
