"""The wrapper that travels with every ONNX package: an MLflow model that answers like the OpenAI API.

MLflow copies this one file into the logged model and runs it from there (models-from-code), so it imports nothing of
slmpack: two versions of it in one process each run their own code. It needs mlflow-skinny, onnxruntime-genai (or
onnxruntime-genai-cuda), tokenizers, jinja2, numpy and pandas.

    load      manifests of the model and the package -> every file hashed -> template, tokenizer, runtime's model
    request   rows -> Request (every row is checked before the first is answered) -> Choice -> text

The runtime is given token ids and gives token ids. Its own template engine and tokenizer differ from those of
transformers in silence, so chats are rendered by Jinja2 and text is read by `tokenizers`, as transformers does.

What the wrapper decides:

* The KV cache is as long as prompt and answer together, never the whole context window: the runtime allocates and
  touches all of it at once.
* `temperature` absent or 0 is greedy. `top_p` and `top_k` that a request does not name are the package's own.
* Control tokens written out in a message (`<|im_end|>`) become control tokens, as Hugging Face's
  `apply_chat_template(tokenize=True)` has it. Filter them first if strangers write the messages.
* A rendered template gets no BOS of its own; raw text gets what the tokenizer's post-processor adds.
* Half a character at the token limit is left out of the text. Other bytes that are no UTF-8 become U+FFFD.
* A package for CUDA that gets no GPU is an error, never a slow answer. To test it on a CPU all the same, load it with
  the model config `execution_provider: cpu`.
* A chat template and a tokenizer are programs of a stranger's. A rendering has a budget (`BoundedEnvironment`), a text
  has a size and a time (`TextTokenizer`); what exceeds them is an error, and the process lives on.
* A message's `name` and `refusal` are accepted, as MLflow's schema has them, and not shown to the model.
"""

import base64
import codecs
import hashlib
import json
import math
import mmap
import os
import queue
import re
import reprlib
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from types import GeneratorType
from typing import Any, TypeAlias

# The runtime's wheels send telemetry from every process that imports them unless this is set before the import; their
# own call to switch it off changes nothing. Seen with onnxruntime 1.31.1 and onnxruntime-genai 0.18.0.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# One text at a time needs no threads, and `tokenizers` warns of forks in a process that has used them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# MLflow writes an installation's id when it is imported, which was before this. What it would send later, of this
# process or of its children, is switched off, unless the user has said otherwise. Seen with MLflow 3.17.2.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og
import pandas as pd
from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from tokenizers import Tokenizer

Row: TypeAlias = dict[str, object]

MANIFEST = "manifest.json"
GENAI_CONFIG = "genai_config.json"
TOKENIZER = "tokenizer.json"
CHAT_FORMAT = "chat_format.json"  # the source's template and special tokens, see slmpack's `chat_format.py`
MOST_LAYERS = 1 << 10  # the largest known is 126, of Llama 3.1 405B
COUNT, FEW, TOKEN = range(1, 2**31), range(1, 2**16), range(-1, 2**31)
NAME = re.compile(r"[\w./-]{1,200}", re.ASCII)
# The runtime hands these to C's snprintf, with the number of a layer.
NAME_OF_LAYER = re.compile(r"[\w./-]{0,100}%d[\w./-]{0,100}", re.ASCII)
PLAIN_FILE = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)
PLAIN_ONNX = re.compile(r"[\w-][\w.-]{0,199}\.onnx", re.ASCII)
# What a build writes into genai_config.json: a dict has these keys, a list such items, and a value is a whole number of
# a range, a text of a pattern, a flag (bool) or a finite number (float).
CONFIG_KEYS: dict[str, Any] = {
    "model": {
        **{"type": NAME, "context_length": COUNT, "vocab_size": COUNT, "eos_token_id": (TOKEN, [TOKEN])},
        **dict.fromkeys(("bos_token_id", "pad_token_id"), TOKEN),
        **dict.fromkeys(("bot_token_id", "eot_token_id", "bor_token_id", "eor_token_id"), TOKEN),
        "decoder": {
            "session_options": {"log_id": NAME, "provider_options": [{"cuda": {"enable_cuda_graph": NAME}}]},
            **{"filename": PLAIN_ONNX, "head_size": FEW, "hidden_size": COUNT},
            **{"num_attention_heads": FEW, "num_hidden_layers": range(1, MOST_LAYERS + 1), "num_key_value_heads": FEW},
            "inputs": {
                **dict.fromkeys(("input_ids", "attention_mask", "position_ids"), NAME),
                **dict.fromkeys(("past_key_names", "past_value_names"), NAME_OF_LAYER),
            },
            "outputs": {
                "logits": NAME, **dict.fromkeys(("present_key_names", "present_value_names"), NAME_OF_LAYER),
            },
        },
    },
    "search": {
        **dict.fromkeys(("do_sample", "early_stopping", "past_present_share_buffer"), bool),
        **dict.fromkeys(("diversity_penalty", "length_penalty", "repetition_penalty"), float),
        **dict.fromkeys(("max_length", "min_length", "no_repeat_ngram_size", "num_beams"), float),
        **dict.fromkeys(("num_return_sequences", "temperature", "top_k", "top_p"), float),
    },
}  # fmt: skip
# Those without which it is none; for others there are defaults.
CONFIG_NEEDED = frozenset({
    "model", "type", "context_length", "vocab_size", "eos_token_id", "decoder", "filename", "head_size",
    "num_hidden_layers", "num_key_value_heads", "inputs", "input_ids", "past_key_names", "past_value_names", "outputs",
    "logits", "present_key_names", "present_value_names", "search",
})  # fmt: skip
CHAT_FORMAT_KINDS: dict[str, tuple[type, ...]] = {
    "special_tokens": (dict,), "chat_template": (str,), "tool_template": (str, type(None)),
    "split_special_tokens": (bool,),
}  # fmt: skip
# Operators of others would be in a library that the runtime had to open.
OPERATOR_DOMAINS = ("", "ai.onnx", "com.microsoft")
# Fields of ONNX's messages, the same since its release 1.10. Source: onnx 1.23.2, onnx/onnx.proto.
MODEL_GRAPH, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 20, 25
GRAPH_NODES, GRAPH_TENSORS, GRAPH_SPARSE = 1, 5, 15
NODE_ATTRIBUTES, NODE_DOMAIN = 5, 7
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
SPARSE_PARTS = (1, 2)
TENSOR_PLACE, TENSOR_LOCATION, EXTERNAL = 13, 14, 1
TEXT_OF, BYTES_OF_NUMBER = 2, {1: 8, 5: 4}  # kinds of fields, and how long those are that are neither text nor varint
LONGEST_VARINT = 10  # bytes
LARGEST_FIELD = 2**29 - 1
DEEPEST_GRAPH = 8  # bodies of If and Loop within each other; builds write one
MOST_FIELDS = 1 << 21  # of a graph, without the insides of values: SmolLM2's has 15,000; some 2 s
LONGEST_TEXT = 1024  # bytes, where the name of a domain, a file or a key is expected
ORT_FORMAT = b"ORTM"  # behind 4 bytes: a file of the runtime's own format, whatever its name is
PLACE_KEYS = frozenset({"location", "offset", "length"})  # the runtime knows more of them
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
REPLACEMENT = "\ufffd"
SENTENCEPIECE_SPACE = "\u2581"
LONGEST_CHARACTER = 4  # bytes in UTF-8
MOST_HELD_TOKENS = 32  # of bytes that become no character: a broken model's answer still streams
CONTEXT_TOKENS = 16  # of a prompt that text goes on from: enough that they hold a word
READ_BYTES = 4 << 20
MAX_JSON_BYTES = 16 << 20  # of a small file of the package
LARGEST_SEED = 2**31 - 1  # the runtime takes a C int
GREEDY_BELOW = 1e-5  # logits divided by less overflow float32
SMALLEST_TOP_P = 1e-6  # above 0 in float32, and already the single best token

# Bounds of one call, checked before anything is rendered, tokenised or generated.
MOST_ROWS = 1024
MOST_CHOICES = 16
MOST_NEW_TOKENS = 2**18  # rows x n x max_tokens
MOST_MESSAGES = 10_000
MOST_VALUES = 100_000  # in one row, at all depths together
DEEPEST_NESTING = 16  # a text part of a message is at 5
LARGEST_WHOLE = 2**63 - 1
MOST_STOPS = 16
LONGEST_STOP = 1024  # characters; every piece of the answer is compared with every stop string
LONG_TOKEN = 8  # characters of a token, far above the mean of ordinary text
CUT_TOKENS = 64
LONGEST_SHOWN = 120  # characters of what was found, in an error

# Bounds of one rendering of a chat template, which is a program of a stranger's. See `BoundedEnvironment`.
RENDER_SECONDS = 10.0  # ordinary ones take milliseconds
MOST_MADE = 64 << 20  # characters of all texts on the way, and ITEM for an item of a list: at most some 500 MB
ITEM = 16
STEP = 8  # so that there are at most 8 million
DEEPEST_VALUE = 100  # C code that hashes, compares or frees what is far deeper overflows its stack
MOST_KNOWN = 4096
CONTAINERS = (dict, list, tuple, set, frozenset)
MOST_BITS = 10_000  # of a whole number
MOST_DIGITS = 300
WIDEST = 10_000  # characters that a text is padded or indented to
LONGEST_PATH = 8  # dots in the name of an attribute
LONGEST_SLOW = 100_000  # characters for filters that take quadratic time
LONGEST_TEMPLATE = 1 << 18  # characters; published ones have up to 30,000
LONGEST_REASON = 500  # characters of an error of a template or of a library

# Bounds of one text in the tokenizer, whose rules are a stranger's as well.
TOKENIZE_SECONDS = 30.0  # a megabyte takes about one
MOST_TOKENISED = 64 << 20  # bytes, as far as the rules may make a text grow: some 2 GB while it is encoded
USUAL_GROWTH = 16
MOST_STUCK = 2

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")  # two names of one thing
SAMPLING_FIELDS = frozenset({"temperature", "stop", "top_p", "top_k", "seed", *LIMIT_FIELDS})
UNUSED_FIELDS = ("model", "user")  # OpenAI's clients send them; neither could change the answer of one model
PENALTIES = ("frequency_penalty", "presence_penalty")
# What is not supported, with the values that ask for nothing; None does, too.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "logit_bias": ({},),
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "params": ({},),
}
COMMON_FIELDS = SAMPLING_FIELDS | {"stream", *UNUSED_FIELDS, *PENALTIES, *UNSUPPORTED}
PROMPT_FIELDS = COMMON_FIELDS | {"prompt"}
CHAT_FIELDS = COMMON_FIELDS | {"messages", "n", "custom_inputs"}
WHOLE_FIELDS = ("n", "top_k", "seed", *LIMIT_FIELDS)
PROVIDERS = ("cpu", "cuda")
MESSAGE_FIELDS = frozenset({"role", "content", "name", "refusal", "tool_calls", "tool_call_id"})
PART_FIELDS = frozenset({"type", "text"})
ROLES = ("system", "user", "assistant")


class RequestError(MlflowException, ValueError):
    """A request that cannot be answered; the message names the field, what was found and what is expected.

    MLflow's scoring server passes an MlflowException on with its HTTP status, 400, and hides every other error.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @classmethod
    def about(cls, field: str, found: object, expected: str) -> "RequestError":
        return cls(f"{field}: {shown(found)} was found; {expected} is expected")

    def serialize_as_json(self) -> str:
        """Return the body of the HTTP answer without the request, which the scoring server writes into `message`."""
        self.message = str(self)
        return str(super().serialize_as_json())  # type: ignore[no-untyped-call]


class IntegrityError(RuntimeError):
    """A file of the package is missing, changed or was added since it was built, or says what no build writes."""


class TokenizerError(RuntimeError):
    """The tokenizer of the package fails, or gives tokens that its model does not have."""


class TemplateFileError(RuntimeError):
    """The chat template of the package cannot be compiled."""

    @classmethod
    def about(cls, found: str, expected: str) -> "TemplateFileError":
        return cls(f"the chat template in {CHAT_FORMAT} {found}; {expected} is expected; build the package again")


class TemplateLimitError(RuntimeError):
    """A chat template makes more, or takes longer, than a rendering may."""

    @classmethod
    def about(cls, found: str, expected: str) -> "TemplateLimitError":
        return cls(f"the chat template {found}; {expected} is expected; shorten the chat, or correct the template")


class ProviderError(RuntimeError):
    """The package does not run where it is to run."""


@dataclass(frozen=True)
class Settings:
    """The model config, which a caller may override when loading.

    Attributes:
        name: the `model` field of answers.
        interface: `chat` (OpenAI's chat.completion) or `prompt` (a string in, a string out).
        max_tokens: new tokens for a request that names no limit, or fewer where the context leaves fewer.
        intra_op_num_threads: threads of one operator; None is the runtime's own choice.
        apply_chat_template: prompt interface: the prompt is a user's turn (True) or raw text to go on from (False).
        execution_provider: `cpu` or `cuda`; None is what the package was built for.
    """

    name: str
    interface: str
    max_tokens: int
    intra_op_num_threads: int | None
    apply_chat_template: bool
    execution_provider: str | None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and how many answers there are.

    Attributes:
        temperature: 0 is greedy, and then `top_p`, `top_k` and `seed` change nothing.
        seed: of the first choice; the next one has the next seed. None is a new one every time.
    """

    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: tuple[str, ...]
    n: int


@dataclass(frozen=True)
class Request:
    """One row, checked.

    Attributes:
        prompt_ids: int32 `[prompt]`.
        max_tokens: new tokens at most; they fit in the context window.
    """

    prompt_ids: npt.NDArray[np.int32]
    max_tokens: int
    sampling: Sampling


# ---------------------------------------------------------------------------------------------- the package


def verify_package(folder: Path) -> None:
    """Compare every file of the package with its manifest, byte by byte.

    Nothing in it is a link, nor is the folder, nor the one that it lies in (`artifacts`): a build, and what MLflow
    downloads, has none. A second name of a file (a hard link) cannot be told from the first, and has the same bytes.

    Raises:
        IntegrityError: names the first file that is a link, is missing, was added, or has another size or sha256.
    """
    for path in (folder.parent, folder, *folder.rglob("*")):
        if path.is_symlink():
            raise _damaged(folder, path.name, "is a link")
    expected = _read_manifest(folder)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found.pop(MANIFEST)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise _damaged(folder, name, "is missing")
        if name not in expected:
            raise _damaged(folder, name, "is in no manifest")
        if found[name].stat().st_size != expected[name][1]:
            raise _damaged(folder, name, "has another size")
    largest_first = sorted(found, key=lambda name: -expected[name][1])
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing releases the GIL
        digests = pool.map(lambda name: _sha256_of(found[name]), largest_first)
        for name, digest in zip(largest_first, digests, strict=True):
            if digest != expected[name][0]:
                raise _damaged(folder, name, "was changed")


def verify_model(folder: Path) -> None:
    """Compare this wrapper and the other small files beside `MLmodel` with the model's manifest, if it is in one.

    MLflow adds files of its own when it loads a model, so what is not listed is not looked at.

    Raises:
        IntegrityError: names the first file that is missing or has another sha256.
    """
    if not (folder / MANIFEST).exists():  # a model that slmpack did not log
        return
    for name, (sha256, _) in sorted(_read_manifest(folder).items()):
        path = folder / name
        if not os.path.isfile(path):  # noqa: PTH113 - Path's own raises for a long name
            raise _damaged(folder, name, "is missing")
        if _sha256_of(path) != sha256:
            raise _damaged(folder, name, "was changed")


def read_config(folder: Path) -> dict[str, Any]:
    """Return genai_config.json, once every key and value of it is one that a build writes.

    The runtime knows more keys. Some make it open a library (`custom_ops_library`) or files that lie elsewhere, so a
    package from a stranger must not get as far as the runtime with them. Of a key that is there twice it takes both.

    Raises:
        IntegrityError: names the first key that is not known, is missing, or whose value is of another kind.
    """
    config = _read_json(folder, GENAI_CONFIG)
    _require_known(config, CONFIG_KEYS, "")
    ends = config["model"]["eos_token_id"]
    if not (listed := ends if isinstance(ends, list) else [ends]) or max(listed) >= config["model"]["vocab_size"]:
        raise _unknown("model.eos_token_id", ends)
    return dict(config)


def _require_known(value: Any, known: Any, place: str) -> None:
    if isinstance(known, tuple):
        known = known[isinstance(value, list)]
    if isinstance(known, dict) and isinstance(value, dict):
        for key in (*value, *sorted(known.keys() & CONFIG_NEEDED)):
            inside = f"{place}.{key}".removeprefix(".")
            if key not in known:
                raise _unknown(inside, value[key])
            _require_known(value.get(key), known[key], inside)
    elif isinstance(known, list) and isinstance(value, list):
        for item in value:
            _require_known(item, known[0], place)
    elif not _is_one(value, known):
        raise _unknown(place, value)


def _is_one(value: Any, known: Any) -> bool:
    if isinstance(known, re.Pattern):
        return isinstance(value, str) and known.fullmatch(value) is not None
    if isinstance(known, range):
        return type(value) is int and value in known
    if known is float:
        return type(value) in (int, float) and abs(value) < COUNT.stop  # NaN is not
    return known is bool and type(value) is bool


def _unknown(place: str, value: object) -> IntegrityError:
    return IntegrityError(
        f"{GENAI_CONFIG} has {shown(value)} at {place[:LONGEST_SHOWN]!r}; only what a build writes is expected; "
        "build the package again"
    )


def verify_graph(folder: Path) -> None:
    """Look at the graph before the runtime opens it: no operator of others, no file but the package's own.

    A package from a stranger has a manifest that fits it, and the runtime believes its graph: it reads files that lie
    elsewhere, and nested functions overflow its stack (3,000 of them, onnxruntime 1.31.1). The weights are not read.

    Raises:
        IntegrityError: names what no build writes.
    """
    path = folder / str(read_config(folder)["model"]["decoder"]["filename"])
    if path.is_symlink() or not path.is_file() or not path.stat().st_size:
        raise _damaged(folder, path.name, "is no file with a graph")
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # unmapped with the last view of it
    try:
        _GraphReader(folder, path.name).read(data)
    except (ValueError, IndexError, TypeError) as error:
        raise _damaged(folder, path.name, f"is no ONNX graph ({error})") from None


class _GraphReader:
    """Reads the wire format of protobuf as far as a graph is to be looked at; `onnx` is not installed for consumers."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._waiting: list[tuple[memoryview, int]] = []  # graphs, and how deep they are
        self._left = MOST_FIELDS
        self._sizes: dict[str, int] = {}  # of files with values, bytes

    def read(self, data: memoryview) -> None:
        """Look at every graph, however deep."""
        if data[4:8] == ORT_FORMAT:
            raise ValueError("the runtime's own format")
        for number, value in self._fields(data):
            if number in (MODEL_TRAINING, MODEL_FUNCTIONS):
                raise self._refused("has functions or training of its own")
            if number == MODEL_GRAPH:
                self._waiting.append((value, 0))
        if not self._waiting:
            raise ValueError("without a graph")
        while self._waiting:
            graph, depth = self._waiting.pop()
            if depth > DEEPEST_GRAPH:
                raise self._refused(f"has graphs within graphs, {depth} deep")
            self._read_graph(graph, depth)

    def _read_graph(self, graph: memoryview, depth: int) -> None:
        for number, value in self._fields(graph):
            if number == GRAPH_NODES:
                self._read_node(value, depth)
            elif number == GRAPH_TENSORS:
                self._read_tensor(value, inner=depth > 0)
            elif number == GRAPH_SPARSE:
                self._read_sparse(value)

    def _read_node(self, node: memoryview, depth: int) -> None:
        for number, value in self._fields(node):
            if number == NODE_DOMAIN and (domain := _text(value)) not in OPERATOR_DOMAINS:
                raise self._refused(f"has an operator of the domain {shown(domain)}")
            if number == NODE_ATTRIBUTES:
                self._read_attribute(value, depth)

    def _read_attribute(self, attribute: memoryview, depth: int) -> None:
        for number, value in self._fields(attribute):
            if number in ATTRIBUTE_TENSORS:
                self._read_tensor(value, inner=True)
            elif number in ATTRIBUTE_GRAPHS:
                self._waiting.append((value, depth + 1))
            elif number in ATTRIBUTE_SPARSE:
                self._read_sparse(value)

    def _read_sparse(self, tensor: memoryview) -> None:
        for number, value in self._fields(tensor):
            if number in SPARSE_PARTS:
                self._read_tensor(value, inner=True)

    def _read_tensor(self, tensor: memoryview, *, inner: bool) -> None:
        """Look where a tensor's values are: only the graph's own may lie in another file, which is beside it."""
        entries: list[dict[int, str]] = []
        external = False
        for number, value in self._fields(tensor):
            external |= number == TENSOR_LOCATION and value == EXTERNAL
            if number == TENSOR_PLACE:
                entries.append({key: _text(each) for key, each in self._fields(value)})
        if not external and not entries:
            return
        place = {entry.get(1, ""): entry.get(2, "") for entry in entries}
        location = place.get("location", "")
        if inner or not PLAIN_FILE.fullmatch(location):
            raise self._refused(f"has values in the file {shown(location)}")
        if len(place) < len(entries) or not place.keys() <= PLACE_KEYS:
            raise self._refused(f"has values in {location} by keys such as {shown(entries[-1].get(1, ''))}")
        if sum(_whole(place.get(key, "0")) for key in ("offset", "length")) > self._size_of(location):
            raise self._refused(f"has values beyond the end of {location}")

    def _size_of(self, location: str) -> int:
        if location not in self._sizes:
            file = self._folder / location
            if file.is_symlink() or not file.is_file():
                raise self._refused(f"has values in {location}, which is no file of the package")
            self._sizes[location] = file.stat().st_size
        return self._sizes[location]

    def _refused(self, found: str) -> IntegrityError:
        return _damaged(self._folder, self._name, f"{found}, which no build writes")

    def _fields(self, data: memoryview) -> Iterator[tuple[int, Any]]:
        """Yield number and value of every field: bytes as a view, a varint as a number; other numbers are left out.

        Source: protobuf.dev, "Encoding".

        Raises:
            ValueError: it is cut off, has a group, or there are too many.
        """
        at, end = 0, len(data)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {MOST_FIELDS:,} fields")
            tag, at = _varint(data, at)
            number, kind = tag >> 3, tag & 7
            if number > LARGEST_FIELD:  # of which other readers see the lower bits only
                raise ValueError("a field without a number")
            if kind == 0:
                value, at = _varint(data, at)
                yield number, value
            elif kind == TEXT_OF:
                size, at = _varint(data, at)
                yield number, data[at : at + size]
                at += size
            elif kind in BYTES_OF_NUMBER:
                at += BYTES_OF_NUMBER[kind]
            else:
                raise ValueError("a group, or a kind of field that there is not")
        if at > end:
            raise ValueError("cut off")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number, and where the next field begins."""
    value = data[at]
    if value < 0x80:  # nearly every one
        return value, at + 1
    value &= 0x7F
    for place in range(1, LONGEST_VARINT):
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number without an end")


def _text(value: Any) -> str:
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"a name of {len(value)} bytes")
    return str(value, "utf-8")


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{shown(text)} where a number of bytes is expected")
    return int(text)


def _read_json(folder: Path, name: str) -> Any:
    """Read a small file of the package, which may be a stranger's: one of a plain size, nested no deeper than Python.

    Raises:
        IntegrityError: it cannot be read, is no JSON, is too large or nested too deep, or has a key twice: the runtime
            sees both.
    """
    path = folder / name
    if path.exists() and not path.is_file():  # opening a named pipe waits for a writer
        raise _damaged(folder, name, "is no regular file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise _damaged(folder, name, f"has more than {MAX_JSON_BYTES:,} bytes")
        return json.loads(content, object_pairs_hook=_each_once)
    except RecursionError:
        raise _damaged(folder, name, "is nested too deep") from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, name, f"cannot be read ({type(error).__name__}: {_cut(str(error))})") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is there twice")
        found[key] = value
    return found


def _read_chat_format(folder: Path) -> dict[str, Any]:
    found = _read_json(folder, CHAT_FORMAT)
    for name, kinds in CHAT_FORMAT_KINDS.items():
        if not isinstance(found, dict) or name not in found or not isinstance(found[name], kinds):
            raise _damaged(folder, CHAT_FORMAT, f"has no {name} as a build writes it")
    if not all(isinstance(each, str | list) for each in found["special_tokens"].values()):
        raise _damaged(folder, CHAT_FORMAT, "has special tokens that are no text")
    return dict(found)


def _read_manifest(folder: Path) -> dict[str, tuple[str, int]]:
    found = _read_json(folder, MANIFEST)
    try:
        files = {file["name"]: (file["sha256"], file["size_bytes"]) for file in found["files"]}
    except (KeyError, TypeError) as error:
        raise _damaged(folder, MANIFEST, f"cannot be read ({type(error).__name__})") from error
    if any(type(each) is not kind for name, (digest, size) in files.items()
           for each, kind in ((name, str), (digest, str), (size, int))):  # fmt: skip
        raise _damaged(folder, MANIFEST, "names no files with digests and sizes")
    return files


def _damaged(folder: Path, name: str, what: str) -> IntegrityError:
    name = name if name.isprintable() and len(name) <= LONGEST_SHOWN else shown(name)
    return IntegrityError(f"{name} {what}; {folder.name} must be as it was built; fetch the model again")


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


class Texts:
    """The texts of a package: chats and text to token ids, token ids to text. A server needs no more of the wrapper."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        model = read_config(folder)["model"]
        self.decoder: dict[str, Any] = model["decoder"]
        self.context_length: int = model["context_length"]
        self.vocabulary: int = model["vocab_size"]
        ends = model["eos_token_id"]
        self.end_tokens = frozenset(ends if isinstance(ends, list) else [ends])
        self.template = ChatTemplate(folder)
        self.tokenizer = TextTokenizer(folder)
        # Raw text goes on from the prompt, so the space before its first word is kept; an answer begins anew.
        self.continues = settings.interface == "prompt" and not settings.apply_chat_template

    def render_chat(self, messages: list[Any], tools: list[Any] | None = None) -> str:
        """Return the prompt by the chat template.

        Raises:
            RequestError: the template refuses the messages.
        """
        try:
            return self.template.render(list(messages), tools)
        except TemplateLimitError as error:
            raise RequestError(f"messages: {error}") from error
        except Exception as error:  # a template refuses by raising, and a stranger's may raise anything
            reason = _cut(" ".join(str(error)[:READ_BYTES].split())) or type(error).__name__
            raise RequestError(f"messages: the model's chat template refuses them: {reason}") from error

    def encode_prompt(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of a rendered prompt, int32 `[prompt]`; it gets no BOS of its own."""
        return self._checked(self.tokenizer.encode(text))

    def encode_text(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of raw text, int32 `[prompt]`, with the special tokens that the tokenizer adds."""
        return self._checked(self.tokenizer.encode(text, add_special_tokens=True))

    def stream_text(self, prompt_ids: npt.NDArray[np.int32]) -> "TextStream":
        """Return the stream that an answer to this prompt is decoded by."""
        return TextStream(self.tokenizer, prompt_ids[-CONTEXT_TOKENS:].tolist() if self.continues else [])

    def _checked(self, ids: list[int]) -> npt.NDArray[np.int32]:
        if wrong := [token for token in ids if token >= self.vocabulary]:
            raise TokenizerError(
                f"the tokenizer gives the token id {wrong[0]}; the model knows 0 to {self.vocabulary - 1}; "
                "the tokenizer does not fit the model, build the package again"
            )
        return np.array(ids, dtype=np.int32)


class Runtime(Texts):
    """A loaded package, which answers, too; `device` is `cpu` or `cuda`, where it runs."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder, settings)
        config = og.Config(str(folder))
        self.device = settings.execution_provider or provider_of(self.decoder)
        if self.device == "cpu":
            config.clear_providers()
        if settings.intra_op_num_threads:
            session = {"intra_op_num_threads": settings.intra_op_num_threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = _open_model(config, self.device)


def provider_of(decoder: dict[str, dict[str, list[dict[str, object]]]]) -> str:
    options = decoder.get("session_options", {}).get("provider_options", [])
    return "cuda" if any("cuda" in option for option in options) else "cpu"


def _open_model(config: og.Config, provider: str) -> og.Model:
    """Load the model, and make sure that it runs where it is to run.

    Raises:
        ProviderError: it does not; the message says what CUDA lacks.
    """
    if provider == "cpu":
        return og.Model(config)
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # NVIDIA's packages lie where no loader looks
    advice = (
        "an NVIDIA GPU with its driver is expected, and the packages of requirements.txt; "
        "to run it on a CPU, load it with model_config={'execution_provider': 'cpu'}"
    )
    try:
        model = og.Model(config)
    except RuntimeError as error:
        raise ProviderError(f"execution_provider cuda: {' '.join(str(error).split())}; {advice}") from error
    if (found := str(model.device_type).lower()) != provider:
        raise ProviderError(f"execution_provider {provider}: the session runs on {found}; {advice}")
    return model


# ---------------------------------------------------------------------------------------------- text and token ids


class ChatTemplate:
    """Renders chats by Jinja2's immutable sandbox, set up as transformers 5 sets it up for chat templates.

    Source: transformers 5.22, utils/chat_template_utils.py: `_cached_compile_jinja_template`, `render_jinja_template`.

    Args:
        limit_seconds: after this long a rendering ends with an error.

    Raises:
        TemplateFileError: a template of the package does not compile.
    """

    def __init__(self, folder: Path, limit_seconds: float = RENDER_SECONDS) -> None:
        settings = _read_chat_format(folder)
        self._special_tokens: dict[str, str] = settings["special_tokens"]
        self._environment = template_environment()
        self._limit_seconds = limit_seconds
        self._plain = self._compiled(settings["chat_template"])
        with_tools = settings["tool_template"]
        self._with_tools = self._plain if with_tools is None else self._compiled(with_tools)

    def _compiled(self, text: str) -> Template:
        if len(text) > LONGEST_TEMPLATE:
            raise TemplateFileError.about(f"has {len(text)} characters", f"at most {LONGEST_TEMPLATE}")
        self._environment.budget.renew(self._limit_seconds)
        try:
            return self._environment.from_string(text)
        except Exception as error:  # Jinja's own, and Python's: RecursionError, SyntaxError, MemoryError
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TemplateFileError.about(f"does not compile ({_cut(reason)})", "a Jinja template") from error

    def render(self, messages: list[Any], tools: list[Any] | None = None, *, add_generation_prompt: bool = True) -> str:
        """Return the prompt.

        Raises:
            TemplateError: there is no message. A template may raise this, or anything else, to refuse the messages.
            TemplateLimitError: the rendering takes too long, or makes too much.
        """
        if not messages:
            raise TemplateError("no message was found; one or more is expected")
        template = self._plain if tools is None else self._with_tools
        self._environment.budget.renew(self._limit_seconds)
        variables = {
            "messages": self._environment.weighed([_with_reasoning(message) for message in messages]),
            "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt, **self._special_tokens,
        }  # fmt: skip
        # `render` itself would rewrite the traceback of an error, which takes seconds where a macro calls itself.
        return self._environment.concat(template.root_render_func(template.new_context(variables)))


def _with_reasoning(message: Row) -> Row:
    """Return the message with its reasoning under the two names that templates read, whichever name it came by."""
    found = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def template_environment() -> "BoundedEnvironment":
    """Return the sandbox: trimmed blocks, loop controls, `{% generation %}`, and four functions of transformers'."""
    environment = BoundedEnvironment()
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _DictFunction(),
        "namespace": _Namespace,
    }
    del environment.globals["lipsum"]  # random text, and as much as one likes
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote; a prompt is the same without it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's `namespace`, which stores nothing under a name that begins with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        given = dict(*rest, **values)
        for name in given:
            _require_public(name)
        Namespace.__init__(self, given)

    def __repr__(self) -> str:
        return "<Namespace>"  # its values may hold other namespaces, and each many times

    def __setitem__(self, name: str, value: object) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace stores no name that begins with an underscore, but found {name!r}")


class _DictFunction:
    """`dict(...)` and `dict.fromkeys(...)`, without the class that they belong to."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _tojson(
    value: object, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > LONGEST_STOP:
        raise TemplateLimitError.about(f"has a form of a date of {len(form)} characters", f"at most {LONGEST_STOP}")
    return datetime.now().strftime(form)


# ---------------------------------------------------------------------------------------------- a template's budget


class _Budget(threading.local):
    """What a rendering may still make and how long it may still take; a thread renders one chat at a time."""

    def __init__(self) -> None:
        self.renew(RENDER_SECONDS)

    def renew(self, seconds: float) -> None:
        self.left = MOST_MADE
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.known: dict[int, tuple[object, int, int]] = {}  # containers, with their weight and depth

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise TemplateLimitError.about(f"makes more than {MOST_MADE} characters on the way", "at most that many")

    def tick(self) -> bool:
        """Count a step, and return True."""
        self.left -= STEP
        if self.left < 0:
            self.spend(0)
        if time.monotonic() > self.deadline:
            raise TemplateLimitError.about(f"does not end within {self.seconds:g} s", "a prompt")
        return True


class _MeasuredCode(CodeGenerator):
    """Writes Python that asks the environment about each value which may be larger than those it is made of."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja names it
        function = "markup_join" if frame.eval_ctx.autoescape else "str_join"
        if frame.eval_ctx.volatile:
            function = "(markup_join if context.eval_ctx.volatile else str_join)"
        self.write(f"{function}(environment.joinable((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write(")))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802 - Jinja names it
        self._measured(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802 - Jinja names it
        self._measured(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802 - Jinja names it
        if node.ctx == "load":
            self._measured(super().visit_Tuple, node, frame)
        else:  # names that something is assigned to
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802 - Jinja names it
        self._measured(super().visit_Getitem, node, frame)

    def _measured(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice):
            return visit(node, frame)
        self.write("environment.checked(")
        visit(node, frame)
        self.write(")")
        return None


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which a stranger's template cannot take all memory or time: every rendering has a budget.

    Loops, calls and filters are steps, and each looks at the clock. What may grow is paid for before it is
    made, by characters and items; and a container's weight, all that is in it counted as often as it is there, is
    bounded, since C code that compares or writes it out cannot be interrupted.
    """

    code_generator_class = _MeasuredCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        self.budget = _Budget()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=self.writable
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded_filter(name, function) for name, function in self.filters.items()}

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> Any:
        step = nodes.EnvironmentAttribute("budget.tick()")  # written as it is
        calls: Iterator[Any] = source.find_all((nodes.Call, nodes.Filter, nodes.Test))
        for call in list(calls):
            if call.dyn_args is not None:  # f(*text) makes a tuple of letters
                call.dyn_args = nodes.Filter(call.dyn_args, "list", [], [], None, None, lineno=call.lineno)
        for loop in list(source.find_all(nodes.For)):
            loop.body.insert(0, nodes.ExprStmt(step).set_lineno(loop.lineno))
            if loop.test is not None:
                loop.test = nodes.And(step, loop.test)
        return super()._generate(source, *args, **options)

    def checked(self, value: Any) -> Any:
        """Return a value that was just made, unless it is too large; its own items are paid for."""
        if isinstance(value, str):
            self.budget.spend(ITEM + len(value))
        elif isinstance(value, int):
            if value.bit_length() > MOST_BITS:
                raise TemplateLimitError.about(
                    f"makes a whole number of {value.bit_length()} bits", f"at most {MOST_BITS}"
                )
        elif isinstance(value, CONTAINERS):
            self.budget.spend(ITEM * (1 + len(value)))
            self.weigh(value)
        return value

    def weigh(self, value: Any) -> tuple[int, int]:
        """Return the characters and items in a value, each counted as often as it is there, and how deep it is.

        Raises:
            TemplateLimitError: they are more than a rendering may make, or too deep for the C code that follows them.
        """
        known = self.budget.known
        if (found := known.get(id(value))) is not None:
            return found[1:]
        weight = depth = deepest = 0
        level = [value]
        while level:
            below: list[Any] = []
            for each in level:
                weight += ITEM
                if isinstance(each, str):
                    weight += len(each)
                elif isinstance(each, CONTAINERS):
                    if id(each) in known:
                        _, more, levels = known[id(each)]
                        weight, deepest = weight + more, max(deepest, depth + levels)
                    else:
                        below.extend(each)
                        if isinstance(each, dict):
                            below.extend(each.values())
                if weight + ITEM * len(below) > MOST_MADE:
                    raise TemplateLimitError.about(
                        f"makes a value of more than {MOST_MADE} characters", "at most that many"
                    )
            depth += 1
            if max(depth, deepest) > DEEPEST_VALUE:
                raise TemplateLimitError.about(f"makes lists {DEEPEST_VALUE} deep in each other", "less")
            level = below
        if len(known) >= MOST_KNOWN:
            known.clear()
        if isinstance(value, dict | list | tuple):
            known[id(value)] = value, weight, max(depth, deepest)  # held, so that no other has its id
        return weight, max(depth, deepest)

    def weighed(self, messages: list[Any]) -> list[Any]:
        """Return messages, each of which is known from now on: templates make lists of them again and again."""
        for message in messages:
            texts = [*message, *message.values()]
            if all(type(text) is str for text in texts):  # as most are
                self.budget.known[id(message)] = message, ITEM * (1 + len(texts)) + sum(map(len, texts)), 2
            else:
                self.weigh(message)
        self.weigh(messages)
        return messages

    def spread(self, value: Any) -> None:
        """Pay for the list of the letters of a text; other values are as many already."""
        if isinstance(value, str):
            self.budget.spend(ITEM * len(value))

    def writable(self, value: Any) -> Any:
        """Return a value that is about to become text, paid for unless it is text."""
        if not isinstance(value, str):
            self.budget.spend(self.weigh(value)[0])
        return value

    def joinable(self, values: Iterable[Any]) -> list[Any]:
        """Return values that are about to become one text, paid for."""
        self.spread(values)
        found = list(values)
        self.budget.spend(ITEM + sum(len(each) if isinstance(each, str) else self.weigh(each)[0] for each in found))
        return found

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a rendering, a block or a macro has written."""
        kept, size, most = [], 0, self.budget.left
        for piece in pieces:
            kept.append(piece)
            size += len(piece)
            if size > most:
                break
        self.budget.spend(size)
        return "".join(kept)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Say whether a template may have an attribute; of texts and numbers those that were looked at here."""
        if isinstance(obj, str | bytes | int | float) and not (isinstance(obj, str) and attr in TEXT_METHODS):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a macro or a method, a step; its result is checked."""
        self.budget.tick()
        own = getattr(obj, "__self__", None)
        if isinstance(own, str) and (require := _METHOD_RULES.get(obj.__name__)):
            args = require(self, own, *args, **kwargs) or args
        return self.checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what can be larger than both operands, once it is known that it is not too large."""
        if type(left) is str and type(right) is str and operator == "+":  # by far the most frequent
            self.budget.spend(ITEM + len(left) + len(right))
            return left + right
        _OPERATOR_RULES[operator](self, left, right)
        result = super().call_binop(context, operator, left, right)
        if operator == "+" and isinstance(result, list | tuple):  # as heavy as both, which saves a look at its items
            weights, depths = zip(self.weigh(left), self.weigh(right), strict=True)
            self.budget.known[id(result)] = result, sum(weights), max(depths)
        return self.checked(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format` or `str.format_map` with Jinja's sandbox, each field of which is paid for."""
        if super().wrap_str_format(value) is None or type(value.__self__) is not str:  # no Markup's
            return None
        text, formatter = value.__self__, _Formatter(self)

        def bounded(*args: Any, **kwargs: Any) -> str:
            by_name = value.__name__ == "format_map"
            return str(formatter.vformat(text, () if by_name else args, args[0] if by_name else kwargs))

        return bounded


class _Formatter(SandboxedFormatter):
    """Formats as `str.format` does, with widths that are not gigantic."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        super().__init__(environment)
        self._environment = environment

    def format_field(self, value: Any, format_spec: str) -> Any:
        _require_widths(format_spec)
        return self._environment.checked(super().format_field(self._environment.writable(value), format_spec))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(self._environment.writable(value), conversion)


class _Lazy:
    """What a filter makes item by item, as a generator does, each of them a step; filters of it are not endless."""

    def __init__(self, environment: BoundedEnvironment, items: Iterator[Any], depth: int) -> None:
        if depth > DEEPEST_VALUE:  # each asks the one below it, and so they are freed, too
            raise TemplateLimitError.about(f"makes {DEEPEST_VALUE} filters of each other", "less")
        self._environment, self._items, self.depth = environment, items, depth

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._environment.budget.tick()
        return next(self._items)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that is a step, and whose result is checked; nor is it computed when a template is compiled."""
    passed = {"context": lambda context: context, "eval_context": lambda context: context.eval_ctx,
              "environment": lambda context: context.environment}  # fmt: skip
    first = passed.get(getattr(getattr(function, "jinja_pass_arg", None), "name", ""))
    require = _FILTER_RULES.get(name)

    @pass_context
    def bounded(context: Context, value: Any = None, *args: Any, **kwargs: Any) -> Any:
        environment: Any = context.environment
        environment.budget.tick()
        if name in ATTRIBUTE_PLACES:
            _require_short_path(kwargs.get("attribute", next(iter(args[ATTRIBUTE_PLACES[name] :]), None)))
        if isinstance(value, _Lazy) and name in EAGER_FILTERS - LAZY_FILTERS:
            value = environment.checked(list(value))
        elif name in EAGER_FILTERS:
            environment.spread(value)
        if name in TEXT_FILTERS:
            environment.writable(value)
        if require is not None:
            args = require(environment, value, *args, **kwargs) or args
        result = function(*([] if first is None else [first(context)]), value, *args, **kwargs)
        if isinstance(result, GeneratorType):
            depth = max((each.depth for each in (value, *args, *kwargs.values()) if isinstance(each, _Lazy)), default=0)
            return _Lazy(environment, result, depth + 1)
        return environment.checked(result)

    return bounded


# What a call would make, before it is made.


def _require_width(*widths: Any) -> None:
    for width in widths:
        if isinstance(width, int) and abs(width) > WIDEST:
            raise TemplateLimitError.about(f"makes the width {shown(width)}", f"at most {WIDEST}")


def _require_widths(form: str) -> None:
    if wide := re.search(r"\d{5,}", form):
        raise TemplateLimitError.about(f"makes the width {shown(wide[0])}", f"at most {WIDEST}")


def _require_short_path(attribute: Any) -> None:
    if isinstance(attribute, str) and attribute.count(".") > LONGEST_PATH:  # looked up in every item, without a step
        raise TemplateLimitError.about(f"has an attribute of {attribute.count('.')} dots", f"at most {LONGEST_PATH}")


def _require_padding(environment: BoundedEnvironment, text: Any, width: Any = 0, *_: Any, **named: Any) -> None:
    _require_width(width, *named.values())


def _require_replacement(environment: BoundedEnvironment, text: Any, old: Any, new: Any, *_: Any, **named: Any) -> None:
    if not all(isinstance(each, str) for each in (text, old, new)):
        text, old, new = (str(environment.writable(each)) for each in (text, old, new))
    environment.budget.spend(text.count(old) * len(new))


def _joined_items(environment: BoundedEnvironment, between: str, items: Any) -> tuple[Any, ...]:
    found = environment.joinable(items)
    environment.budget.spend(len(between) * len(found))
    return (found,)


def _require_tabs(environment: BoundedEnvironment, text: str, tabsize: Any = 8) -> None:
    _require_width(tabsize)
    environment.budget.spend(text.count("\t") * int(tabsize))


def _require_pieces(environment: BoundedEnvironment, text: str, between: Any = None, *_: Any, **named: Any) -> None:
    between = named.get("sep", between)
    pieces = text.count(between) if isinstance(between, str) and between else len(text) // 2
    environment.budget.spend(ITEM * pieces)


def _require_indent(environment: BoundedEnvironment, text: Any, width: Any = 4, *_: Any, **named: Any) -> None:
    width = named.get("width", width)
    _require_width(width)
    size = len(width) if isinstance(width, str) else int(width)
    environment.budget.spend(size * (2 + str(text).count("\n")))


def _require_json(environment: BoundedEnvironment, value: Any, *args: Any, **named: Any) -> None:
    weight, depth = environment.weigh(value)
    indent, between = [*args, None, None][1], [*args, None, None, None][2]
    indent, between = named.get("indent", indent), named.get("separators", between)
    _require_width(indent)
    size = len(indent) if isinstance(indent, str) else int(indent or 0)
    environment.budget.spend(weight * (1 + (size * depth + environment.weigh(between)[0] * bool(between)) // ITEM))


def _require_sum(environment: BoundedEnvironment, value: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float) and isinstance(value, list | tuple):  # each item copies all before it
        environment.budget.spend(len(value) * environment.weigh(value)[0])


def _require_short_text(environment: BoundedEnvironment, value: Any, *args: Any, **named: Any) -> None:
    """Bound what Jinja does by loops of its own over a text, some of them in quadratic time."""
    sizes = [environment.weigh(each)[0] for each in (value, *args, *named.values())]
    if max(sizes) > LONGEST_SLOW:
        raise TemplateLimitError.about(f"has a filter for more than {LONGEST_SLOW} characters", "fewer")
    environment.budget.spend(sizes[0] * (ITEM + max([0, *sizes[1:]])))


def _require_number(environment: BoundedEnvironment, value: Any, precision: Any = 0, *_: Any, **named: Any) -> None:
    if isinstance(precision, int) and abs(precision) > MOST_DIGITS:
        raise TemplateLimitError.about(f"makes {shown(precision)} digits", f"at most {MOST_DIGITS}")


def _require_percent(environment: BoundedEnvironment, left: Any, right: Any) -> None:
    if not isinstance(left, str):
        return
    _require_widths(left)
    if "*" in left:
        _require_width(*(right if isinstance(right, tuple) else [right]))
    widest = max(map(int, re.findall(r"\d+", left)), default=WIDEST if "*" in left else 0)
    environment.budget.spend(left.count("%") * (widest + environment.weigh(right)[0]))


def _require_format(environment: BoundedEnvironment, value: Any, *args: Any, **named: Any) -> None:
    _require_percent(environment, str(value), named or args)


def _require_sum_of_two(environment: BoundedEnvironment, left: Any, right: Any) -> None:
    """Pay for a joined text or list; the weight of a list is that of both, and need not be looked for."""
    if isinstance(left, str) and isinstance(right, str):
        environment.budget.spend(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        environment.budget.spend(ITEM * (len(left) + len(right)))


def _require_product(environment: BoundedEnvironment, left: Any, right: Any) -> None:
    for times, each in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(each, str | list | tuple):
            environment.budget.spend(max(times, 0) * environment.weigh(each)[0])
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MOST_BITS:
        raise TemplateLimitError.about("makes a product of many digits", f"at most {MOST_BITS} bits")


def _require_power(environment: BoundedEnvironment, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right * left.bit_length() > MOST_BITS:
        raise TemplateLimitError.about("makes a power of many digits", f"at most {MOST_BITS} bits")


_Rule: TypeAlias = Callable[..., "tuple[Any, ...] | None"]
_OPERATOR_RULES: dict[str, _Rule] = {
    "+": _require_sum_of_two, "*": _require_product, "**": _require_power, "%": _require_percent,
}  # fmt: skip
_METHOD_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _require_padding),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _require_pieces),
    "expandtabs": _require_tabs, "join": _joined_items, "replace": _require_replacement,
}  # fmt: skip
# Methods of text that templates may have: none of these makes more than a few times what it is given.
TEXT_METHODS = frozenset(_METHOD_RULES) | {
    "capitalize", "casefold", "count", "endswith", "find", "index", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "rfind", "rindex", "rpartition", "rstrip", "startswith", "strip", "swapcase", "title", "upper",
    *(name for name in dir(str) if name.startswith("is")),
}  # fmt: skip
EAGER_FILTERS = frozenset(
    {"batch", "dictsort", "groupby", "join", "list", "max", "min", "slice", "sort", "sum", "unique"}
)
# Filters that look an attribute up in every item, and where among their arguments its name is; `map` has it by name.
ATTRIBUTE_PLACES = {
    "groupby": 0, "join": 1, "map": 99, "max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2, "sum": 0,
    "unique": 1,
}  # fmt: skip
LAZY_FILTERS = frozenset({"batch", "slice", "unique"})
TEXT_FILTERS = frozenset({
    "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace",
    "safe", "string", "trim", "truncate", "upper",
})  # fmt: skip
_FILTER_RULES: dict[str, _Rule] = {
    "batch": _require_padding, "center": _require_padding, "slice": _require_padding, "format": _require_format,
    "indent": _require_indent, "replace": _require_replacement, "round": _require_number, "sum": _require_sum,
    "tojson": _require_json,
    **dict.fromkeys(("pprint", "striptags", "title", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"),
                    _require_short_text),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- the tokenizer


class _Worker:
    """A thread that makes calls, one after the other, and ends with the process at the latest."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_make_calls, args=(self._calls,), name="tokenizer", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    is_busy = is_alive  # once it is stopped

    def stop(self) -> None:
        self._calls.put(None)

    def run(self, call: Callable[[], Any], seconds: float) -> Any:
        """Return what the call returns, or raise what it raises; queue.Empty: it has not ended in time."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((call, answer))
        result, error = answer.get(timeout=seconds)
        if error is not None:
            raise error
        return result


def _make_calls(calls: "queue.SimpleQueue[Any]") -> None:
    while (asked := calls.get()) is not None:
        call, answer = asked
        try:
            answer.put((call(), None))
        except BaseException as error:  # a panic of Rust's is no Exception
            answer.put((None, error))
        del asked, call, answer  # a thread that waits holds no tokenizer


class TextTokenizer:
    """Turns text into token ids and back as transformers does, by the package's `tokenizer.json`.

    Its rules are a stranger's: expressions that backtrack without end, replacements that multiply a text. The library
    cannot be interrupted, so a text is bounded before it, and an encoding that takes too long is left to its thread.

    Args:
        limit_seconds: after this long an encoding ends with an error; None: no limit and no other thread, for a
            process that has a limit itself.

    Raises:
        TokenizerError: the library cannot load the file.
    """

    def __init__(self, folder: Path, limit_seconds: float | None = TOKENIZE_SECONDS) -> None:
        settings = _read_chat_format(folder)
        with _tokenizer_errors("load"):
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = settings["split_special_tokens"]
        self._limit_seconds = limit_seconds
        self._encode_growth = math.prod(map(self._growth_of, ("normalizer", "pre_tokenizer", "post_processor")))
        self._decode_growth = self._growth_of("decoder")
        decoder = self._tokenizer.decoder
        self._is_byte_level = decoder is not None and b"ByteLevel" in decoder.__getstate__()
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._stuck: list[_Worker] = []

    def _growth_of(self, part: str) -> int:
        component = getattr(self._tokenizer, part)
        return 1 if component is None else _growth(json.loads(component.__getstate__()))

    @cached_property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token's spelling; looked up once it is needed, since that takes a tenth of the load."""
        return max(len(text.encode()) for text in self._tokenizer.get_vocab())

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids; `add_special_tokens` adds what the tokenizer's post-processor adds, such as BOS.

        Raises:
            TokenizerError: the library fails, does not end in time, or would make too much of the text.
        """
        self._require_size(len(text.encode()), self._encode_growth)
        with _tokenizer_errors("encode"):
            # Of the two calls this one gives other threads their turn.
            call = partial(self._tokenizer.encode_batch, [text], add_special_tokens=add_special_tokens)
            return list(self._within_limit(call)[0].ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text, without special tokens; bytes that are no UTF-8 become U+FFFD."""
        if self._decode_growth > USUAL_GROWTH:
            self._require_size(len(ids) * self.longest_token_bytes, self._decode_growth)
        with _tokenizer_errors("decode"):
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _require_size(self, size: int, growth: int) -> None:
        if size * growth > MOST_TOKENISED:
            raise TokenizerError(
                f"{TOKENIZER} has rules that make up to {shown(size * growth)} bytes of {size}; at most "
                f"{MOST_TOKENISED} are expected; shorten the text, or correct the rules and build the package again"
            )

    def _within_limit(self, call: Callable[[], Any]) -> Any:
        """Call the library in another thread, and return what it returns, unless it takes too long."""
        if self._limit_seconds is None:
            return call()
        with self._lock:
            self._stuck = [worker for worker in self._stuck if worker.is_busy]
            if len(self._stuck) >= MOST_STUCK:
                raise TokenizerError(f"{TOKENIZER} has {len(self._stuck)} texts that it does not end with; none is "
                                     "expected; build the package again, with expressions that end")  # fmt: skip
            if self._worker is None or not self._worker.is_alive:  # a process that was forked has no other thread
                self._worker = _Worker()
                weakref.finalize(self, self._worker.stop)
            try:
                return self._worker.run(call, self._limit_seconds)
            except queue.Empty:
                self._stuck.append(self._worker)
                self._worker.stop()
                self._worker = None
        raise TokenizerError(f"{TOKENIZER} does not end with a text within {self._limit_seconds:g} s; token ids are "
                             "expected; build the package again, with expressions that end")  # fmt: skip

    def ends_within_character(self, ids: list[int]) -> bool:
        """Say whether the bytes of the last tokens begin a character that has more bytes."""
        spelt = b"".join(self.bytes_of(token) for token in ids[-LONGEST_CHARACTER:])
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(spelt)
        return bool(decoder.getstate()[0])

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that a token is spelt by."""
        spelling = self._tokenizer.id_to_token(token) or ""
        if match := re.fullmatch("<0x([0-9A-F]{2})>", spelling):  # byte fallback
            return bytes.fromhex(match[1])
        if self._is_byte_level:
            if all(letter in BYTE_LETTERS for letter in spelling):
                return bytes(BYTE_LETTERS[letter] for letter in spelling)
            return spelling.encode()  # a special token
        return spelling.replace(SENTENCEPIECE_SPACE, " ").encode()


@contextmanager
def _tokenizer_errors(action: str) -> Iterator[None]:
    """Translate what the library raises: Exception itself, or where its Rust code panics, no Exception at all."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, TokenizerError):
            raise
        if isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime":
            reason = _cut(" ".join(str(error).split()))
            raise TokenizerError(
                f"the tokenizer cannot {action} this: {reason}; a {TOKENIZER} that can is expected; "
                "build the package again"
            ) from error
        raise


def _growth(rules: Any) -> int:
    """Return how many times as long a tokenizer's step may make a text, at most; steps in a sequence multiply it."""
    if isinstance(rules, list):
        return math.prod(map(_growth, rules))
    if not isinstance(rules, dict):
        return 1
    own, kind = 1, rules.get("type")
    if kind == "Replace":
        pattern, content = rules.get("pattern") or {}, len(str(rules.get("content")).encode())
        own = max(1, -(-content // len(text.encode()))) if (text := pattern.get("String")) else 1 + content
    elif kind in ("Prepend", "Metaspace", "ByteLevel"):  # a space in each piece; bytes above 127 become two
        own = 2 if kind == "ByteLevel" else 1 + len(str(rules.get("prepend") or "\u2581").encode())
    elif kind == "Precompiled":
        texts = base64.b64decode(rules.get("precompiled_charsmap") or "")[4:].split(b"\0")
        own = max(map(len, texts))
    elif kind == "TemplateProcessing":
        own = max(1, len(rules.get("single") or ()))
    inner = (value for key, value in rules.items() if key in ("normalizers", "pretokenizers", "decoders", "processors"))
    return own * math.prod(map(_growth, inner))


def _byte_letters() -> dict[str, int]:
    """Return the letters by which byte-level tokenizers spell bytes: printable ones by themselves, others from U+0100.

    Source: huggingface/tokenizers, pre_tokenizers/byte_level.rs, `bytes_char`.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()


class TextStream:
    """Decodes tokens one at a time; the pieces joined are the text of all tokens decoded at once.

    A token's text depends on those before it (SentencePiece drops a space at the very beginning), so each is decoded
    behind the tokens of the last piece. What ends within a character is held back until the character is whole.

    Args:
        context: token ids that the text goes on from; none where it begins anew.
    """

    def __init__(self, tokenizer: TextTokenizer, context: list[int]) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._before = tokenizer.decode(context)
        self._fresh: list[int] = []
        self._given = 0  # characters of the fresh tokens that are out already

    def push(self, token: int) -> str:
        """Take the next token; return the text that no later token changes."""
        self._fresh.append(token)
        text = self._tokenizer.decode(self._context + self._fresh)
        whole = text.rstrip(REPLACEMENT)
        if text == whole or len(self._fresh) >= MOST_HELD_TOKENS:
            piece = text[len(self._before) + self._given :]
            self._begin_after(self._fresh)
            return piece
        # A run of byte tokens that is broken off decodes to U+FFFD from its very beginning: then nothing is ready.
        piece = whole[len(self._before) + self._given :] if whole.startswith(self._before) else ""
        self._given += len(piece)
        return piece

    def rest(self) -> str:
        """Return what was held back once no token follows; half a character is left out."""
        if not self._fresh or self._tokenizer.ends_within_character(self._fresh):
            return ""
        return self._tokenizer.decode(self._context + self._fresh)[len(self._before) + self._given :]

    def _begin_after(self, tokens: list[int]) -> None:
        before = self._tokenizer.decode(tokens)
        # Tokens without text, such as special ones, are no context: a space behind them would count as the first.
        self._context = tokens if before else self._context + tokens
        self._before = before or self._tokenizer.decode(self._context)
        self._fresh, self._given = [], 0


# ---------------------------------------------------------------------------------------------- the answer


class StopStrings:
    """Cuts a stream of text at the first stop string, and lets no part of one out early."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.hit = False
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> str:
        """Take the next text; return what is certain to come before any stop string."""
        text = self._held + piece
        if starts := [at for stop in self._stops if (at := text.find(stop)) >= 0]:
            self.hit, self._held = True, ""
            return text[: min(starts)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back, once no more text comes: it was no stop string after all."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class AnswerText:
    """The text of one answer, token by token.

    Attributes:
        tokens: every token that was pushed, the one that ends the turn and those of a stop string included.
        finish_reason: `stop` once a token or a stop string ended the answer; `length` before.
    """

    def __init__(self, texts: Texts, request: "Request") -> None:
        self.tokens = 0
        self.finish_reason = "length"
        self._end_tokens = texts.end_tokens
        self._stream = texts.stream_text(request.prompt_ids)
        self._stops = StopStrings(request.sampling.stop)

    @property
    def has_ended(self) -> bool:
        """Whether no token belongs to the answer any more."""
        return self.finish_reason == "stop"

    def push(self, token: int) -> str:
        """Take the next token; return the text that is certain by now, which is often none."""
        self.tokens += 1
        if token in self._end_tokens:
            self.finish_reason = "stop"
            return ""
        return self._cut(self._stream.push(token))

    def rest(self) -> str:
        """Return what was held back, once no token follows."""
        if self._stops.hit:
            return ""
        text = self._cut(self._stream.rest())
        return text if self._stops.hit else text + self._stops.rest()

    def _cut(self, piece: str) -> str:
        text = self._stops.push(piece) if piece else ""  # empty while a character is incomplete
        if self._stops.hit:
            self.finish_reason = "stop"
        return text


class Choice:
    """One answer as it comes: iterate over its text; `finish_reason` and `tokens` are true when that ends."""

    def __init__(self, runtime: Runtime, request: Request, index: int) -> None:
        self.index = index
        self._runtime = runtime
        self._request = request
        self._answer = AnswerText(runtime, request)

    @property
    def finish_reason(self) -> str:
        """`stop` or `length`."""
        return self._answer.finish_reason

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return self._answer.tokens

    def __iter__(self) -> Iterator[str]:
        generator = self._generator()
        while not (self._answer.has_ended or generator.is_done()):
            generator.generate_next_token()
            if text := self._answer.push(int(generator.get_next_tokens()[0])):
                yield text
        if text := self._answer.rest():
            yield text

    def _generator(self) -> og.Generator:
        request, sampling = self._request, self._request.sampling
        options: dict[str, object] = {
            "max_length": len(request.prompt_ids) + request.max_tokens,
            "do_sample": sampling.temperature > 0,
        }
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
            if sampling.seed is not None:
                options["random_seed"] = (sampling.seed + self.index) % (LARGEST_SEED + 1)
        params = og.GeneratorParams(self._runtime.model)
        params.set_search_options(**{key: value for key, value in options.items() if value is not None})
        generator = og.Generator(self._runtime.model, params)
        generator.append_tokens(request.prompt_ids)
        return generator


@dataclass(frozen=True)
class Fields:
    """One row, checked by itself: a Request before its prompt is token ids.

    Attributes:
        prompt: the messages of a chat, or text.
        limit_field: the name under which the row has `max_tokens`.
        max_tokens: None where the row names no limit; it may be more than the context window leaves.
    """

    prompt: list[dict[str, str]] | str
    limit_field: str
    max_tokens: int | None
    sampling: Sampling


class RequestReader:
    """Makes requests of rows; what cannot be answered is a RequestError that names the field."""

    def __init__(self, texts: Texts, settings: Settings) -> None:
        self._texts = texts
        self._settings = settings

    def read(self, rows: list[Row]) -> list[Request]:
        """Check all rows before the first is rendered or tokenised."""
        asked = [self._read_fields(row) for row in rows]
        self._require_affordable(asked)
        return [self._encode(fields) for fields in asked]

    def _read_fields(self, row: Row) -> Fields:
        chat = self._settings.interface == "chat"
        require_known(row, CHAT_FIELDS if chat else PROMPT_FIELDS, "request")
        _refuse_unsupported(row)
        row = _with_custom_inputs(row)
        prompt: list[dict[str, str]] | str = _messages(row) if chat else _prompt(row)
        self._require_short(prompt)
        limit_field, max_tokens = _token_limit(row)
        return Fields(prompt, limit_field, max_tokens, self._read_sampling(row))

    def _read_sampling(self, row: Row) -> Sampling:
        temperature = read_number(row, "temperature", 0, 2, "a number from 0 to 2") or 0.0
        top_p = read_number(row, "top_p", math.ulp(0), 1, "a number above 0 and up to 1")
        top_k = read_whole(row, "top_k", 1)
        return Sampling(
            temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
            top_p=None if top_p is None else max(top_p, SMALLEST_TOP_P),
            top_k=None if top_k is None else min(top_k, self._texts.vocabulary),
            seed=read_whole(row, "seed", 0, LARGEST_SEED),
            stop=_stop_strings(row),
            n=read_whole(row, "n", 1, MOST_CHOICES) or 1,
        )

    def _require_short(self, prompt: list[dict[str, str]] | str) -> None:
        """Refuse by its bytes, or by its beginning, what cannot fit: to tokenise megabytes of text takes seconds."""
        text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
        window = self._texts.context_length
        if len(text) <= (enough := window * LONG_TOKEN):
            return
        if (size := len(text.encode())) > (most := window * self._texts.tokenizer.longest_token_bytes):
            raise RequestError(
                f"{self._prompt_field}: {size} bytes of text were found; the context window has {window} tokens, "
                f"which hold at most {most} bytes; shorten the prompt"
            )
        # Cut anywhere, a text has at most a few tokens more than in one piece.
        if (tokens := len(self._texts.tokenizer.encode(text[:enough]))) > window + CUT_TOKENS:
            raise RequestError(
                f"{self._prompt_field}: {len(text)} characters were found, of which {enough} are {tokens} tokens; the "
                f"context window has {window} tokens; shorten the prompt"
            )

    @property
    def _prompt_field(self) -> str:
        return "messages" if self._settings.interface == "chat" else "prompt"

    def _require_affordable(self, asked: list[Fields]) -> None:
        default, window = self._settings.max_tokens, self._texts.context_length
        tokens = sum(fields.sampling.n * min(fields.max_tokens or default, window) for fields in asked)
        if tokens > MOST_NEW_TOKENS:
            raise RequestError(
                f"max_tokens: {tokens} new tokens were found in the call (rows x n x max_tokens); "
                f"at most {MOST_NEW_TOKENS} are expected; ask for fewer, or in several calls"
            )

    def _encode(self, fields: Fields) -> Request:
        ids = self._prompt_ids(fields.prompt)
        return Request(ids, self._max_tokens(fields, len(ids)), fields.sampling)

    def _prompt_ids(self, prompt: list[dict[str, str]] | str) -> npt.NDArray[np.int32]:
        if isinstance(prompt, str) and not self._settings.apply_chat_template:
            return self._texts.encode_text(prompt)
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = self._texts.render_chat(chat)
        self._require_short(text)  # a template may write far more than the messages have
        return self._texts.encode_prompt(text)

    def _max_tokens(self, fields: Fields, prompt_tokens: int) -> int:
        window = self._texts.context_length
        room = window - prompt_tokens
        if room < 1:
            raise RequestError(
                f"{self._prompt_field}: a prompt of {prompt_tokens} tokens was found; the context window has {window} "
                "tokens, at least one of them for the answer; shorten the prompt"
            )
        if fields.max_tokens is not None and fields.max_tokens > room:
            raise RequestError(
                f"{fields.limit_field}: {fields.max_tokens} was found; a prompt of {prompt_tokens} tokens leaves "
                f"{room} of the context window's {window} tokens; ask for at most {room}"
            )
        return fields.max_tokens or min(self._settings.max_tokens, room)


class ChatModel(PythonModel):
    """Answers `llm/v1/chat` requests, or prompts, with an ONNX Runtime GenAI package."""

    def load_context(self, context: PythonModelContext) -> None:
        """Verify the model and the package, then load it.

        Raises:
            IntegrityError: a file, this one included, is not what was logged.
            RequestError: the model config has a key or a value that cannot be right.
            ProviderError: the package is for a GPU, and the model got none.
        """
        folder = Path(context.artifacts["package"])
        self.settings = read_settings(dict(context.model_config or {}), default_name=folder.name)
        verify_model(Path(__file__).parent)
        verify_package(folder)
        verify_graph(folder)
        self.runtime = Runtime(folder, self.settings)
        self._reader = RequestReader(self.runtime, self.settings)

    @property
    def device(self) -> str:
        """Where the loaded model runs: `cpu` or `cuda`."""
        return self.runtime.device

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Row | None = None
    ) -> Row | list[Row] | list[str]:
        """Answer every row.

        Args:
            context: not used; MLflow passes it.
            model_input: a DataFrame, a dict or a list of dicts (or, for prompts, of strings).
            params: must be empty; everything is a field of the row.

        Returns:
            chat: one chat.completion for one row, else a list of them; prompt: a list of strings, one a row.

        Raises:
            RequestError: a row that cannot be answered; then none is.
            TokenizerError: the package's tokenizer does not fit its model.
        """
        rows = _read_rows(model_input, params)
        for row in rows:
            if read_flag(row, "stream", default=False):
                raise RequestError.about("stream", True, "false, or a call of predict_stream")
        requests = self._reader.read(rows)
        if self.settings.interface == "prompt":
            return ["".join(Choice(self.runtime, request, 0)) for request in requests]
        answers = [self._complete(request) for request in requests]
        return answers[0] if len(answers) == 1 else answers

    def predict_stream(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Row | None = None
    ) -> Iterator[Row] | Iterator[str]:
        """Answer one row as it comes: chat.completion.chunk dicts, or strings for a prompt; raises as `predict`."""
        rows = _read_rows(model_input, params)
        if len(rows) != 1:
            raise RequestError(f"predict_stream: {len(rows)} rows were found; one is expected; call predict for more")
        read_flag(rows[0], "stream", default=True)
        (request,) = self._reader.read(rows)
        if self.settings.interface == "prompt":
            return iter(Choice(self.runtime, request, 0))
        return self._stream(request)

    def _complete(self, request: Request) -> Row:
        choices = [Choice(self.runtime, request, index) for index in range(request.sampling.n)]
        answered = [
            {"index": choice.index, "message": {"role": "assistant", "content": "".join(choice)},
             "finish_reason": choice.finish_reason}
            for choice in choices
        ]  # fmt: skip
        return {**self._envelope("chat.completion"), "choices": answered, "usage": usage_of(request, choices)}

    def _stream(self, request: Request) -> Iterator[Row]:
        envelope = self._envelope("chat.completion.chunk")

        def chunk(choice: Choice, delta: dict[str, str], finish_reason: str | None = None) -> Row:
            return {**envelope, "choices": [{"index": choice.index, "delta": delta, "finish_reason": finish_reason}]}

        choices = [Choice(self.runtime, request, index) for index in range(request.sampling.n)]
        for choice in choices:
            yield chunk(choice, {"role": "assistant", "content": ""})
            for text in choice:
                yield chunk(choice, {"content": text})
            last = chunk(choice, {}, choice.finish_reason)
            yield {**last, "usage": usage_of(request, choices)} if choice is choices[-1] else last

    def _envelope(self, kind: str) -> Row:
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        return {"id": identity, "object": kind, "created": int(time.time()), "model": self.settings.name}


def usage_of(request: Request, choices: list[Choice]) -> dict[str, int]:
    prompt, completion = len(request.prompt_ids), sum(choice.tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


# ---------------------------------------------------------------------------------------------- the fields


def read_settings(config: Row, default_name: str) -> Settings:
    """Check the model config; a key nobody knows is an error, since it would change nothing."""
    config = plain_row(config, "model_config")
    require_known(config, frozenset(Settings.__dataclass_fields__), "model_config")
    interface = config.get("interface") or "chat"
    if interface not in ("chat", "prompt"):
        raise RequestError.about("interface", interface, "'chat' or 'prompt'")
    provider = config.get("execution_provider")
    if provider is not None and provider not in PROVIDERS:
        raise RequestError.about("execution_provider", provider, "'cpu' or 'cuda'")
    return Settings(
        name=read_text("name", config.get("name") or default_name),
        interface=str(interface),
        max_tokens=read_whole(config, "max_tokens", 1) or 256,
        intra_op_num_threads=read_whole(config, "intra_op_num_threads", 1),
        apply_chat_template=read_flag(config, "apply_chat_template", default=True),
        execution_provider=None if provider is None else str(provider),
    )


def _read_rows(model_input: object, params: object) -> list[Row]:
    """Make plain rows of what MLflow or a caller passes; an absent field is not in its row."""
    if params is not None and not (isinstance(params, Mapping) and not params):
        raise RequestError.about("params", params, "nothing: put every field into the row")
    if isinstance(model_input, pd.Series) or (isinstance(model_input, np.ndarray) and model_input.ndim == 1):
        model_input = model_input.tolist()
    rows = model_input if isinstance(model_input, pd.DataFrame | list) else [model_input]
    if not 1 <= len(rows) <= MOST_ROWS:
        raise RequestError(f"request: {len(rows)} rows were found; 1 to {MOST_ROWS} are expected in one call")
    return [_read_row(row) for row in (_records(rows) if isinstance(rows, pd.DataFrame) else rows)]


def _read_row(found: object) -> Row:
    row = plain_row({"prompt": found} if isinstance(found, str) else found, "request")
    return {key: value for key, value in row.items() if value is not None}


def _records(table: pd.DataFrame) -> list[Row]:
    """Return the rows of a table; pandas would leave out a column whose name is there twice."""
    if not table.columns.is_unique:
        twice = [str(name) for name in table.columns[table.columns.duplicated()]]
        raise RequestError.about("request", twice, "every column once")
    return [_cells(record) for record in table.to_dict("records")]


def _cells(record: Mapping[str, object]) -> Row:
    """Undo what a DataFrame does to a row: NaN where a field is absent, and then floats for whole numbers."""
    present = {key: cell for key, cell in record.items() if not (pd.api.types.is_scalar(cell) and pd.isna(cell))}
    for key in WHOLE_FIELDS:
        cell = present.get(key)
        if isinstance(cell, float) and cell.is_integer():
            present[key] = int(cell)
    return present


def plain_row(found: object, name: str) -> Row:
    row = _Copy(name).of(found)
    if not isinstance(row, dict):
        raise RequestError.about(name, row, "a DataFrame, a dict or a list of dicts")
    return row


class _Copy:
    """Copies one row to what JSON has, numpy's arrays and scalars too, and stops where it is too deep or too large."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = MOST_VALUES

    def of(self, value: object, path: tuple[str | int, ...] = ()) -> object:
        """Return the copy of `value`, which is at `path` in the row: keys and indices."""
        if isinstance(value, np.ndarray | np.generic):
            self._spend(value.size)
            value = value.tolist()
        self._spend(1)
        if value is None or isinstance(value, str | bool | float):
            return value
        if isinstance(value, int):
            return self._whole(value, path)
        if not isinstance(value, Mapping | list | tuple):
            raise RequestError.about(self._place(path), value, "what JSON has")
        if len(path) == DEEPEST_NESTING:
            raise RequestError(
                f"{self._place(path)}: nesting deeper than {DEEPEST_NESTING} was found; at most that is expected"
            )
        if not isinstance(value, Mapping):
            return [self.of(item, (*path, index)) for index, item in enumerate(value)]
        for key in value:
            if not isinstance(key, str):
                raise RequestError.about(self._place(path), key, "a string for the name of every field")
        return {key: self.of(item, (*path, key)) for key, item in value.items()}

    def _spend(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise RequestError(
                f"{self._name}: more than {MOST_VALUES} values were found in one row; at most that many are expected"
            )

    def _whole(self, value: int, path: tuple[str | int, ...]) -> int:
        if abs(value) > LARGEST_WHOLE:  # Python refuses to write some that are larger
            found = f"a whole number of {value.bit_length()} bits"
            raise RequestError(f"{self._place(path)}: {found} was found; one of 63 bits at most is expected")
        return int(value)

    def _place(self, path: tuple[str | int, ...]) -> str:
        names = [step if isinstance(step, int) else repr(step[:LONGEST_SHOWN])[1:-1] for step in path]
        place = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names)[:LONGEST_SHOWN]
        return place.removeprefix(".") if place.startswith(".") else self._name + place


def shown(found: object) -> str:
    """Return what was found, in one line and not endless."""
    text = " ".join(reprlib.repr(found).splitlines())  # a table's has several
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def _cut(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "..."


def require_known(row: Mapping[str, object], known: frozenset[str], field: str) -> None:
    if unknown := sorted(row.keys() - known):
        raise RequestError.about(field, unknown, "one of " + ", ".join(sorted(known)))


def _refuse_unsupported(row: Row) -> None:
    for field in UNUSED_FIELDS:
        if field in row:
            read_text(field, row[field])
    for field in PENALTIES:
        read_number(row, field, 0, 0, "0 or nothing (penalties are not supported)")
    for field, neutral in UNSUPPORTED.items():
        if field in row and row[field] not in neutral:
            raise RequestError.about(field, row[field], f"nothing ({field} is not supported)")


def _with_custom_inputs(row: Row) -> Row:
    """Lay the fields of `custom_inputs` into the row: MLflow's chat schema lets all of them through, and no other."""
    custom = row.get("custom_inputs", {})
    if not isinstance(custom, dict):
        raise RequestError.about("custom_inputs", custom, "a dict")
    require_known(custom, SAMPLING_FIELDS, "custom_inputs")
    named: Row = {str(field): value for field, value in custom.items() if value is not None}
    for field in sorted(named.keys() & row.keys()):
        if named[field] != row[field]:
            raise RequestError.about(f"custom_inputs.{field}", named[field], f"{shown(row[field])}, as in the row,")
    return {**named, **row}


def _token_limit(row: Row) -> tuple[str, int | None]:
    """Return the most new tokens that the row allows, and the name under which it does."""
    found = {field: read_whole(row, field, 1) for field in LIMIT_FIELDS if field in row}
    if len(set(found.values())) > 1:
        first, second = LIMIT_FIELDS
        raise RequestError.about(second, found[second], f"{found[first]}, as {first} has it, or one of the two fields")
    return next(iter(found.items()), (LIMIT_FIELDS[0], None))


def _prompt(row: Row) -> str:
    prompt = read_text("prompt", row.get("prompt"))
    if not prompt:
        raise RequestError.about("prompt", prompt, "text")
    return prompt


def _messages(row: Row) -> list[dict[str, str]]:
    found = row.get("messages")
    if not isinstance(found, list) or not found:
        raise RequestError.about("messages", found, "a list of one message or more")
    if len(found) > MOST_MESSAGES:
        raise RequestError(f"messages: {len(found)} of them were found; at most {MOST_MESSAGES} are expected")
    messages = [_message(f"messages[{index}]", message) for index, message in enumerate(found)]
    if not any(message["role"] == "user" for message in messages):
        raise RequestError.about("messages", [message["role"] for message in messages], "a message of the role 'user'")
    return messages


def _message(field: str, message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise RequestError.about(field, message, "a dict with role and content")
    require_known(message, MESSAGE_FIELDS, field)
    for unsupported in ("tool_calls", "tool_call_id"):
        if message.get(unsupported):
            raise RequestError.about(f"{field}.{unsupported}", message[unsupported], "nothing (no tools here)")
    for unused in ("name", "refusal"):
        if message.get(unused) is not None:
            read_text(f"{field}.{unused}", message[unused])
    if (role := message.get("role")) not in ROLES:
        raise RequestError.about(f"{field}.role", role, "one of " + ", ".join(ROLES))
    return {"role": str(role), "content": read_content(f"{field}.content", message.get("content"))}


def read_content(field: str, content: object) -> str:
    """Return the text of a message: a string, or the texts of its parts, one after the other."""
    if not isinstance(content, list):
        return read_text(field, content)
    if not content:
        raise RequestError.about(field, content, "a string, or a list of one text part or more")
    return "".join(_part(f"{field}[{index}]", part) for index, part in enumerate(content))


def _part(field: str, part: object) -> str:
    if not isinstance(part, dict):
        raise RequestError.about(field, part, "a dict with type and text")
    if part.get("type") != "text":
        raise RequestError.about(f"{field}.type", part.get("type"), "'text' (no image, sound or file is supported)")
    require_known(part, PART_FIELDS, field)
    return read_text(f"{field}.text", part.get("text"))


def read_text(field: str, value: object) -> str:
    """Return text that the runtime takes whole: it drops what follows a NUL and cannot encode half a surrogate pair."""
    if not isinstance(value, str):
        raise RequestError.about(field, value, "a string")
    if "\0" in value:
        raise RequestError(f"{field}: a NUL byte was found at character {value.index(chr(0))}; text is expected")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{field}: a lone surrogate was found at character {error.start}; text is expected"
        ) from None
    return value


def _stop_strings(row: Row) -> tuple[str, ...]:
    found = row.get("stop", [])
    stops = [found] if isinstance(found, str) else found
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or "" in stops:
        raise RequestError.about("stop", found, f"a string, or a list of up to {MOST_STOPS}, none of them empty,")
    for stop in stops:
        if len(read_text("stop", stop)) > LONGEST_STOP:
            raise RequestError(f"stop: {len(stop)} characters were found; at most {LONGEST_STOP} are expected")
    return tuple(stops)


def read_number(row: Row, field: str, low: float, high: float, expected: str) -> float | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is in no range
        raise RequestError.about(field, value, expected)
    return float(value)


def read_flag(row: Row, field: str, *, default: bool) -> bool:
    value = row.get(field)
    if value is not None and not isinstance(value, bool):
        raise RequestError.about(field, value, "true or false")
    return default if value is None else value


def read_whole(row: Row, field: str, low: int, high: int | None = None) -> int | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise RequestError.about(field, value, f"a whole number from {low}" + (f" to {high}" if high else ""))
    return value


set_model(ChatModel())
