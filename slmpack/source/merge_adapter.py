"""Adapter, merged: a base model and a LoRA become one whole model, by peft, in a process of its own.

    base, in its own precision --transformers--> model --peft--> model with adapter --> logits
                                                                     | merged, saved      |
                                                 the saved model, loaded again --> logits = the same?

The two factors of a matrix are multiplied in float64 and rounded once to the base's precision, so that the same adapter
gives the same bytes on another processor. The saved model is loaded again and has to give the logits of base and
adapter apart: of weights in bfloat16, up to their rounding.

Source: peft 0.21, tuners/lora/layer.py, `merge` and `get_delta_weight`.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.headers import Tensor, read_header, read_weights
from slmpack.checkpoint.inspect import GENERATION_CONFIG
from slmpack.errors import SourceError
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.json_file import read_json
from slmpack.machine.memory import available_bytes, require_memory
from slmpack.progress import report
from slmpack.records import Record
from slmpack.source.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

VERSION = 1  # counts up when what is made of an adapter changes, so that it is made again
LIBRARY_BYTES = 600_000_000  # Python with torch, transformers and peft
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
SCRATCH_BYTES = 28  # for a weight of the largest matrix that changes: the change in float64, and copies of both
PROBED_TOKENS = 24
# How far the logits of the saved model may be from those of base and adapter, relative to their own size (L2).
# Measured at worst, with SmolLM2-135M and with 4 layers of Phi-3-mini's shape: 8e-7, 0.022 and 0.0015.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.06, "float16": 0.02}
STEPS = 4
PREFIX = "base_model.model."  # of every tensor's name in an adapter
PARTS_SAVED_TWICE = ("modules_to_save", "original_module")  # beside the module's own name, after a resize


class MergeRequest(Record):
    """The folders of the base and the adapter, and the one to write config.json and the weights into.

    Attributes:
        stage: the name that the progress is reported under.
    """

    base: Path
    adapter: Path
    into: Path
    stage: str = "fetch"


class MergeResult(Record):
    """How far the saved model's logits are from the unmerged one's, relative to their size."""

    distance: float


def require_merge_memory(base: Path, adapter: Path) -> None:
    """Refuse a merge that would be killed for its memory, before it starts.

    Raises:
        SourceError: too little is available.
    """
    needed = merge_bytes(read_weights(base), read_header(adapter / ADAPTER_WEIGHTS))
    require_memory(needed, available_bytes(), "merging", SourceError, "package it on a machine with more memory")


def merge_bytes(base: dict[str, Tensor], adapter: dict[str, Tensor]) -> int:
    """Predict what the child takes at most, in bytes: the model, the adapter in float64, and the largest matrix.

    Matrices that do not change stay in their files, mapped, so less is private to the process: 2.2 GB for 1.5 GB of
    Phi-3-mini's shape in bfloat16 and an adapter of all linear layers.
    """
    weights = sum(tensor.parameters * ITEM_BYTES.get(tensor.dtype, 4) for tensor in base.values())
    changed = {f"{name.removeprefix(PREFIX).partition('.lora_')[0]}.weight" for name in adapter}
    sizes = [tensor.parameters for name, tensor in base.items() if name in changed or not changed & base.keys()]
    factors = sum(tensor.parameters for tensor in adapter.values())
    return LIBRARY_BYTES + weights + 8 * factors + SCRATCH_BYTES * max(sizes, default=0)


@forked_with(*TORCH)
def merge_adapter(request: MergeRequest) -> MergeResult:
    """Run in a child: merge, save, and compare.

    Raises:
        SourceError: the adapter is not of this base, is not finite, or does not merge exactly.
    """
    import torch

    torch.set_num_threads(1)  # so that sums are the same wherever
    tensors = _read_tensors(request.adapter)
    with torch.no_grad():
        model = _load(request.base)
        dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
        _resize(model, tensors)
        ids = _probe(model)
        _tell(request, 1)
        adapted = _adapted(model, request.adapter, tensors)
        expected = _logits(adapted, ids)
        _tell(request, 2)
        merged = _merged(adapted)
        for name, weight in merged.named_parameters():  # peft trains modules_to_save in float32
            weight.data = weight.data.to(dtypes.get(name, merged.dtype))
        _save(merged, request.into)
        dtype = str(merged.dtype).removeprefix("torch.")
        del model, adapted, merged
        _tell(request, 3)
        found = _logits(_load(request.into), ids)
    distance = float((found - expected).norm() / expected.norm())
    if not distance <= TOLERANCE[dtype]:  # NaN is not
        raise SourceError(
            f"{request.adapter}, merged, gives logits {distance:.2g} away from its own",
            f"at most {TOLERANCE[dtype]:g} in {dtype}",
            "merge it where it was trained",
        )
    _tell(request, STEPS)
    return MergeResult(distance=distance)


def _tell(request: MergeRequest, done: int) -> None:
    report(request.stage, done, STEPS, "steps of merging")


def _read_tensors(adapter: Path) -> "dict[str, torch.Tensor]":
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(adapter / ADAPTER_WEIGHTS)
    for name, tensor in sorted(tensors.items()):
        if not tensor.isfinite().all():
            raise SourceError(
                f"{name} in {adapter} has numbers that are not finite",
                "finite numbers",
                "train it again, or take an earlier checkpoint of it",
            )
    return tensors


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig

    plain: Any = GenerationConfig
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        generation_config=plain(),  # the folder's is not read: saving would refuse what loading takes
    )
    return model.eval()


def _resize(model: Any, tensors: "dict[str, torch.Tensor]") -> None:
    """Give the model as many rows for tokens as the adapter was trained with.

    Raises:
        SourceError: the adapter brings only some of the new rows.
    """
    whole = {name: _whole(name, tensors) for name in _embeddings(model)}
    rows = {len(tensor) for tensor in whole.values() if tensor is not None}
    found = model.get_input_embeddings().weight.shape[0]
    if rows in (set(), {found}):
        return
    lost = [name for name, tensor in whole.items() if tensor is None]
    if len(rows) > 1 or (lost and not model.config.get_text_config().tie_word_embeddings):
        raise SourceError(
            f"the adapter was trained with {max(rows):,} rows for tokens and has none for {lost[0] if lost else 'all'}",
            f"those of every one, since its base has {found:,}",
            "save both by modules_to_save",
        )
    logger.info("the adapter has %d rows for tokens, its base %d", max(rows), found)
    model.resize_token_embeddings(max(rows), mean_resizing=False)


def _embeddings(model: Any) -> list[str]:
    """Return the names of the input embeddings and the head."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is each for each in modules)]


def _whole(module: str, tensors: "dict[str, torch.Tensor]") -> "torch.Tensor | None":
    """Return the whole matrix that an adapter has of a module; beside its factors, or trained itself."""
    names = (f"{PREFIX}{module}{part}.weight" for part in ("", ".base_layer", ".modules_to_save"))
    return next((tensors[name] for name in names if name in tensors), None)


def _probe(model: Any) -> "torch.Tensor":
    """Return token ids that are spread over the vocabulary, int64 `[1, 24]`."""
    import torch

    rows = int(model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    return torch.randint(rows, (1, PROBED_TOKENS), generator=generator)


def _logits(model: Any, ids: "torch.Tensor") -> "torch.Tensor":
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


def _adapted(model: Any, adapter: Path, tensors: "dict[str, torch.Tensor]") -> Any:
    """Put the adapter beside the base's matrices.

    Raises:
        SourceError: it has other modules or shapes than the base, or a setting that peft does not know.
    """
    import peft

    lora: Any = peft.LoraConfig
    # How training began is of no use here; it would be computed, and then overwritten.
    settings = read_json(adapter / ADAPTER_CONFIG) | {
        "init_lora_weights": False,
        "auto_mapping": None,
        "eva_config": None,
    }
    settings.pop("runtime_config", None)
    try:
        config = lora.from_peft_type(**settings)
        adapted: Any = peft.PeftModel.from_pretrained(model, str(adapter), config=config, local_files_only=True).eval()
        loaded = adapted.load_adapter(str(adapter), "default", local_files_only=True)  # again: only this tells
    except (RuntimeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SourceError(
            f"{adapter} does not fit its base ({reason})",
            "the model that it was trained on",
            f"correct base_model_name_or_path in its {ADAPTER_CONFIG}",
        ) from error
    doubled = {f"{name.removesuffix('.weight')}.{part}.weight" for name in tensors for part in PARTS_SAVED_TWICE}
    strangers = sorted(set(loaded.unexpected_keys) - doubled)
    for what, names in (("has", strangers), ("lacks", sorted(loaded.missing_keys))):
        if names:
            raise SourceError(
                f"{adapter} {what} {names[0]}",
                "the tensors that its configuration and its base ask for",
                f"correct base_model_name_or_path in its {ADAPTER_CONFIG}, or save it again",
            )
    return adapted


def _merged(adapted: Any) -> Any:
    _untie(adapted)
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.double()
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SourceError(
            f"peft cannot merge the adapter ({reason})", "a LoRA that can be merged", "merge it where it was trained"
        ) from error


def _untie(adapted: Any) -> None:
    """Give the head a matrix of its own where the adapter changes one of head and embeddings, and they were the same.

    peft would add the change to both.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends: tuple[Any, Any] = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
    if not any(isinstance(end, BaseTunerLayer) and hasattr(end, "lora_A") for end in ends):
        return
    embeddings, head = (getattr(end, "base_layer", end) for end in ends)
    if embeddings.weight is head.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _save(model: Any, into: Path) -> None:
    """Write config.json and the weights; generation_config.json stays as it is there, or not there."""
    settings = into / GENERATION_CONFIG
    content = settings.read_bytes() if settings.is_file() else None
    model.save_pretrained(into)
    if content is None:
        settings.unlink(missing_ok=True)
    else:
        settings.write_bytes(content)
