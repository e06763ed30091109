"""Small checkpoints with random weights: they say nothing of quality, and everything of structure."""

import json
import shutil
from pathlib import Path
from typing import Any

from slmpack.machine.json_file import write_json

# Enough for any family: 2 layers, and heads as small as ONNX Runtime takes them.
SMALL: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
SMALL_VOCABULARY = 8192  # fewer, and greedy answers of random weights go round in circles
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_tiny_phi3(
    folder: Path, tokenizer: Path, vocabulary: int = 49152, end_of_turn: int = 2, sureness: float = 1.0
) -> None:
    """Write a Phi-3 of 2 layers and hidden size 128 in bfloat16; the tokenizer's vocabulary must fit.

    Args:
        sureness: multiplies the head's weights: the surer of its answers, the more quantising costs it.
    """
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096, original_max_position_embeddings=4096,
        sliding_window=2047, bos_token_id=1, eos_token_id=end_of_turn, pad_token_id=end_of_turn,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = Phi3ForCausalLM(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        model.lm_head.weight *= sureness
    model.to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def write_small_tokenizer(folder: Path, tokenizer: Path, vocabulary: int = SMALL_VOCABULARY) -> None:
    """Write a byte-level tokenizer of another's first tokens, its special ones and single bytes among them."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(tokenizer, folder)
    rules = json.loads((folder / "tokenizer.json").read_text())
    model = rules["model"]
    model["vocab"] = {text: index for text, index in model["vocab"].items() if index < vocabulary}
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    model["merges"] = [pair for pair in pairs if "".join(pair) in model["vocab"]]
    write_json(folder / "tokenizer.json", rules)


def write_tiny_gpt2(folder: Path, tokenizer: Path, vocabulary: int = 49152) -> None:
    """Write a GPT-2 of 2 layers: an architecture that the ONNX Runtime GenAI builder does not know."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    copy_tokenizer(tokenizer, folder)


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copy the tokenizer and the chat template of one checkpoint into another."""
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def write_mute_phi3(folder: Path, tokenizer: Path, vocabulary: int = 49152, end_of_turn: int = 2) -> None:
    """Write a tiny Phi-3 that ends its turn at once, whatever it is asked: it loads, runs, and says nothing.

    Every token is embedded as ones and no layer adds to it, so the head sees ones and only one of its rows answers.
    """
    import torch
    from transformers import Phi3ForCausalLM

    write_tiny_phi3(folder, tokenizer, vocabulary)
    model: Any = Phi3ForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "embed" in name or "norm" in name else 0.0)
        model.lm_head.weight[end_of_turn] = 1.0
    model.to(torch.bfloat16).save_pretrained(folder)


def answer_in_order(folder: Path, words: list[int]) -> None:
    """Change a checkpoint's embedding and head so that each of the tokens `words` is followed by the next of them.

    The head's row of a token is the embedding of those that it follows, and the layers change little of what that says.
    Other tokens stay likely enough for the perplexity on a text to be an ordinary number.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = torch.randn(model.model.embed_tokens.weight.shape, generator=torch.Generator().manual_seed(0))
    rows /= rows.norm(dim=1, keepdim=True)
    order = torch.tensor(words)
    followers = order[torch.arange(len(rows)) % len(order)]
    followers[order] = order.roll(-1)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight.zero_().index_add_(0, followers, 0.6 * rows)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.1
            layer.mlp.down_proj.weight *= 0.1
    model.to(torch.bfloat16).save_pretrained(folder)


def write_random(folder: Path, name: str, config: dict[str, Any]) -> Any:
    """Write a random checkpoint of family `name` in bfloat16; return its model in float32, of the same weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    own_config = getattr(transformers, f"{name}Config")(**config)
    model: Any = transformers.AutoModelForCausalLM.from_config(own_config)  # type: ignore[no-untyped-call]
    for weights in model.parameters():  # biases and norms would be zeros and ones
        torch.nn.init.normal_(weights, std=0.3)
    model.to(torch.bfloat16).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
