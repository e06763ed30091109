"""Checkpoint: is this folder a model that can be used, and what is it?

Everything that can be known from file names, headers and small files, in a second, before anything expensive starts.
Never imports torch, never runs a checkpoint's own Python code (`auto_map` and `trust_remote_code` are not honoured),
never opens a pickle.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.chat_templates import require_templates, templates_of
from slmpack.errors import SourceError
from slmpack.json_file import read_json
from slmpack.quantised_checkpoint import plain_tensors, quantised_form
from slmpack.records import Record
from slmpack.weights import Tensor, is_weights, main_dtype, read_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
VOCABULARIES = frozenset({TOKENIZER, "tokenizer.model", "vocab.json"})  # a tokenizer has one of them
TOKENIZER_FILES = VOCABULARIES | {"merges.txt", "added_tokens.json", "special_tokens_map.json"}
_SMALL = re.compile(
    r"model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|tokenizer\.model|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja"
    r"|(LICEN[CS]E|NOTICE)[^/]*|README\.md"
)
_SLOW_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# Where a row is a token: input embeddings and output layers, by the names that decoders in transformers give them.
_ROW_A_TOKEN = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|lm_head|embed_out)\.weight"
)
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
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


def is_relevant(name: str) -> bool:
    """Say whether a file, by its path in the checkpoint, belongs into a snapshot."""
    return is_weights(name) or _SMALL.fullmatch(name) is not None


def relevant_files(folder: Path) -> dict[str, Path]:
    """Return the files of a checkpoint that a snapshot needs, their path in the folder to their path on disk."""
    return {name: path for name, path in files_below(folder).items() if is_relevant(name)}


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
    tokenizer = inspect_tokenizer(folder)
    _check_vocabulary(folder, config, tokenizer, tensors)
    return facts


def inspect_model(folder: Path) -> CheckpointFacts:
    """Look at configuration and weights alone: the base of an adapter may have its tokenizer there.

    Raises:
        SourceError: it cannot be used; the message names the file.
    """
    return _inspect_model(folder)[0]


def inspect_tokenizer(folder: Path) -> "Tokenizer":
    """Look at the tokenizer and the chat templates alone, and return the tokenizer.

    Raises:
        SourceError: one of them cannot be used; the message names the file.
    """
    tokenizer = _check_tokenizer(folder)
    require_templates(folder)
    return tokenizer


def _inspect_model(folder: Path) -> tuple[CheckpointFacts, dict[str, Any], dict[str, Tensor]]:
    config = read_json(folder / CONFIG)
    form = quantised_form(folder / CONFIG, config)
    architecture = _architecture(folder / CONFIG, config)
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


def _architecture(path: Path, config: dict[str, Any]) -> str:
    """Return the causal language model that the installed transformers has for this configuration."""
    import transformers
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES  # CONFIG_MAPPING itself imports torch

    named = config.get("architectures")
    if not (isinstance(named, list) and named and isinstance(named[0], str)):
        raise SourceError(f"{path} names no architectures", 'such as ["Phi3ForCausalLM"]', "save the model again")
    classes = dir(transformers)  # the lazy module knows every class without importing torch
    architecture: str = named[0]
    if architecture not in classes:  # MPT's own code, on the Hub, has its class in other capitals
        architecture = next((name for name in classes if name.lower() == architecture.lower()), architecture)
    if config.get("model_type") not in CONFIG_MAPPING_NAMES or architecture not in classes:
        own = " (its own code, named in auto_map, is never run)" if "auto_map" in config else ""
        raise SourceError(
            f"{path} names {architecture}, model_type {config.get('model_type')!r}{own}",
            f"an architecture that transformers {transformers.__version__} has", "name another model",
        )  # fmt: skip
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
    missing = sorted(set(range(layers)) - found)
    if found and missing:
        raise SourceError(
            f"{folder} has no weights for layer {missing[0]}", f"all {layers} layers that {CONFIG} names",
            "fetch or save the model again",
        )  # fmt: skip


def _check_tokenizer(folder: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        slow = [name for name in _SLOW_FILES if (folder / name).is_file()]
        found = f"{folder} has only a slow tokenizer ({', '.join(slow)})" if slow else f"{folder} has no tokenizer"
        raise SourceError(
            found, f"{TOKENIZER}, a fast one",
            "run AutoTokenizer.from_pretrained(folder).save_pretrained(folder), and compare ids with the old one's",
        )  # fmt: skip
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise SourceError(f"{path} does not load ({error})", "a fast tokenizer", "fetch or save it again") from error


def _check_vocabulary(folder: Path, config: dict[str, Any], tokenizer: "Tokenizer", tensors: dict[str, Tensor]) -> None:
    """Refuse ids without a row of their own, since runtimes read what lies there; rows without an id are fine."""
    asked = config.get("vocab_size")  # not that of a nested configuration, whose rows may rightly be more
    last = max(ids := _producible_ids(folder, tokenizer), default=-1)
    for name, tensor in tensors.items():
        rows = tensor.shape[0] if _ROW_A_TOKEN.fullmatch(name) and tensor.shape else None
        if rows is None:
            continue
        if isinstance(asked, int) and rows != asked:
            raise SourceError(
                f"{name} in {folder} has {rows:,} rows", f"the {asked:,} of vocab_size in {CONFIG}",
                "save the model again with the configuration it was trained with",
            )  # fmt: skip
        if last >= rows:
            raise SourceError(
                f"{name} in {folder} has {rows:,} rows, but its tokenizer makes ids up to {last:,} ({ids[last]!r})",
                "a row for each id",
                "take the tokenizer that the model was trained with, or call resize_token_embeddings and train",
            )


def _producible_ids(folder: Path, tokenizer: "Tokenizer") -> dict[int, str]:
    """Return the ids that a conversation can contain.

    A special token that neither the chat template nor the tokenizer's settings use does not count: Gemma 3 1B has one
    for images, without a row. Source: issue 37011 of huggingface/transformers.
    """
    settings = read_json(folder / TOKENIZER_SETTINGS) if (folder / TOKENIZER_SETTINGS).is_file() else {}
    used = "\n".join(
        [*(each.text for each in templates_of(folder).values()), *(str(settings.get(key)) for key in _NAMED_TOKENS)]
    )
    ids = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    for number, token in tokenizer.get_added_tokens_decoder().items():
        if token.special and token.content not in used:
            ids.pop(number, None)
    return ids
