"""llama.cpp's formats of a snapshot, measured as packages are: the same windows, the same comparison.

snapshot --its convert script--> f16.gguf --llama-imatrix, llama-quantize--> FILE.gguf --its library--> logits
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llama_build import LlamaCpp, run

from slmpack.checkpoint.windows import LOG_PROBABILITIES_FILE, REFERENCE_FILE
from slmpack.prove.quality.compare import Compared, Measured, compare, summarise
from slmpack.prove.quality.reference import Reference, rows_at_once
from slmpack.quantise.calibrate import BUILT_IN_TEXT
from slmpack.records import Snapshot

FORMATS = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
NO_MATRIX = ("Q8_0",)  # llama.cpp rounds it without one
CONTEXT = 512  # tokens of a window


class Quantised(NamedTuple):
    """A GGUF file and what making it took.

    Attributes:
        weight_bytes: of its tensors, without the tokenizer that the file has as well.
        seconds: of quantising; the conversion to 16 bits and the importance matrix are not in it.
    """

    llama: LlamaCpp
    name: str
    file: Path
    weight_bytes: int
    seconds: float

    @contextlib.contextmanager
    def running(self, threads: int, beginning: str, tokens: int) -> Iterator["Running"]:
        """Give the model, loaded by llama.cpp in a process of its own."""
        script = Path(__file__).parent / "llama_logits.py"
        process = subprocess.Popen(
            [self.llama.python, script, self.file, str(threads), str(CONTEXT)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self.llama.bindings(),
        )  # fmt: skip
        try:
            yield Running(process, beginning, tokens)
        finally:
            process.kill()
            process.wait()


class Running:
    """A model of llama.cpp that answers."""

    def __init__(self, process: "subprocess.Popen[str]", beginning: str, tokens: int) -> None:
        self._process, self._beginning, self._tokens = process, beginning, tokens
        self._prompt: list[int] = []

    def measure(self, place: Path, folder: Path) -> Measured:
        """Compare with what the source said of the text in a reference's folder."""
        reference = Reference.model_validate_json((place / REFERENCE_FILE).read_text())
        self._prompt = list(reference.windows[0][:10])
        file = folder / "llama-logits.npy"
        started = time.perf_counter()
        self._ask({"windows": reference.windows, "into": str(file)})
        seconds = time.perf_counter() - started
        try:
            return summarise(_compared(reference, place, file), (), seconds)
        finally:
            file.unlink()

    def decode(self) -> float:
        """Return the seconds that a token takes after the first."""
        return float(self._ask({"prompt": self._prompt, "tokens": self._tokens}))

    def _ask(self, request: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"llama.cpp ended with {self._process.wait()}")
        return json.loads(line)


def _compared(reference: Reference, place: Path, file: Path) -> Compared:
    source, logits = np.load(place / LOG_PROBABILITIES_FILE, mmap_mode="r"), np.load(file, mmap_mode="r")
    following = np.concatenate([np.array(window[1:]) for window in reference.windows])
    step = rows_at_once(logits.shape[1])
    parts = [
        compare(source[row : row + step], np.asarray(logits[row : row + step]), following[row : row + step])
        for row in range(0, len(following), step)
    ]
    return Compared(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def quantise(llama: LlamaCpp, snapshot: Snapshot, formats: list[str], folder: Path) -> Iterator[Quantised]:
    """Yield the snapshot in each format, without and then with an importance matrix."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, matrix, text = folder / "f16.gguf", folder / "importance.gguf", folder / "calibration.txt"
    if not whole.exists():
        script = llama.sources / "convert_hf_to_gguf.py"
        run([sys.executable, script, snapshot.path, "--outfile", whole, "--outtype", "f16"], folder)
    text.write_text(BUILT_IN_TEXT, encoding="utf-8")
    llama.run("llama-imatrix", "-m", whole, "-f", text, "-o", matrix, "--no-ppl", "-c", "256")
    for name in formats:
        ways: list[list[str | Path]] = [[], ["--imatrix", matrix]]
        for importance in ways[: 1 if name in NO_MATRIX else 2]:
            file = folder / f"{name}{'-imatrix' if importance else ''}.gguf"
            started = time.monotonic()
            llama.run("llama-quantize", *importance, whole, file, name)
            seconds = time.monotonic() - started
            shown = f"llama.cpp {name}{' with importance' if importance else ''}"
            yield Quantised(llama, shown, file, _tensor_bytes(llama, file), seconds)


def _tensor_bytes(llama: LlamaCpp, file: Path) -> int:
    code = "import gguf, sys; print(sum(int(each.n_bytes) for each in gguf.GGUFReader(sys.argv[1]).tensors))"
    path = {"PYTHONPATH": str(llama.sources / "gguf-py")}
    done = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, env=os.environ | path, check=True
    )
    return int(done.stdout)
