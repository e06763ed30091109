"""Which families work: the rows, small checkpoints of each, and the table in docs/targets.md."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exported_checkpoints import write_family
from pydantic import Field
from small_tokenizers import (
    CHATML,
    LLAMA3,
    LLAMA3_CHAT,
    PHI3_CHAT,
    QWEN2,
    Rules,
    byte_level,
    sentencepiece,
    split,
    write_source,
)

from slmpack.machine.json_file import read_json
from slmpack.records import Record

BEGIN, END = "<!-- families: written by tests/end_to_end/test_families.py -->", "<!-- families end -->"
VOCABULARY = 1024  # more than any tokenizer here has
WINDOW = 24  # shorter than the longer prompt

# ---------------------------------------------------------------------------------------------- tokenizers

LLAMA3_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PHI3_SPECIALS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
GEMMA_SPECIALS = ("<bos>", "<start_of_turn>", "<end_of_turn>")
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' "
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def llama3_tokenizer(folder: Path) -> Path:
    rules = byte_level(split(LLAMA3), specials=LLAMA3_SPECIALS)
    rules["model"]["ignore_merges"] = True
    begin, *_, end = LLAMA3_SPECIALS
    return _written(folder, rules, LLAMA3_CHAT, begin, end)


def qwen_tokenizer(folder: Path) -> Path:
    rules = byte_level(split(QWEN2), specials=CHATML_SPECIALS) | {"normalizer": {"type": "NFC"}}
    return _written(folder, rules, CHATML, None, "<|im_end|>")


def gpt2_tokenizer(folder: Path) -> Path:
    rules = byte_level(specials=CHATML_SPECIALS, own_expression=True)
    return _written(folder, rules, CHATML, "<|endoftext|>", "<|im_end|>")


def phi3_tokenizer(folder: Path) -> Path:
    return _written(folder, sentencepiece(PHI3_SPECIALS), PHI3_CHAT, "<s>", "<|end|>")


def gemma_tokenizer(folder: Path) -> Path:
    """Write one without a space before the first word, which Gemma's has not."""
    space, mark = {"String": " "}, {"String": "▁"}
    replaced = {"type": "Replace", "pattern": mark, "content": " "}
    rules = sentencepiece(GEMMA_SPECIALS, strips_right=False)
    rules["normalizer"] = {"type": "Replace", "pattern": space, "content": "▁"}
    rules["decoder"] = {"type": "Sequence", "decoders": [replaced, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return _written(folder, rules, GEMMA_CHAT, "<bos>", "<end_of_turn>")


def _written(folder: Path, rules: Rules, template: str, begin: str | None, end: str) -> Path:
    named = {"eos_token": end} | ({"bos_token": begin} if begin else {})
    return write_source(folder, rules, template, named, (end,), "PreTrainedTokenizerFast")


TOKENIZERS = {
    "llama3": llama3_tokenizer,
    "qwen": qwen_tokenizer,
    "gpt2": gpt2_tokenizer,
    "phi3": phi3_tokenizer,
    "gemma": gemma_tokenizer,
}

# ---------------------------------------------------------------------------------------------- the builder's


class Family(Record):
    """One row that the ONNX Runtime GenAI builder makes.

    Attributes:
        config_class: its name in transformers, without `Config`.
        config: what differs from `PLAIN`.
        tokenizer: which of `TOKENIZERS`.
        seed: of the weights; another one where two tokens would be as likely as each other.
    """

    config_class: str
    config: dict[str, Any] = Field(default={})
    tokenizer: str
    seed: int = 0


PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip
FULL: dict[str, Any] = {"num_key_value_heads": 4}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
_FACTORS = {"short_factor": [1 + i / 8 for i in range(8)], "long_factor": [1.0 + i for i in range(8)]}
_PHI = {"hidden_size": 128, "partial_rotary_factor": 0.5}  # half of a head of 32: the runtime takes whole eighths
_NO_POSITIONS = {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}
_GEMMA3 = {"head_dim": 16, "num_hidden_layers": 6, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}


def _positions(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


_LONG = _positions("longrope", original_max_position_embeddings=128, **_FACTORS)
_LLAMA3 = _positions(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
_YARN = _positions("yarn", factor=4.0, original_max_position_embeddings=64)
_LINEAR = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
}

FAMILIES: dict[str, Family] = {
    "Phi-3": Family(
        config_class="Phi3", tokenizer="phi3",
        config={**FULL, "sliding_window": WINDOW, "original_max_position_embeddings": 256},
    ),
    "Phi-3 with LongRoPE": Family(
        config_class="Phi3", tokenizer="phi3",
        config={**FULL, **_LONG, "sliding_window": 1024, "original_max_position_embeddings": 128},
    ),
    "Phi": Family(config_class="Phi", tokenizer="gpt2", config={**FULL, **_PHI}),
    "Llama": Family(config_class="Llama", tokenizer="llama3", config={"attention_bias": True, "mlp_bias": True}),
    "Llama 3.1 and later": Family(config_class="Llama", tokenizer="llama3", config={**TIED, **_LLAMA3}),
    "Mistral": Family(config_class="Mistral", tokenizer="phi3", config={"head_dim": 32, "sliding_window": None}),
    "Mistral with a sliding window": Family(
        config_class="Mistral", tokenizer="phi3", config={"sliding_window": WINDOW}
    ),
    "Qwen2, Qwen2.5": Family(config_class="Qwen2", tokenizer="qwen", config=TIED),
    "Qwen3": Family(config_class="Qwen3", tokenizer="qwen", config={"head_dim": 32}),
    "Qwen3 with YaRN": Family(config_class="Qwen3", tokenizer="qwen", config={**_YARN, "head_dim": 64}),
    "Gemma": Family(config_class="Gemma", tokenizer="gemma", config={**TIED, "head_dim": 16, "num_key_value_heads": 1}),
    "Gemma 2": Family(
        config_class="Gemma2", tokenizer="gemma",
        config={**TIED, "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    ),
    "Gemma 3": Family(config_class="Gemma3Text", tokenizer="gemma", config={**TIED, **_GEMMA3, **_LINEAR}),
    "Granite": Family(
        config_class="Granite", tokenizer="gpt2", seed=1,
        config={
            "embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.5,
            "logits_scaling": 8.0,
        },
    ),
    "Granite 4, dense": Family(
        config_class="GraniteMoeHybrid", tokenizer="gpt2",
        config={
            "shared_intermediate_size": 128, "num_local_experts": 0, "layer_types": ["attention", "attention"],
            "position_embedding_type": "rope",
        },
    ),
    "OLMo": Family(config_class="Olmo", tokenizer="gpt2", seed=1),
    "OLMo with clip_qkv": Family(config_class="Olmo", tokenizer="gpt2", config={"clip_qkv": 1.0}),
    "SmolLM3": Family(config_class="SmolLM3", tokenizer="llama3", config={**TIED, **_NO_POSITIONS}),
    "Nemotron": Family(config_class="Nemotron", tokenizer="gpt2", config={"head_dim": 32}),
    "Ernie 4.5": Family(config_class="Ernie4_5", tokenizer="phi3", config={**TIED, "head_dim": 16}),
    "HunYuan, dense": Family(config_class="HunYuanDenseV1", tokenizer="gpt2", config={"head_dim": 16}),
    "LFM2": Family(
        config_class="Lfm2", tokenizer="gpt2",
        config={"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
}  # fmt: skip

# What optimum makes, and which of `exported_checkpoints.FAMILIES` stands for it.
EXPORTED: dict[str, str] = {
    "GPT-2": "gpt2",
    "GPT-NeoX": "gpt-neox",
    "OPT": "opt",
    "Bloom": "bloom",
    "StableLM": "stablelm",
    "Falcon": "falcon",
    "MPT": "mpt",
}


def write_checkpoint(family: Family, folder: Path) -> None:
    """Write a random checkpoint in bfloat16.

    The weights keep the size of what goes through them, so that no token is likely by far and answers do not repeat.
    """
    import torch
    import transformers

    end = _end_token(TOKENIZERS[family.tokenizer](folder))
    asked = PLAIN | family.config | {"bos_token_id": 1, "eos_token_id": end, "pad_token_id": end}
    if "rope_parameters" in asked or family.config_class == "Gemma3Text":
        del asked["rope_theta"]
    config = getattr(transformers, f"{family.config_class}Config")(**asked)
    torch.manual_seed(family.seed)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for name, weights in model.named_parameters():
        weights.data = _random(name, weights, tied=config.tie_word_embeddings)
    model.generation_config.eos_token_id = end
    model.to(torch.bfloat16).save_pretrained(folder)


def write_exported(name: str, folder: Path) -> None:
    """Write the checkpoint that stands for one of `EXPORTED`, with weights as above."""
    import torch

    model = write_family(folder, EXPORTED[name])
    torch.manual_seed(1)
    for path, weights in model.named_parameters():
        weights.data = _random(path, weights, tied=model.config.tie_word_embeddings, gain=4)
    model.to(torch.bfloat16).save_pretrained(folder)


def _end_token(folder: Path) -> int:
    (end,) = read_json(folder / "generation_config.json")["eos_token_id"]
    return int(end)


def _random(name: str, weights: Any, *, tied: bool, gain: float = 2) -> Any:
    import torch

    drawn = torch.randn(weights.shape)
    if weights.dim() == 1:
        return 0.2 * drawn + (0.0 if "bias" in name else 1.0)
    if any(part in name for part in ("embed", "wte", "wpe")):
        return drawn * (0.1 if tied else 0.5)  # a large tied one would answer with the token that it read
    return drawn * gain / weights.shape[-1] ** 0.5


# ---------------------------------------------------------------------------------------------- the table

COLUMNS = ("float32", "cpu-int4", "cuda-int4, run by the CPU provider", "cuda-fp16, run by the CPU provider")
# What was found, and how the table says it.
REASONS: tuple[tuple[str, str], ...] = (
    (r"q_norm_weight / k_norm_weight inputs are not supported", "no: it has no fused norms of queries and keys"),
)


class Found(Record):
    """What became of one family: "" where it is as it should be, else what was wrong; None: not offered."""

    float32: str | None
    cpu_int4: str | None
    cuda_int4: str | None
    cuda_fp16: str | None

    @property
    def cells(self) -> tuple[str, ...]:
        return tuple(_cell(value) for value in self.model_dump().values())


def _cell(found: str | None) -> str:
    if found is None:
        return "-"
    if not found:
        return "yes"
    return next((text for pattern, text in REASONS if re.search(pattern, found)), f"no: {found}")


def table(found: Mapping[str, Found]) -> str:
    """Return the table in Markdown."""
    heads = ("family", "built by", *COLUMNS)
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, each in found.items():
        by = "ONNX Runtime GenAI" if name in FAMILIES else "optimum"
        lines.append(_line((name, by, *each.cells)))
    return "\n".join(lines)


def _line(cells: "tuple[str, ...] | list[str]") -> str:
    return f"| {' | '.join(cells)} |"


def table_in(document: str) -> str:
    """Return what stands between the two comments."""
    return document.partition(BEGIN)[2].partition(END)[0].strip()


def with_table(document: str, lines: str) -> str:
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n{lines}\n{END}{rest.partition(END)[2]}"
