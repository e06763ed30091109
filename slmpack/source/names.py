"""Names: what a model is called, from the name of its folder, file or repository to that of its logged model.

    Phi-3.5-mini-instruct/                -> phi-3.5-mini-instruct    the registered model
    phi-3.5/checkpoint-500/               -> phi-3.5                  a name that any model could have says nothing
    models--org--Phi-3.5/snapshots/<id>/  -> phi-3.5                  the Hub client's cache
    phi-3.5-mini-instruct                 -> phi-3-5-mini-instruct    the logged model: MLflow takes no dot there

Letters of every script stay: MLflow's databases, server, search and `models:/` URIs take them, and without them models
named in another script would share one registered model.
"""

import re
import unicodedata
from pathlib import PurePath
from typing import Any

PARENTS = 3  # as deep as trainers and the Hub client's cache put a checkpoint: run/outputs/checkpoints/checkpoint-500
NAME_TAG = "slmpack.name"  # of a logged model: the registered model that it was logged for
NO_NAME = "model"

_QUANTISATION = re.compile(r"[.-](I?Q\d\w*|MXFP4\w*|B?F16|F32|FP16|FP32)$", re.IGNORECASE)
_HUB_CACHE = re.compile(r"models--.+--(?P<name>.+)")  # Source: huggingface_hub's guide, "Understand caching"
_HASH = re.compile(r"[0-9a-f]{32,64}")  # a commit, a blob of a cache, the id of a run
_HOMES = (PurePath("/home"), PurePath("/Users"))
_REFUSED_IN_LOGGED = re.compile(r"""[/:.%"']""")  # Source: MLflow 3.17.2, mlflow/utils/validation.py
# Words that say where a model stands in somebody's work, or what kind of thing it is, and never which model it is.
_GENERIC = frozenset(
    {
        "adapter",
        "adapters",
        "artifact",
        "artifacts",
        "best",
        "bf16",
        "blob",
        "blobs",
        "cache",
        "checkpoint",
        "checkpoints",
        "ckpt",
        "ckpts",
        "consolidated",
        "data",
        "dist",
        "download",
        "downloads",
        "epoch",
        "export",
        "exported",
        "exports",
        "final",
        "finetune",
        "finetuned",
        "fp16",
        "fp32",
        "ggml",
        "gguf",
        "global",
        "hf",
        "home",
        "hub",
        "last",
        "latest",
        "local",
        "lora",
        "m",
        "main",
        "master",
        "merge",
        "merged",
        "mnt",
        "model",
        "models",
        "mymodel",
        "new",
        "old",
        "opt",
        "out",
        "output",
        "outputs",
        "package",
        "peft",
        "pytorch",
        "qlora",
        "release",
        "result",
        "results",
        "root",
        "run",
        "runs",
        "safetensors",
        "save",
        "saved",
        "sha",
        "snapshot",
        "snapshots",
        "srv",
        "step",
        "temp",
        "tensors",
        "tmp",
        "train",
        "trained",
        "trainer",
        "training",
        "transformers",
        "tune",
        "users",
        "v",
        "var",
        "version",
        "weights",
        "work",
        "workspace",
    }
)


def model_name(text: str) -> str:
    """Return a registered model's name for the name of a model's file, folder or repository: lower case, no spaces.

    What a URI or a shell would trip over becomes a dash; of a name without a letter or a digit, `model` is left.
    """
    stem = text[: -len(".gguf")] if text.lower().endswith(".gguf") else text
    plain = unicodedata.normalize("NFKC", _QUANTISATION.sub("", stem)).lower()
    legal = "".join(
        each if each in "-._" or is_of_a_word(each) else " " for each in unicodedata.normalize("NFC", plain)
    )
    return re.sub(" +", "-", legal).strip("-._") or NO_NAME


def is_of_a_word(character: str) -> bool:
    """Tell whether a character is a letter, a digit, or a mark on one, as Hindi and Thai write their vowels."""
    return unicodedata.category(character)[0] in "LMN"


def name_of_path(path: PurePath) -> str:
    """Return the name of a model at `path`: its own, or that of the nearest folder above which says something.

    Where none does, it is its own; `is_generic` then tells so.
    """
    above = (each for each in path.parents[:PARENTS] if each.parent not in _HOMES)  # a person's name is no model's
    names = (_own_name(place) for place in (path, *above))
    return next((name for name in names if not is_generic(name)), model_name(path.name))


def _own_name(path: PurePath) -> str:
    cached = _HUB_CACHE.fullmatch(path.name)
    return model_name(cached["name"] if cached else path.name)


def is_generic(name: str) -> bool:
    """Tell whether any model could have that name: `checkpoint-500`, `merged_model`, `final`, a commit, a date."""
    words = (word for word in re.split(r"[-._]+", name) if not _HASH.fullmatch(word))
    return all(not word or word in _GENERIC for word in (word.rstrip("0123456789") for word in words))


def logged_name(name: str) -> str:
    """Return the name of a logged model for the registered model `name`; several may share one, see `NAME_TAG`."""
    return _REFUSED_IN_LOGGED.sub("-", name)


def name_of_logged(logged: Any) -> str:
    """Return the name of the registered model that a logged model is for; of one without the tag, its own name."""
    return str(logged.tags.get(NAME_TAG, logged.name))
