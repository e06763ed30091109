"""`python llama_logits.py FILE THREADS CONTEXT`: run a GGUF file by llama.cpp's own library, in its own environment.

A line of JSON on standard input asks for one thing, a line on standard output answers it:

    {"windows": [[id, ...], ...], "into": FILE}   the logits behind every token but each window's last, float32
                                                  [positions, vocabulary] as .npy; answers the number of positions
    {"prompt": [id, ...], "tokens": 64}           decodes greedily; answers the seconds that a token takes
"""

import ctypes
import json
import sys
import time

import llama_cpp.llama_cpp as llama
import numpy as np


class Model:
    """A GGUF file, ready to compute."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, parameters)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def forget(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def advance(self, ids: list[int], start: int, every: bool) -> np.ndarray:
        """Append tokens; return the logits behind every one of them, or behind the last."""
        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, start + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = every or place == len(ids) - 1
        if found := llama.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode returned {found}")
        rows = len(ids) if every else 1
        pointer = ctypes.cast(llama.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
        logits = np.ctypeslib.as_array(pointer, (rows, self.vocabulary)).copy()
        llama.llama_batch_free(batch)
        return logits


def write_logits(model: Model, windows: list[list[int]], into: str) -> int:
    positions = sum(len(window) - 1 for window in windows)
    found = np.lib.format.open_memmap(into, "w+", np.float32, (positions, model.vocabulary))
    row = 0
    for window in windows:
        model.forget()
        found[row : row + len(window) - 1] = model.advance(window, 0, every=True)[:-1]
        row += len(window) - 1
    found.flush()
    return positions


def decode_seconds(model: Model, prompt: list[int], tokens: int) -> float:
    model.forget()
    last = int(model.advance(prompt, 0, every=False)[0].argmax())
    started = time.perf_counter()
    for place in range(tokens):
        last = int(model.advance([last], len(prompt) + place, every=False)[0].argmax())
    return (time.perf_counter() - started) / tokens


def main(path: str, threads: str, context: str) -> None:
    model = Model(path, int(threads), int(context))
    for line in sys.stdin:
        asked = json.loads(line)
        answer = (
            write_logits(model, asked["windows"], asked["into"])
            if "windows" in asked
            else decode_seconds(model, asked["prompt"], asked["tokens"])
        )
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
