"""Checkpoint: is this folder a model that can be used, and what is it?

Everything that can be known from file names, headers and small files, in a second, before anything expensive starts.
Never imports torch, never runs a checkpoint's own Python code (`auto_map` and `trust_remote_code` are not honoured),
never opens a pickle.
"""

import re
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slmpack.checkpoint.architectures import model_classes, model_types
from slmpack.checkpoint.chat_templates import require_templates
from slmpack.checkpoint.config_counts import require_counts
from slmpack.checkpoint.headers import INDEX, WEIGHTS, Tensor, main_dtype, read_index, read_weights, weight_names
from slmpack.checkpoint.quantised_layout import plain_tensors, quantised_form
from slmpack.checkpoint.rowless_tokens import find_rowless
from slmpack.checkpoint.tokenizer_rules import read_rules
from slmpack.errors import SourceError
from slmpack.machine.json_file import read_json
from slmpack.records import Record

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
VOCABULARIES = frozenset({TOKENIZER, "tokenizer.model", "vocab.json"})  # a tokenizer has one of them
TOKENIZER_FILES = VOCABULARIES | {"merges.txt", "added_tokens.json", "special_tokens_map.json"}
_SMALL = re.compile(
    r"config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|tokenizer\.model|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja"
    r"|(LICEN[CS]E|NOTICE)[^/]*|LICENSES/[^/]+|README\.md"
)
# What transformers makes a tokenizer.json of where there is none, see `tokenizer_conversion`.
_CONVERTIBLE = (("tokenizer.model",), ("vocab.json", "merges.txt"))
_SLOW_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\d*\.")  # more digits are no layer of any model
# Where a row is a token: input embeddings and output layers, by the names that decoders in transformers give them.
_ROW_A_TOKEN = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|lm_head|embed_out)\.weight"
)
# Configurations name the same thing differently. Source: `attribute_map` of the classes in transformers.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
# Where config.json may leave it out: what transformers' FalconConfig then takes, and what BLOOM was trained with, whose
# positions (ALiBi) have no end. Source: transformers 5.22; "BLOOM", arXiv 2211.05100, table 3.
_CONTEXT_UNSAID = {"falcon": 2048, "bloom": 2048}


class CheckpointFacts(Record):
    """What `inspect_checkpoint` found; the fields mean what they mean in `Snapshot`."""

    architecture: str
    dtype: str
    parameters: int
    layers: int
    context_length: int


def is_small(name: str) -> bool:
    """Say whether a file, by its path in the checkpoint, belongs into a snapshot beside the weights."""
    return _SMALL.fullmatch(name) is not None


def relevant_names(names: Collection[str], read: Callable[[], dict[str, str]]) -> set[str]:
    """Return the files of a checkpoint that a snapshot needs; shards that are not there are among them.

    Args:
        names: the files that there are, by their path in the checkpoint.
        read: reads the index of the shards, see `read_index`.
    """
    return {name for name in names if is_small(name)} | weight_names(names, read)


def relevant_files(folder: Path) -> dict[str, Path]:
    """Return the files of a checkpoint that a snapshot needs, their path in the folder to their path on disk.

    Raises:
        SourceError: the index of its shards is not usable.
    """
    files = files_below(folder)
    needed = relevant_names(files, lambda: read_index(folder / INDEX, str(folder / INDEX)))
    return {name: path for name, path in files.items() if name in needed}


def files_below(folder: Path) -> dict[str, Path]:
    """Return the files in a folder and in those in it, their path in it to their path on disk, sorted."""
    paths = {path.relative_to(folder).as_posix(): path for path in [*folder.glob("*"), *folder.glob("*/*")]}
    return {name: path for name, path in sorted(paths.items()) if path.is_file()}


def inspect_checkpoint(folder: Path) -> CheckpointFacts:
    """Look at a checkpoint in Hugging Face's layout and return what it is; of a quantised one, once it is plain.

    Raises:
        SourceError: it cannot be used; the message names the file.
    """
    facts, config, tensors = _inspect_model(folder)
    inspect_tokenizer(folder)
    inspect_generation(folder)
    _check_vocabulary(folder, config, tensors)
    return facts


def inspect_model(folder: Path) -> CheckpointFacts:
    """Look at configuration and weights alone: the base of an adapter may have its tokenizer there.

    Raises:
        SourceError: it cannot be used; the message names the file.
    """
    return _inspect_model(folder)[0]


def inspect_tokenizer(folder: Path) -> None:
    """Look at the tokenizer and the chat templates alone.

    Raises:
        SourceError: one of them cannot be used; the message names the file.
    """
    if not older_tokenizer(folder):
        _check_tokenizer(folder)
    require_templates(folder)


def inspect_generation(folder: Path) -> None:
    """Look at what generation_config.json says of tokens, where there is one; its other settings are never used.

    Raises:
        SourceError: it is no object, or names tokens by something else than ids.
    """
    path = folder / GENERATION_CONFIG
    settings = read_json(path) if path.is_file() else {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = settings.get(key)
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        if value is not None and not all(type(number) is int for number in ids):
            raise SourceError(f"{key} in {path} is {str(value)[:60]!r}", "the id of a token", "correct it")


def _inspect_model(folder: Path) -> tuple[CheckpointFacts, dict[str, Any], dict[str, Tensor]]:
    config = read_json(folder / CONFIG)
    require_counts(folder / CONFIG, config)
    form = quantised_form(folder / CONFIG, config)
    architecture = _architecture(folder / CONFIG, config)
    _require_usual_weights(folder / CONFIG, config)
    tensors = read_weights(folder)
    if form is not None:
        tensors = plain_tensors(folder, form, tensors)
    layers, context = _shape(folder / CONFIG, config)
    _check_layers(folder, layers, tensors)
    facts = CheckpointFacts(
        architecture=architecture,
        dtype=main_dtype(folder, tensors),
        parameters=sum(tensor.parameters for tensor in tensors.values()),
        layers=layers,
        context_length=context,
    )
    return facts, config, tensors


def _require_usual_weights(path: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration that sends transformers to other weights than the builder reads."""
    if (named := config.get("transformers_weights")) is not None:
        raise SourceError(
            f"{path} names {str(named)[:200]!r} in transformers_weights",
            f"weights in {WEIGHTS} or {INDEX}",
            "load the model with transformers, and save it with save_pretrained",
        )


def _architecture(path: Path, config: dict[str, Any]) -> str:
    """Return the causal language model that the installed transformers has for this configuration."""
    named = config.get("architectures")
    if not (isinstance(named, list) and named and isinstance(named[0], str)):
        raise SourceError(f"{path} names no architectures", 'such as ["Phi3ForCausalLM"]', "save the model again")
    classes = model_classes()
    architecture: str = named[0]
    if architecture not in classes:  # MPT's own code, on the Hub, has its class in other capitals
        architecture = next((name for name in classes if name.lower() == architecture.lower()), architecture)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in model_types() or architecture not in classes:
        own = " (its own code, named in auto_map, is never run)" if "auto_map" in config else ""
        raise SourceError(
            f"{path} names {architecture}, model_type {model_type!r}{own}",
            f"an architecture that transformers {version('transformers')} has",
            "name another model",
        )
    causal = architecture.endswith(("ForCausalLM", "LMHeadModel")) or "text_config" in config
    if not causal or config.get("is_encoder_decoder"):
        raise SourceError(f"{path} names {architecture}", "a decoder-only language model", "name another model")
    return architecture


def _shape(path: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Return the number of layers and the context length, in tokens."""
    nested = config.get("text_config")  # of models that also take images
    fields = nested if isinstance(nested, dict) else config
    unsaid = _CONTEXT_UNSAID.get(str(fields.get("model_type")))
    return _first_of(path, fields, _LAYERS), _first_of(path, fields, _CONTEXT, unsaid)


def _first_of(path: Path, fields: dict[str, Any], names: tuple[str, ...], unsaid: int | None = None) -> int:
    for name in names:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if unsaid is not None and not any(name in fields for name in names):
        return unsaid
    raise SourceError(f"{path} has no {names[0]}", "a positive whole number", "save the model again")


def _check_layers(folder: Path, layers: int, tensors: dict[str, Tensor]) -> None:
    """Refuse weights that lack whole layers: transformers would fill them with random numbers and only warn."""
    found = {int(match[1]) for name in tensors if (match := _LAYER.search(name))}
    if 0 < len(tensors) < layers:
        raise SourceError(
            f"{folder} has {len(tensors):,} tensors, and {CONFIG} names {layers:,} layers",
            "a tensor for each layer at least",
            "take the config.json that the weights were saved with",
        )
    missing = next((layer for layer in range(layers) if layer not in found), None)
    if found and missing is not None:
        raise SourceError(
            f"{folder} has no weights for layer {missing}",
            f"all {layers} layers that {CONFIG} names",
            "fetch or save the model again",
        )


def older_tokenizer(folder: Path) -> tuple[str, ...]:
    """Return the files that a missing tokenizer.json is to be made of; none where it is there or cannot be made."""
    if (folder / TOKENIZER).is_file():
        return ()
    return next((names for names in _CONVERTIBLE if all((folder / name).is_file() for name in names)), ())


def _check_tokenizer(folder: Path) -> None:
    path = folder / TOKENIZER
    if not path.is_file():
        slow = [name for name in _SLOW_FILES if (folder / name).is_file()]
        found = f"{folder} has only a slow tokenizer ({', '.join(slow)})" if slow else f"{folder} has no tokenizer"
        raise SourceError(
            found,
            f"{TOKENIZER}, a fast one",
            "run AutoTokenizer.from_pretrained(folder).save_pretrained(folder), and compare ids with the old one's",
        )
    # The library is left to `text_trial`, which runs in a child: some files make it end the process.
    read_rules(path)


def _check_vocabulary(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse ids without a row of their own that something writes; rows without an id are fine, and so are idle ids."""
    vocabulary = config.get("vocab_size")  # not that of a nested configuration, whose rows may rightly be more
    for name, tensor in _by_token(tensors).items():
        if isinstance(vocabulary, int) and tensor.shape[0] != vocabulary:
            raise SourceError(
                f"{name} in {folder} has {tensor.shape[0]:,} rows",
                f"the {vocabulary:,} of vocab_size in {CONFIG}",
                "save the model again with the configuration it was trained with",
            )
    rows = rows_of_tokens(tensors)
    written = {} if rows is None or older_tokenizer(folder) else find_rowless(folder, rows).written
    if written:
        last = max(written)
        text, writer = written[last]
        name = min(_by_token(tensors), key=lambda name: tensors[name].shape[0])
        raise SourceError(
            f"{name} in {folder} has {rows:,} rows, but its tokenizer makes ids up to {last:,} ({text!r}), "
            f"which {writer} writes",
            "a row for each id",
            "take the tokenizer that the model was trained with, or call resize_token_embeddings and train",
        )


def rows_of_tokens(tensors: dict[str, Tensor]) -> int | None:
    """Return how many ids a checkpoint has rows for, in its embedding and its head; None if it has neither."""
    return min((tensor.shape[0] for tensor in _by_token(tensors).values()), default=None)


def _by_token(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if _ROW_A_TOKEN.fullmatch(name) and tensor.shape}
