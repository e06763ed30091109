"""What `serving.py` measures beside the server: loops over the same model in this process, and other servers."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Timing:
    """When the tokens of one answer came, seconds since it was sent."""

    times: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    @property
    def first_ms(self) -> float:
        return self.times[0] * 1000

    @property
    def decode(self) -> float:
        """Tokens a second after the first."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def raw_loop(package: Path, threads: int) -> Callable[[list[int], int], Timing]:
    """Return what runs ONNX Runtime GenAI's own loop."""
    import onnxruntime_genai as og

    config = og.Config(str(package))
    options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
    config.overlay(json.dumps(options))
    model = og.Model(config)

    def run(ids: list[int], new: int) -> Timing:
        timing = Timing()
        started = time.perf_counter()
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + new, min_length=len(ids) + new)
        generator = og.Generator(model, parameters)
        generator.append_tokens(np.array(ids, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            timing.ids.append(int(generator.get_next_tokens()[0]))
            timing.times.append(time.perf_counter() - started)
        return timing

    return run


def transformers_loop(checkpoint: Path, threads: int) -> Callable[[list[int], int], Timing]:
    """Return what runs transformers' own loop in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    def run(ids: list[int], new: int) -> Timing:
        class Times:
            def put(self, value: object) -> None:
                timing.times.append(time.perf_counter() - started)

            def end(self) -> None:
                pass

        timing = Timing()
        started = time.perf_counter()
        given = torch.tensor([ids])
        model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=new, min_new_tokens=new,
                       do_sample=False, streamer=Times())  # fmt: skip
        timing.times = timing.times[1:]  # the first is the prompt
        return timing

    return run


@dataclass(frozen=True)
class Server:
    """A server that answers; `address` is without a path."""

    address: str
    pid: int


@contextlib.contextmanager
def serving(command: list[str], ready: Callable[[str], str | None], environment: dict[str, str]) -> Iterator[Server]:
    """Start a server and give it; its address is read from a line that it writes; stop it at the end."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | environment,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if address := ready(line):
                break
        else:
            raise SystemExit(f"{command[:4]} did not start: {''.join(seen)[-2000:]}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
        yield Server(address, process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def printed_address(line: str) -> str | None:
    return next((word.removesuffix("/v1") for word in line.split() if word.startswith("http://")), None)


def scoring_address(line: str) -> str | None:
    return "http://127.0.0.1:8979" if "Uvicorn running" in line or "Application startup complete" in line else None
