"""Shapes: every tensor that the model of config.json has is in the checkpoint, with the shape that the config asks for.

    config.json --transformers, on torch's meta device--> the model's tensors --+
    safetensors headers --the renaming and merging that loading does------------+--> differences

The model is loaded by transformers itself from tensors without data, so all that it renames or merges is known here as
well, and no weight is read. transformers fills what is missing with random numbers and leaves out what is too much,
with a warning; a package would be built from that, and pass every comparison with it.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from slmpack.checkpoint.headers import Tensor, read_weights
from slmpack.checkpoint.text_trial import try_texts
from slmpack.errors import SourceError
from slmpack.machine.child import run_in_child
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.json_file import read_json
from slmpack.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

LIMIT_SECONDS = 600.0
_IN_LAYER = re.compile(r"(?P<layers>(?:.*\.)?(?:layers|h|blocks))\.\d+\.")
_MEASURES = re.compile(r"vocab_size|.*_size|.*_dim|n_embd|n_inner|d_model|ffn_dim|num_.*heads|num_.*experts")


class ShapeRequest(Record):
    """The checkpoint folder to look at."""

    folder: Path


class ShapeReport(Record):
    """What was compared, and a sentence for each thing that was let pass."""

    tensors: int
    remarks: tuple[str, ...] = ()


def require_shapes(folder: Path, log: Path) -> None:
    """Refuse a checkpoint whose tensors are not those of its config.json; about 6 s, nearly all of it imports.

    Its tokenizer and chat templates are tried in the same process, since it has what they need; see `text_trial`.

    Raises:
        SourceError: the tokenizer or a template fails or breaks its limits; or a tensor is missing, has another shape,
            or lies in a decoder layer that the model does not have.
    """
    started = time.monotonic()
    report, _ = run_in_child(
        try_checkpoint,
        ShapeRequest(folder=folder),
        log=log,
        limit_seconds=LIMIT_SECONDS,
        failure=SourceError,
        doing="the look at the checkpoint",
    )
    for remark in report.remarks:
        logger.info("%s", remark)
    logger.info("the shapes of %d tensors fit config.json (%.1f s)", report.tensors, time.monotonic() - started)


@forked_with(*TORCH)
def try_checkpoint(request: ShapeRequest) -> ShapeReport:
    """Run in a child: run the tokenizer and the chat templates once, and compare the shapes.

    Raises:
        SourceError: as `require_shapes` says.
    """
    import transformers.tokenization_utils_tokenizers  # noqa: F401 - its memory is not the tokenizer's

    try_texts(request.folder)
    return compare_shapes(request)


def compare_shapes(request: ShapeRequest) -> ShapeReport:
    """Load the headers as transformers loads a checkpoint, and judge what it reports.

    Raises:
        SourceError: as `require_shapes` says, or transformers makes no language model from config.json.
    """
    folder = request.folder
    tensors = read_weights(folder)
    model = _empty_model(folder)
    found = _load_headers(folder, model, tensors)
    _refuse_other_shapes(folder, found["mismatched_keys"])
    remarks = [*_judge_missing(folder, model, found["missing_keys"])]
    remarks += _judge_surplus(folder, model, found["unexpected_keys"])
    return ShapeReport(tensors=len(tensors), remarks=tuple(remarks))


def _empty_model(folder: Path) -> "PreTrainedModel":
    """Make the model without memory for its weights, of the class that quality is measured with."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = cast(Any, AutoModelForCausalLM).from_config(config, trust_remote_code=False)
    except Exception as error:  # configurations check themselves in many ways: TypeError, ValueError, ZeroDivisionError
        reason = " ".join(str(error).split())
        raise SourceError(
            f"{folder / 'config.json'} makes no model ({type(error).__name__}: {reason[:300]})",
            "the configuration of a decoder-only language model",
            "fetch or save the model again",
        ) from error
    return model


def _load_headers(folder: Path, model: "PreTrainedModel", tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Load tensors that have shapes and no data; return transformers' own report, in the model's names.

    `missing_keys` and `unexpected_keys` are without those that the model class ignores, and without tied weights;
    `mismatched_keys` are `(name, shape in the checkpoint, shape in the model)`.

    Raises:
        SourceError: tensors that become one when they are loaded, such as those of experts, do not fit each other.
    """
    import torch

    empty = {name: torch.empty(tensor.shape, dtype=model.dtype, device="meta") for name, tensor in tensors.items()}
    with _warnings_of("transformers.modeling_utils") as warnings:
        try:
            _, found = cast(Any, type(model)).from_pretrained(
                None,
                config=model.config,
                state_dict=empty,
                device_map={"": "meta"},
                dtype=model.dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
            )
        except RuntimeError as error:
            into = re.search(r"destined for (\S+?)\.?\s", "\n".join(warnings))
            raise SourceError(
                f"the tensors in {folder} do not fit together in {into[1] if into else 'the model'}",
                "as many and as large ones as config.json asks for",
                "fetch or save the model again",
            ) from error
    report: dict[str, Any] = found
    return report


@contextmanager
def _warnings_of(name: str) -> Iterator[list[str]]:
    """Collect what a logger warns of: transformers names a tensor that it cannot put together only there."""
    warnings: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logging.getLogger(name).addHandler(handler)
    try:
        yield warnings
    finally:
        logging.getLogger(name).removeHandler(handler)


def _refuse_other_shapes(folder: Path, mismatched: Any) -> None:
    for name, found, expected in sorted(mismatched, key=lambda item: str(item[0])):
        raise SourceError(
            f"{name} in {folder} has the shape {_shown(found)}",
            f"{_shown(expected)}, as config.json asks{_because(folder, found, expected)}",
            "take the config.json that the weights were saved with",
        )


def _shown(shape: Any) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _because(folder: Path, found: Any, expected: Any) -> str:
    """Name the fields of config.json whose size the architecture expects and the file lacks, if there are any."""
    config = read_json(folder / "config.json")
    nested = config.get("text_config")
    fields = config | nested if isinstance(nested, dict) else config
    sizes = set(expected) - set(found)
    names = sorted(name for name, value in fields.items() if _MEASURES.fullmatch(name) and value in sizes)
    return f" ({', '.join(f'{name} {fields[name]}' for name in names)})" if names else ""


def _judge_missing(folder: Path, model: "PreTrainedModel", missing: set[str]) -> list[str]:
    """Refuse weights that would be random numbers; buffers are computed from the configuration."""
    buffers = {name for name, _ in model.named_buffers()}
    lost = sorted(missing - buffers)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        shape = _shown(model.state_dict()[lost[0]].shape)
        raise SourceError(
            f"{folder} has no {lost[0]}{more}",
            f"one of the shape {shape}, as config.json asks",
            "fetch or save the model again",
        )
    return [f"not in the checkpoint, so computed from config.json: {_listed(missing)}"] if missing else []


def _judge_surplus(folder: Path, model: "PreTrainedModel", surplus: set[str]) -> list[str]:
    """Refuse weights in decoder layers that the model has no place for, and tell what else is left out."""
    layers = {match["layers"] for name in model.state_dict() if (match := _IN_LAYER.match(name))}
    for name in sorted(surplus):
        match = _IN_LAYER.match(name)
        if match and match["layers"] in layers:
            raise SourceError(
                f"{folder} has {name}",
                f"no such tensor in the {type(model).__name__} of config.json",
                "take the config.json that the weights were saved with, or merge an adapter before saving",
            )
    return (
        [f"in the checkpoint, but left out, since config.json has no place for it: {_listed(surplus)}"]
        if surplus
        else []
    )


def _listed(names: set[str]) -> str:
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first
