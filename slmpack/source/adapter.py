"""Adapter: a LoRA fine-tune in files apart from its base model, and what a first look tells of it.

    adapter_config.json          method, ranks, and which model it was trained on: base_model_name_or_path, revision
    adapter_model.safetensors    the two low-rank factors of each matrix, and whole matrices of modules_to_save
    tokenizer and chat template  where they were saved with it, they are the ones it was trained with
    config.json, model.safetensors or an index of shards    the base itself, where somebody keeps both in one folder

`resolve` finds the base and pins it, `fetch` has `merge_adapter` add one to the other. Nothing here imports torch or
peft; a pickle is never opened.

Source: peft 0.21, docs/source/developer_guides/checkpoint.md and tuners/lora/config.py, `LoraConfig`.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slmpack.checkpoint.chat_templates import templates_of, write_templates
from slmpack.checkpoint.headers import INDEX, WEIGHTS, read_header
from slmpack.checkpoint.inspect import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_FILES,
    TOKENIZER_SETTINGS,
    VOCABULARIES,
    files_below,
    is_small,
    relevant_files,
)
from slmpack.errors import SourceError
from slmpack.machine.json_file import read_json
from slmpack.records import Record

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
_MERGE = "merge it with peft's merge_and_unload, save that and name it"
# What peft merges exactly, at any setting; `init_lora_weights` is looked at apart.
_UNDERSTOOD = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "trainable_token_indices",
        "use_dora",
        "lora_bias",
        "target_parameters",
        "ensure_weight_tying",
        # of no effect by themselves: others switch them on, or they are about how training began
        "megatron_core",
        "qalora_group_size",
        "eva_config",
        "runtime_config",
    }
)
# How training may begin without changing the base; `pissa`, `olora`, `corda`, `loftq` and `lora_ga` take their start
# out of the base's weights. Source: peft, tuners/lora/layer.py, `update_layer`.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


class AdapterFacts(Record):
    """What an adapter says of its base: a Hub id or a path, and a branch, tag or commit of it."""

    base: str
    revision: str | None


def is_adapter(names: Iterable[str]) -> bool:
    """Say whether files, by their paths in a folder, are an adapter, with its base or without.

    A whole model that was merged and has only the adapter's configuration left is none.
    """
    found = set(names)
    has_own = bool({ADAPTER_WEIGHTS, ADAPTER_PICKLE} & found)
    return ADAPTER_CONFIG in found and (has_own or not _has_weights(found))


def holds_base(names: Iterable[str]) -> bool:
    """Say whether an adapter's folder has its base model beside it."""
    found = set(names)
    return CONFIG in found and _has_weights(found)


def _has_weights(names: set[str]) -> bool:
    return WEIGHTS in names or INDEX in names


def names_of(folder: Path) -> set[str]:
    """Return the names of the files in a folder."""
    return {path.name for path in folder.iterdir() if path.is_file()}


def is_adapter_file(name: str) -> bool:
    """Say whether a file, by its path in the folder, is an adapter's: its tokenizer and licence are, a model is not."""
    if name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        return True
    return is_small(name) and name != CONFIG


def require_weights(names: Iterable[str], where: str) -> None:
    """Refuse an adapter without safetensors.

    Args:
        names: the files of the folder.
        where: what to call it.
    """
    found = set(names)
    if ADAPTER_WEIGHTS in found:
        return
    if ADAPTER_PICKLE in found:  # a pickle may run any code when it is loaded
        raise SourceError(
            f"{where} has its weights as a pickle ({ADAPTER_PICKLE})",
            ADAPTER_WEIGHTS,
            "save it again with peft's save_pretrained, on a machine that may run its code",
        )
    raise SourceError(f"{where} has {ADAPTER_CONFIG} and no weights", ADAPTER_WEIGHTS, "fetch or save it again")


def inspect_adapter(path: Path, where: str) -> AdapterFacts:
    """Read an adapter's configuration and return what it says of its base.

    Args:
        path: the configuration.
        where: what to call the adapter.

    Raises:
        SourceError: it is not a LoRA of a language model, is of a kind that cannot be merged exactly, or names no base.
    """
    config = read_json(path)
    method = config.get("peft_type")
    if method != "LORA":
        raise SourceError(f"{where} is an adapter of the kind {method}", "LORA, which can be merged exactly", _MERGE)
    task = config.get("task_type")
    if task not in ("CAUSAL_LM", None):
        raise SourceError(f"{where} is an adapter for the task {task}", "CAUSAL_LM", "name one of a language model")
    _require_mergeable(config, where)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not (isinstance(base, str) and base.strip()):
        raise SourceError(
            f"{where} names no base model",
            f"base_model_name_or_path in {ADAPTER_CONFIG}",
            "write the Hub id or the folder of the model that it was trained on",
        )
    return AdapterFacts(base=base.strip(), revision=revision if isinstance(revision, str) and revision else None)


def _require_mergeable(config: Mapping[str, Any], where: str) -> None:
    start = config.get("init_lora_weights", True)
    if start not in _STARTS:
        raise SourceError(
            f"{where} began with init_lora_weights {start!r}, which changes the base",
            "an adapter of the base itself",
            "save it with path_initial_model_for_weight_conversion, or merge it where it was trained",
        )
    for name, value in sorted(config.items()):
        if value and name not in _UNDERSTOOD:
            raise SourceError(
                f"{where} has {name} {str(value)[:60]!r} in {ADAPTER_CONFIG}",
                "a LoRA that can be merged exactly",
                _MERGE,
            )


def inspect_folder(folder: Path) -> AdapterFacts:
    """Look at an adapter in a folder, its weights' header included.

    Raises:
        SourceError: it cannot be merged; the message says why.
    """
    facts = inspect_adapter(folder / ADAPTER_CONFIG, str(folder))
    require_weights(names_of(folder), str(folder))
    if not read_header(folder / ADAPTER_WEIGHTS):
        raise SourceError(f"{folder / ADAPTER_WEIGHTS} has no tensors", "an adapter's weights", "save it again")
    return facts


def write_small_files(base: Path, adapter: Path, into: Path) -> None:
    """Write the files beside config.json and the weights that a merged model takes.

    The tokenizer is the adapter's if it has one, and so are the chat templates; else they are the base's. Licences of
    the snapshot has both; model cards are left out, since neither is about the merged model.
    """
    ours = {name: path for name, path in files_below(adapter).items() if is_adapter_file(name)}
    theirs = relevant_files(base)
    tokenizer = adapter if VOCABULARIES & ours.keys() else base
    templates = adapter if templates_of(adapter) else base
    chosen = ours if tokenizer is adapter else theirs
    taken = {name: path for name, path in chosen.items() if name in TOKENIZER_FILES | {TOKENIZER_SETTINGS}}
    taken |= {name: path for name, path in (theirs | ours).items() if name == GENERATION_CONFIG}
    taken |= {name: path for name, path in theirs.items() if _is_licence(name)}
    for name, path in ours.items():
        if _is_licence(name):
            taken[f"{name}.adapter" if name in taken else name] = path
    for name, path in taken.items():
        (into / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, into / name)
    found = templates_of(templates)
    if templates is not tokenizer or any(each.place.name != TOKENIZER_SETTINGS for each in found.values()):
        write_templates(found, into)


def _is_licence(name: str) -> bool:
    return name.startswith(("LICENSE", "LICENCE", "NOTICE"))
