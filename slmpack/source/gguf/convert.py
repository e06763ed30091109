"""GGUF files as a source: looked at cheaply, then dequantised into a Hugging Face checkpoint.

model.gguf --inspect_gguf--> GgufFacts
model.gguf --convert_gguf, in a child process--> model.safetensors, config.json, generation_config.json, tokenizer
"""

import json
from pathlib import Path
from typing import Any, cast

from slmpack import progress
from slmpack.errors import SourceError
from slmpack.machine.child import limited
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.json_file import write_json
from slmpack.records import Record
from slmpack.source.gguf.header import GgufHeader, read_header
from slmpack.source.gguf.metadata import Metadata
from slmpack.source.gguf.names import matrix_storages
from slmpack.source.gguf.reading import quicken_reading
from slmpack.source.gguf.tokenizer import read_vocabulary, write_tokenizer

# The architectures whose metadata transformers carries over whole: it converts others too, but takes rotary
# fractions, scaling or window sizes from its own defaults there, and the model answers worse without a word.
# Source: GGUF_CONFIG_MAPPING in transformers 5.22, src/transformers/integrations/ggml.py.
ARCHITECTURES = ("gemma2", "gemma3", "llama", "phi3", "qwen2", "qwen3")

# What the gguf package dequantises. Source: gguf/quants.py, the classes derived from __Quant.
QUANTISED = frozenset(
    {
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "TQ1_0",
        "TQ2_0",
        "MXFP4",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ2_S",
        "IQ3_XXS",
        "IQ3_S",
        "IQ1_S",
        "IQ1_M",
        "IQ4_NL",
        "IQ4_XS",
    }
)
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"F32": 4, "F16": 2, "BF16": 2}

ORIGINAL = "use the model's original checkpoint"

# What machines and versions leave in config.json and a checkpoint does not need.
BUILD_NOISE = ("_name_or_path", "_model_name_or_path", "transformers_version", "quantization_config", "unk_token_id")


class GgufFacts(Record):
    """What the header of a GGUF file says of the model.

    Attributes:
        architecture: `general.architecture`, such as `llama`.
        name: `general.name`, or None.
        licence: `general.license` in the file's own words, such as `apache-2.0`, or None.
        parameters: number of weights in all tensors.
        layers: number of decoder layers.
        context_length: tokens, prompt and answer together.
        dtype: of the converted weights in safetensors' terms: F32 where the file is quantised, else what it has.
        checkpoint_bytes: size of the converted weights.
        storages: how each matrix is stored, such as `Q4_0`, by its name in the checkpoint.
    """

    architecture: str
    name: str | None
    licence: str | None
    parameters: int
    layers: int
    context_length: int
    dtype: str
    checkpoint_bytes: int
    storages: dict[str, str]


class GgufConversion(Record):
    """The file to convert and the empty folder for the checkpoint."""

    path: Path
    into: Path


def inspect_gguf(path: Path) -> GgufFacts:
    """Read what a GGUF file is from its header, in a fraction of a second.

    Raises:
        SourceError: it is not a whole GGUF file, one part of several, or a model that cannot be converted faithfully.
    """
    return _facts(read_header(path))


def _facts(header: GgufHeader) -> GgufFacts:
    fields = Metadata(header.metadata)
    architecture = fields.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise fields.refuse("general.architecture", f"one of {', '.join(ARCHITECTURES)}", advice=ORIGINAL)
    _require_single_file(header, fields)
    context_length = _require_sizes(header, fields, architecture)
    _require_plain_rotation(header, fields, architecture)
    dtype = _converted_dtype(header)
    parameters = sum(tensor.parameters for tensor in header.tensors)
    return GgufFacts(
        architecture=architecture,
        name=fields.label("general.name"),
        licence=fields.label("general.license"),
        parameters=parameters,
        layers=fields.required(f"{architecture}.block_count"),
        context_length=context_length,
        dtype=dtype,
        checkpoint_bytes=parameters * BYTES[dtype],
        storages=matrix_storages(header.tensors, architecture),
    )


def _require_sizes(header: GgufHeader, fields: Metadata, architecture: str) -> int:
    """Refuse sizes that transformers would take over although they are no sizes, or make it fill the memory.

    Returns:
        The context length.
    """
    sizes = {size for tensor in header.tensors for size in tensor.shape}
    for key in ("embedding_length", "feed_forward_length", "vocab_size"):
        found = fields.whole(f"{architecture}.{key}", 1)
        if found is not None and found not in sizes:
            raise fields.refuse(f"{architecture}.{key}", "a size that one of the tensors has")
    for key in ("attention.head_count", "attention.head_count_kv", "attention.key_length", "rope.dimension_count"):
        fields.whole(f"{architecture}.{key}", 1, max(sizes))
    for key in ("rope.freq_base", "attention.layer_norm_rms_epsilon"):
        fields.positive(f"{architecture}.{key}")
    fields.whole(f"{architecture}.attention.sliding_window")
    if fields.required(f"{architecture}.block_count") > len(header.tensors):
        raise fields.refuse(f"{architecture}.block_count", f"at most the {len(header.tensors)} tensors that there are")
    return fields.required(f"{architecture}.context_length")


def _require_single_file(header: GgufHeader, fields: Metadata) -> None:
    parts = fields.count("split.count") or 1
    if parts > 1:
        raise SourceError(
            f"{header.path.name} is one of {parts} parts",
            "the whole model in one file",
            "join the parts with llama-gguf-split --merge",
        )
    if not header.tensors:
        raise SourceError(f"{header.path.name} has no tensors", "a model, not a vocabulary", "name another file")


def _require_plain_rotation(header: GgufHeader, fields: Metadata, architecture: str) -> None:
    """Refuse position embeddings that transformers would take for plain ones."""
    key = f"{architecture}.rope.scaling.type"
    scales_by = fields.positive(f"{architecture}.rope.scaling.factor") if fields.text(key) == "linear" else None
    if (fields.text(key) or "none") != "none" and scales_by != 1.0:
        raise fields.refuse(key, "none, since the conversion loses it", advice=ORIGINAL)
    for tensor in header.tensors:
        if tensor.name.startswith(("rope_freqs", "rope_factors")):
            raise SourceError(f"tensor {tensor.name}", "no rope scaling, since the conversion loses it", ORIGINAL)
    heads = fields.required(f"{architecture}.attention.head_count")
    width = fields.required(f"{architecture}.embedding_length")
    head = fields.whole(f"{architecture}.attention.key_length") or width // heads
    key = f"{architecture}.rope.dimension_count"
    if fields.whole(key) not in (None, head):
        raise fields.refuse(key, f"the head's {head}, since the conversion loses it", advice=ORIGINAL)


def _converted_dtype(header: GgufHeader) -> str:
    """Return F32 where tensors are quantised: scale times code plus minimum, of float16 both, is exact only there."""
    storages = {tensor.storage: tensor.name for tensor in header.tensors}
    for storage, name in storages.items():
        if storage not in FLOATS and storage not in QUANTISED:
            raise SourceError(
                f"tensor {name} is stored as {storage}",
                f"one of {', '.join([*FLOATS, *sorted(QUANTISED)])}",
                "use another quantisation of the model",
            )
    halves = {"F16", "BF16"} & storages.keys()
    if storages.keys() - FLOATS.keys() or len(halves) != 1:
        return "F32"
    return halves.pop()


@forked_with(*TORCH, "gguf")
def convert_gguf(request: GgufConversion) -> GgufFacts:
    """Run in a child: write the Hugging Face checkpoint of a GGUF file, tokenizer included.

    Two conversions of one file give the same bytes.

    Raises:
        SourceError: the file is refused by `inspect_gguf` or `write_tokenizer`, or its tensors are not the model's.
    """
    header = read_header(request.path)
    facts = _facts(header)
    with limited(f"the tokenizer in {request.path}"):
        write_tokenizer(request.path, request.into)
    progress.report("fetch", 0, len(header.tensors), "tensors")
    _write_weights(request, header, facts)
    _write_configs(request.into, header)
    progress.report("fetch", len(header.tensors), len(header.tensors), "tensors")
    return facts


def _write_weights(request: GgufConversion, header: GgufHeader, facts: GgufFacts) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    quicken_reading()
    path, loader = request.path, cast(Any, AutoModelForCausalLM)
    model, loaded = loader.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=getattr(torch, FLOATS[facts.dtype]),
        output_loading_info=True,
    )
    missing = sorted(loaded["missing_keys"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if missing or parameters != facts.parameters:  # transformers fills gaps with random numbers and drops the rest
        raise SourceError(
            f"{facts.parameters:,} weights in the file"
            + (f", none for {missing[0]} and {len(missing) - 1} more" if missing else ""),
            f"the {parameters:,} of {type(model).__name__}",
            "use the model's original checkpoint",
        )
    window = Metadata(header.metadata).whole(f"{facts.architecture}.attention.sliding_window")
    if facts.architecture == "phi3" and window:
        model.config.sliding_window = window
    model.hf_quantizer = None  # it refuses to save, although nothing is quantised any more
    model.save_pretrained(request.into)


def _write_configs(into: Path, header: GgufHeader) -> None:
    config = json.loads((into / "config.json").read_text())
    for key in BUILD_NOISE:
        config.pop(key, None)
    vocabulary = read_vocabulary(header)
    ids: dict[str, int | list[int]] = {"eos_token_id": _one_or_all(vocabulary.end_ids)}
    if vocabulary.bos_id is not None:
        ids["bos_token_id"] = vocabulary.bos_id
    if vocabulary.pad_id is not None:
        ids["pad_token_id"] = vocabulary.pad_id
    write_json(into / "config.json", config | ids)
    write_json(into / "generation_config.json", ids)


def _one_or_all(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)
