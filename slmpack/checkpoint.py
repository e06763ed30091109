"""Checkpoint: is this folder a model that can be used, and what is it?

Everything that can be known from file names, headers and small files, in a second, before anything expensive starts.
Never imports torch, never runs a checkpoint's own Python code (`auto_map` and `trust_remote_code` are not honoured),
never opens a pickle.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_SMALL = re.compile(
    r"model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|tokenizer\.model|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja"
    r"|(LICEN[CS]E|NOTICE)[^/]*|README\.md"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
# Where a row is a token: input embeddings and output layers, by the names that decoders in transformers give them.
_ROW_A_TOKEN = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|lm_head|embed_out)\.weight"
)
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
# Configurations name the same thing differently. Source: `attribute_map` of the classes in transformers.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


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
    names = {path.relative_to(folder).as_posix(): path for path in [*folder.glob("*"), *folder.glob("*/*")]}
    return {name: path for name, path in sorted(names.items()) if is_relevant(name) and path.is_file()}


def inspect_checkpoint(folder: Path) -> CheckpointFacts:
    """Look at a checkpoint in Hugging Face's layout and return what it is; of a quantised one, once it is plain.

    Raises:
        SourceError: it cannot be used; the message names the file.
    """
    if not (folder / CONFIG).is_file() and (folder / "adapter_config.json").is_file():
        raise SourceError(f"{folder} is an adapter", "a whole model", "merge it into its base model and save that")
    config = read_json(folder / CONFIG)
    form = quantised_form(folder / CONFIG, config)
    architecture = _architecture(folder / CONFIG, config)
    tensors = read_weights(folder)
    if form is not None:
        tensors = plain_tensors(folder, form, tensors)
    layers, context = _shape(folder / CONFIG, config)
    _check_layers(folder, layers, tensors)
    tokenizer = _check_tokenizer(folder)
    _check_chat_template(folder)
    _check_vocabulary(folder, config, tokenizer, tensors)
    return CheckpointFacts(
        architecture=architecture,
        dtype=main_dtype(folder, tensors),
        parameters=sum(tensor.parameters for tensor in tensors.values()),
        layers=layers,
        context_length=context,
    )


def _architecture(path: Path, config: dict[str, Any]) -> str:
    """Return the causal language model that the installed transformers has for this configuration."""
    import transformers
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES  # CONFIG_MAPPING itself imports torch

    named = config.get("architectures")
    if not (isinstance(named, list) and named and isinstance(named[0], str)):
        raise SourceError(f"{path} names no architectures", 'such as ["Phi3ForCausalLM"]', "save the model again")
    architecture: str = named[0]
    # dir() of the lazy module knows every class without importing torch.
    if config.get("model_type") not in CONFIG_MAPPING_NAMES or architecture not in dir(transformers):
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
    return _first_of(path, fields, _LAYERS), _first_of(path, fields, _CONTEXT)


def _first_of(path: Path, fields: dict[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
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
        slow = [name for name in ("tokenizer.model", "vocab.json", "merges.txt") if (folder / name).is_file()]
        found = f"{folder} has only a slow tokenizer ({', '.join(slow)})" if slow else f"{folder} has no tokenizer"
        raise SourceError(found, f"{TOKENIZER}, a fast one", "convert it with AutoTokenizer and save_pretrained")
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
        [*(text for _, text in _chat_templates(folder)), *(str(settings.get(key)) for key in _NAMED_TOKENS)]
    )
    ids = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    for number, token in tokenizer.get_added_tokens_decoder().items():
        if token.special and token.content not in used:
            ids.pop(number, None)
    return ids


def _check_chat_template(folder: Path) -> None:
    from jinja2 import TemplateError

    templates = list(_chat_templates(folder))
    if not templates:
        raise SourceError(
            f"{folder} has no chat template", "one in chat_template.jinja or tokenizer_config.json",
            "name the instruction-tuned model, or set tokenizer.chat_template and save it",
        )  # fmt: skip
    for place, text in templates:
        try:
            template_environment().from_string(text)
        except TemplateError as error:
            raise SourceError(
                f"the chat template in {place} does not compile ({error})", "a Jinja template", "correct it"
            ) from error


def _chat_templates(folder: Path) -> list[tuple[Path, str]]:
    """Return every chat template and its file, wherever the versions of transformers have put them.

    Source: transformers' documentation, "Chat templates".
    """
    found = [(path, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("additional_chat_templates/*"))]
    if (path := folder / "chat_template.jinja").is_file():
        found.append((path, path.read_text(encoding="utf-8")))
    for name in ("chat_template.json", TOKENIZER_SETTINGS):
        if (path := folder / name).is_file():
            value = read_json(path).get("chat_template")
            named = value if isinstance(value, list) else [{"template": value}] if value else []
            texts = [item.get("template") if isinstance(item, dict) else None for item in named]
            if not all(isinstance(text, str) for text in texts):
                raise SourceError(f"the chat template in {path} is not text", "a Jinja template", "correct it")
            found += [(path, text) for text in texts if isinstance(text, str)]
    return found


def template_environment() -> Any:
    """Return a sandbox that compiles what transformers compiles: loop controls, and `{% generation %}` blocks."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja's own way

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return ImmutableSandboxedEnvironment(extensions=[loopcontrols, Generation])
