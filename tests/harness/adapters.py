"""Adapters as peft saves them, on small random bases, and what they say unmerged."""

import json
from pathlib import Path
from typing import Any

from checkpoints import SMALL

IDS = list(range(1, 20))


def write_base(folder: Path, dtype: str = "float32", **changes: Any) -> Path:
    """Write a Llama of 2 layers without a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SMALL | changes))  # type: ignore[no-untyped-call]
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base: Path, named: str | None = None, rows: int | None = None, **settings: Any) -> Any:
    """Write a LoRA with random factors; return the logits that peft's own unmerged model then gives to `IDS`.

    Args:
        named: `base_model_name_or_path`; the base's path if None.
        rows: for tokens; the base's are resized to it.
        settings: of LoraConfig.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(1)
    model = _resized(base, rows)
    usual: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    config: Any = LoraConfig(**usual | settings)
    adapted: Any = get_peft_model(model, config)
    for weights in adapted.parameters():
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.1)
    adapted.save_pretrained(folder)
    edit_config(folder, base_model_name_or_path=named or str(base))
    again = PeftModel.from_pretrained(_resized(base, rows), str(folder))
    return logits(again)


def _resized(base: Path, rows: int | None) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def edit_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits(model: Any) -> Any:
    """Return float32 `[19, vocabulary]`."""
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0].float()


def logits_of_folder(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(folder, local_files_only=True))


def distance(found: Any, expected: Any) -> float:
    """Return how far logits are from others, relative to their size."""
    return float((found - expected).norm() / expected.norm())
