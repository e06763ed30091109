# ruff: noqa: RUF001 - the text is there to train on all scripts
"""Small GGUF files for tests, and llama.cpp itself to read them."""

import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from places import HARNESS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HIDDEN, HEADS, FEED_FORWARD, LAYERS, CONTEXT = 32, 2, 64, 1, 64
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

TRAINING_TEXT = """The quick brown fox's tail; they'll say "HE'S HERE" and we've 12345 reasons, 3.14159 or 1,000,000.
def main(argv):\n    if len(argv) > 10:\n\t\treturn {"key": [1, 22, 333]}  # naïve café
CamelCaseWords HTTPServer iOS17 e\u0301tude, Привет мир 123, 你好世界 456，こんにちは カタカナ 한국어 नमस्ते สวัสดี 😀👍🏽
$100 + €200 = <b>300</b> ~ `code` | pipe ^ caret → arrow … «quoted» — dash\r\n\r\n\n\n   indented    far   away   \n
"""


def byte_level_fields(pre: str | None = "default", **changes: Any) -> dict[str, Any]:
    """The tokenizer fields of a byte-level vocabulary whose merges cross every boundary between words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<user>"],
    )
    lines = TRAINING_TEXT.splitlines(keepends=True)
    tokenizer.train_from_iterator([line[start:] for line in lines for start in range(0, len(line), 5)], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [USER_DEFINED] + [NORMAL] * (len(tokens) - 4),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in trained["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return _changed(fields, changes)


def sentencepiece_fields(**changes: Any) -> dict[str, Any]:
    """The tokenizer fields of a vocabulary with scores and bytes, as of Llama 2 and Phi-3."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=700, min_frequency=1, show_progress=False)
    words = [f"▁{word}" for word in TRAINING_TEXT.replace("\r", "").replace("\n", " ").split(" ")] + ["▁" * 8, "▁" * 3]
    tokenizer.train_from_iterator(words, trainer)
    vocabulary = tokenizer.get_vocab()
    pieces = sorted((piece for piece in vocabulary if len(piece) > 1), key=vocabulary.__getitem__)
    letters = sorted(piece for piece in vocabulary if len(piece) == 1)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    tokens += ["<|endoftext|>", "<|user|>", "<|end|>", "<tool>"]
    middle = len(tokens) - 259 - 4
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(middle)] + [-1000.0] * 4,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * middle,
                                      CONTROL, CONTROL, CONTROL, USER_DEFINED],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    return _changed(fields, changes)


def _changed(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    named = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in (fields | named).items() if value is not None}


def write_gguf(path: Path, fields: dict[str, Any], *, weights: type[np.generic] = np.float32, **changes: Any) -> Path:
    """Write a Llama of one layer and random weights with these tokenizer fields; `changes` are metadata or None."""
    writer = gguf.GGUFWriter(path, "llama")
    shape = {
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        "llama.vocab_size": len(fields.get("tokenizer.ggml.tokens", "x")),
    }
    named = {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in (shape | fields | named).items():
        if value is not None:
            _add(writer, key, value)
    random = np.random.default_rng(5)
    for name, size in _tensor_shapes(shape["llama.vocab_size"]).items():
        kind = np.float32 if name.endswith("norm.weight") else weights
        writer.add_tensor(name, random.standard_normal(size).astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if type(value) is int and not 0 <= value < 1 << 32:
        (writer.add_int32 if value < 0 else writer.add_uint64)(key, value)
    else:
        kinds[type(value)](key, value)


def _tensor_shapes(vocabulary: int | float) -> dict[str, tuple[int, ...]]:
    square, wide = (HIDDEN, HIDDEN), (FEED_FORWARD, HIDDEN)
    block = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square, "ffn_gate": wide,
             "ffn_up": wide, "ffn_down": wide[::-1], "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}  # fmt: skip
    return {
        "token_embd.weight": (int(vocabulary), HIDDEN),
        "output_norm.weight": (HIDDEN,),
        **{f"blk.0.{name}.weight": size for name, size in block.items()},
    }


class LlamaCpp:
    """A GGUF file loaded by llama.cpp; asks its server on the loopback interface."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address.removeprefix("http://"))

    def ids(self, text: str, add_special: bool = False) -> list[int]:
        """Tokenise as a prompt: special tokens in the text are special tokens."""
        body = json.dumps({"content": text, "add_special": add_special, "parse_special": True})
        self._connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        tokens: list[int] = json.loads(self._connection.getresponse().read())["tokens"]
        return tokens


@contextmanager
def llama_cpp(path: Path) -> Iterator[LlamaCpp]:
    """Load `path` with llama.cpp until the block ends."""
    command = [sys.executable, str(HARNESS / "llama_cpp_server.py"), str(path), str(CONTEXT)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert address.startswith("http://"), f"llama.cpp does not serve {path}"
            yield LlamaCpp(address)
        finally:
            server.kill()
