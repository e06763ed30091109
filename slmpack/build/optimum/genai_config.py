"""What a package of an exported graph has beside it: genai_config.json and the tokenizer's files.

ONNX Runtime GenAI runs any graph as `"type": "decoder"` given the names and sizes of its inputs and outputs.
The graph joins past and present itself, so `past_present_share_buffer` is false: with true the first decode fails.

Source: found by experiment with onnxruntime-genai 0.18.0 and graphs of optimum-onnx 0.1.0; the fields are those that
`Model.make_genai_config` of the former's builder writes.
"""

from pathlib import Path
from typing import Any

from slmpack.build.optimum.quantise_graph import GRAPH, GraphOptions, write_graph
from slmpack.build.repair_tokenizer import repair_tokenizer
from slmpack.checkpoint.chat_format import write_chat_format
from slmpack.checkpoint.tokenizer import end_ids_of, read_tokenizer
from slmpack.errors import BuildError
from slmpack.machine.child import limited
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.json_file import write_json
from slmpack.records import Record

CONFIG = "genai_config.json"
PAST_KEY, PAST_VALUE = "past_key_values.%d.key", "past_key_values.%d.value"
PRESENT_KEY, PRESENT_VALUE = "present.%d.key", "present.%d.value"
OPTIONAL_INPUTS = ("attention_mask", "position_ids")


class PackageRequest(Record):
    """An exported graph, and the checkpoint that it was exported from; `into` is an empty folder."""

    graph: Path
    snapshot: Path
    layers: int
    context_length: int
    options: GraphOptions
    into: Path


class Written(Record):
    """What was done: a sentence for each repair of the tokenizer, and for each thing done to the weights."""

    repairs: tuple[str, ...]
    quantisation: tuple[str, ...]


@forked_with(*TORCH)
def write_package(request: PackageRequest) -> Written:
    """Run in a child: write the graph, quantised, and what the runtime needs beside it.

    Raises:
        BuildError: the graph's inputs and outputs are not those of a decoder with a cache of keys and values.
    """
    quantisation = write_graph(request.graph, request.options, request.layers, request.into)
    with limited(f"the tokenizer or a chat template of {request.snapshot}"):
        tokenizer = read_tokenizer(request.snapshot)
        write_json(request.into / CONFIG, genai_config(request, tokenizer))
        tokenizer.save_pretrained(request.into)
        repairs = repair_tokenizer(request.into, request.snapshot, tokenizer)
        write_chat_format(request.into, tokenizer)
    return Written(repairs=repairs, quantisation=quantisation)


def genai_config(request: PackageRequest, tokenizer: Any) -> dict[str, Any]:
    """Return genai_config.json of the graph in `request.into`."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(request.snapshot, local_files_only=True)
    shapes = _Shapes(request.into / GRAPH)
    vocabulary = shapes.vocabulary()
    ends = _ends(request.snapshot, tokenizer, vocabulary)
    heads, head_size = shapes.cache(request.layers)
    pads, begins = (config.pad_token_id, tokenizer.pad_token_id), (config.bos_token_id, tokenizer.bos_token_id)
    inputs = {name: name for name in OPTIONAL_INPUTS if name in shapes.inputs}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": GRAPH,
        "head_size": head_size,
        "hidden_size": config.hidden_size,
        "inputs": {"input_ids": "input_ids", **inputs, "past_key_names": PAST_KEY, "past_value_names": PAST_VALUE},
        "outputs": {"logits": "logits", "present_key_names": PRESENT_KEY, "present_value_names": PRESENT_VALUE},
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": request.layers,
        "num_key_value_heads": heads,
    }
    model = {
        "type": "decoder",
        "bos_token_id": _first(*begins, ends[0], below=vocabulary),
        "eos_token_id": ends,
        "pad_token_id": _first(*pads, ends[0], below=vocabulary),
        "context_length": request.context_length,
        "vocab_size": vocabulary,
        "decoder": decoder,
    }
    return {"model": model, "search": _search(request.context_length)}


def _ends(snapshot: Path, tokenizer: Any, vocabulary: int) -> list[int]:
    """Return the ids that end an answer.

    Raises:
        BuildError: there is none, or one is beyond what the model has logits for.
    """
    end_ids = end_ids_of(snapshot, tokenizer)
    if not end_ids:
        raise BuildError(
            "a model that names no end-of-turn token",
            "eos_token_id in generation_config.json",
            "add it to the checkpoint",
        )
    if (last := max(end_ids)) >= vocabulary:
        raise BuildError(
            f"{end_ids[last]} asks for the end-of-turn token {last}",
            f"ids below the model's {vocabulary}",
            "correct it in the checkpoint",
        )
    return sorted(end_ids)


def _first(*ids: int | None, below: int) -> int:
    """Return the first id that there is; -1 is how some configurations say none."""
    return next(number for number in ids if number is not None and 0 <= number < below)


def _search(context_length: int) -> dict[str, Any]:
    """Return the builder's defaults: greedy."""
    return {
        "diversity_penalty": 0.0,
        "do_sample": False,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": context_length,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": False,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }


class _Shapes:
    """The graph's inputs and outputs: each one's name, and its shape with None where a size is open."""

    def __init__(self, graph: Path) -> None:
        import onnx

        model = onnx.load(graph, load_external_data=False)
        self.inputs = {value.name: _shape(value) for value in model.graph.input}
        self.outputs = {value.name: _shape(value) for value in model.graph.output}

    def cache(self, layers: int) -> tuple[int, int]:
        """Return the heads of keys and values, and the size of a head, the same in every layer.

        Raises:
            BuildError: they are not, or there is another input or output.
        """
        past = {name % layer for name in (PAST_KEY, PAST_VALUE) for layer in range(layers)}
        present = {name % layer for name in (PRESENT_KEY, PRESENT_VALUE) for layer in range(layers)}
        strange = (self.inputs.keys() - past - {"input_ids", *OPTIONAL_INPUTS}) | (
            self.outputs.keys() - present - {"logits"}
        )
        missing = (past | {"input_ids"}) - self.inputs.keys() | (present | {"logits"}) - self.outputs.keys()
        sizes = {(shape[1], shape[3]) for name, shape in self.inputs.items() if name in past and len(shape) == 4}
        heads, head_size = sizes.pop() if len(sizes) == 1 else (None, None)
        if strange or missing or heads is None or head_size is None:
            odd = ", ".join(sorted(strange | missing)[:3]) or "caches of several shapes"
            raise BuildError(
                f"an exported graph with other inputs or outputs ({odd})",
                "token ids, keys and values in, logits, keys and values out",
                "use --target transformers",
            )
        return heads, head_size

    def vocabulary(self) -> int:
        """Return how many tokens the graph gives logits for.

        Raises:
            BuildError: it does not say.
        """
        size = self.outputs["logits"][-1]
        if size is None:
            raise BuildError(
                "an exported graph whose logits have no fixed size", "one a token", "use --target transformers"
            )
        return size


def _shape(value: Any) -> list[int | None]:
    return [size.dim_value or None for size in value.type.tensor_type.shape.dim]
