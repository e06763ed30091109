"""A small checkpoint of each family that the builder reads in its own way, and builds of them in one child."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from building import Case, Cases, Ended, build_all
from checkpoints import copy_tokenizer
from families import qwen_tokenizer
from places import HARNESS

from slmpack.errors import BuildError
from slmpack.machine.child import run_in_child

FAMILIES = ("phi3", "llama", "qwen2", "gemma")
VOCABULARY = 12000  # rows enough for three jobs of `data_file.write_data`


def write_tiny(folder: Path, family: str, tokenizer: Path, **changes: Any) -> Path:
    """Write a checkpoint of 2 layers in bfloat16: embeddings tied for llama, qwen2 with biases, gemma with both."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 512, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    of_family: dict[str, tuple[str, dict[str, Any]]] = {
        "phi3": ("Phi3", {"original_max_position_embeddings": 512}),
        "llama": ("Llama", {"tie_word_embeddings": True}),
        "qwen2": ("Qwen2", {}),
        "gemma": ("Gemma", {"head_dim": 32}),
    }
    name, own = of_family[family]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes | own | changes))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    model.to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of some hundred tokens: the builder copies it, and no test here writes a text."""
    return qwen_tokenizer(tmp_path_factory.mktemp("tokenizer") / "qwen")


@pytest.fixture(scope="module")
def checkpoints(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: write_tiny(folder / family, family, tokenizer) for family in FAMILIES}


def run_cases(cases: list[Case], log: Path) -> Ended:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HARNESS))  # of this child only: the others keep their fork server
        ended, _ = run_in_child(
            build_all, Cases(cases=tuple(cases)), log=log, limit_seconds=900, failure=BuildError, doing="the builds"
        )
    return ended
