"""The server beside what people use instead, in turn in one run: speeds through HTTP, and the quality beside each.

    .venv/bin/python benchmarks/serving.py models:/smollm2-135m-instruct@cpu-int4 GGUF_FILE SNAPSHOT_FOLDER
    .venv/bin/python benchmarks/serving.py ... --only one,many      some of the parts
    .venv/bin/python benchmarks/serving.py ... --requests 10000     how many the part `soak` sends

The GGUF file and the checkpoint are the package's source: llama.cpp serves the one, transformers runs the other. Peers:
ONNX Runtime GenAI's own loop over the same package, transformers in float32, llama.cpp's server of `xllamacpp`, and
MLflow's scoring server over the same model. Every answer has its full length: the token that ends a turn is banned.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from serving_peers import Server, Timing, printed_address, raw_loop, scoring_address, serving, transformers_loop
from tokenizers import Tokenizer

from slmpack.machine.process_tree import private_bytes

ROOT = Path(__file__).parents[1]
ROUNDS = 5
PROMPT_TOKENS, LONG_TOKENS, NEW_TOKENS = 128, 2048, 64
AT_ONCE = 8
WAIT_SECONDS = 120.0


class Bench:
    """What the parts share: the tokenizer, prompts that have nothing in common, and the servers."""

    def __init__(self, package: Path, served: Server, llama: str, scoring: str) -> None:
        self.package, self.llama, self.scoring = package, llama, scoring
        self.served, self.pid = served.address, served.pid
        self.tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
        self.end = json.loads((package / "genai_config.json").read_bytes())["model"]["eos_token_id"]
        self._random = random.Random(1)
        self._words = [word for word in (ROOT / "LICENSE").read_text().split() if word.isascii()]

    def prompt(self, tokens: int) -> str:
        """Return a text of so many tokens that begins unlike any before it."""
        words = self._random.choices(self._words, k=tokens)
        ids = self.tokenizer.encode(" ".join(words)).ids[:tokens]
        text = self.tokenizer.decode(ids)
        return text if abs(len(self.tokenizer.encode(text).ids) - tokens) < 3 else self.prompt(tokens)

    async def ours(self, text: str, new: int = NEW_TOKENS, **fields: object) -> Timing:
        """Stream an answer of our server."""
        body = {"prompt": text, "max_tokens": new, "stream": True, "logit_bias": {str(self.end): -100}}
        return await self._stream(f"{self.served}/v1/completions", {"cache_prompt": False, **body, **fields})

    async def theirs(self, text: str, new: int = NEW_TOKENS) -> Timing:
        """Stream an answer of llama.cpp's server."""
        body = {"prompt": text, "n_predict": new, "stream": True, "ignore_eos": True, "cache_prompt": False,
                "temperature": 0}  # fmt: skip
        return await self._stream(f"{self.llama}/completion", body)

    async def _stream(self, url: str, body: object) -> Timing:
        timing = Timing()
        async with httpx.AsyncClient(timeout=WAIT_SECONDS) as client:
            started = time.perf_counter()
            async with client.stream("POST", url, json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and _has_text(json.loads(line[6:])):
                        timing.times.append(time.perf_counter() - started)
        return timing


def _has_text(chunk: dict[str, Any]) -> bool:
    if "choices" in chunk:
        return bool(chunk["choices"] and chunk["choices"][0].get("text"))
    return bool(chunk.get("content"))


# ------------------------------------------------------------------------------------------------ the parts


async def one(bench: Bench, checkpoint: Path, threads: int) -> AsyncIterator[str]:
    """One request at a time: decode and time to first token."""
    loops = {
        f"runtime's loop, {count} threads": raw_loop(bench.package, count) for count in sorted({1, threads})
    } | {"transformers, float32": transformers_loop(checkpoint, threads)}  # fmt: skip
    found: dict[str, list[Timing]] = {}
    for _ in range(ROUNDS + 1):
        text = bench.prompt(PROMPT_TOKENS)
        ids = bench.tokenizer.encode(text).ids
        found.setdefault("slmpack serve", []).append(await bench.ours(text))
        for name, loop in loops.items():
            found.setdefault(name, []).append(await asyncio.to_thread(loop, ids, NEW_TOKENS))
        found.setdefault("llama.cpp's server", []).append(await bench.theirs(text))
    yield f"| one request, {PROMPT_TOKENS} + {NEW_TOKENS} tokens | decode, tokens/s | first token, ms | decode of ours "
    yield "|---|---|---|---|"
    ours = found["slmpack serve"][1:]
    for name, timings in found.items():
        speed, first = _median(each.decode for each in timings[1:]), _median(each.first_ms for each in timings[1:])
        ratio = _median(a.decode / b.decode for a, b in zip(ours, timings[1:], strict=True))
        wait = _median(a.first_ms / b.first_ms for a, b in zip(ours, timings[1:], strict=True))
        yield f"| {name} | {speed:.1f} | {first:.0f} | {ratio:.2f} x; first token {wait:.2f} |"


async def many(bench: Bench, *_given: object) -> AsyncIterator[str]:
    """Eight at once: tokens a second of all."""
    figures: dict[str, list[float]] = {}

    async def rate(name: str, ask: Callable[[str], Any], count: int) -> None:
        texts = [bench.prompt(PROMPT_TOKENS) for _ in range(count)]
        started = time.perf_counter()
        await asyncio.gather(*(ask(text) for text in texts))
        figures.setdefault(name, []).append(count * NEW_TOKENS / (time.perf_counter() - started))

    for _ in range(ROUNDS):
        await rate("slmpack serve, 1", bench.ours, 1)
        await rate("slmpack serve, 8", bench.ours, AT_ONCE)
        await rate("llama.cpp's server, 8", bench.theirs, AT_ONCE)
        await rate("MLflow's server, 8", lambda text: _score(bench, text), AT_ONCE)
    yield "| at once | tokens/s in total, prompts included | of ours |"
    yield "|---|---|---|"
    for name, rates in figures.items():
        ratio = _median(a / b for a, b in zip(figures["slmpack serve, 8"], rates, strict=True))
        yield f"| {name} | {_median(rates):.1f} | {ratio:.2f} x |"


async def _score(bench: Bench, text: str) -> None:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": NEW_TOKENS}
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as client:
        (await client.post(f"{bench.scoring}/invocations", json=body)).raise_for_status()


async def mixed(bench: Bench, *_given: object) -> AsyncIterator[str]:
    """Short requests beside a long prompt: their first tokens, and how long /health takes meanwhile."""
    alone, beside, health = [], [], []
    for _ in range(ROUNDS):
        for _ in range(AT_ONCE - 1):
            alone.append((await bench.ours(bench.prompt(PROMPT_TOKENS), 8)).first_ms)
        long = asyncio.create_task(bench.ours(bench.prompt(LONG_TOKENS), 8))
        probes = asyncio.create_task(_probe(bench, long))
        await asyncio.sleep(0.1)
        short = await asyncio.gather(*(_later(bench, 0.1 * place) for place in range(AT_ONCE - 1)))
        beside += [timing.first_ms for timing in short]
        await long
        health += await probes
    yield "| | p50 | p95 | longest |"
    yield "|---|---|---|---|"
    for name, values in (
        ("first token of a short request, alone, ms", alone),
        (f"beside a prompt of {LONG_TOKENS} tokens, ms", beside),
        ("/health meanwhile, ms", health),
    ):
        p50, p95 = np.percentile(values, [50, 95])
        yield f"| {name} | {p50:.0f} | {p95:.0f} | {max(values):.0f} |"


async def _later(bench: Bench, seconds: float) -> Timing:
    text = bench.prompt(PROMPT_TOKENS)
    await asyncio.sleep(seconds)
    return await bench.ours(text, 8)


async def _probe(bench: Bench, until: "asyncio.Task[Timing]") -> list[float]:
    found = []
    async with httpx.AsyncClient(timeout=WAIT_SECONDS, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        while not until.done():
            started = time.perf_counter()
            (await client.get(f"{bench.served}/health")).raise_for_status()
            found.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.02)
    return found


async def turns(bench: Bench, *_given: object) -> AsyncIterator[str]:
    """The second turn of a conversation of 1,000 tokens, with the first one in its slot and without."""
    again, fresh = [], []
    for _ in range(ROUNDS):
        history = bench.prompt(1000)
        answer = await _chat(bench, [history], new=32)
        turn = [history, answer[1], bench.prompt(20)]
        again.append((await _chat(bench, turn))[0])
        fresh.append((await _chat(bench, turn, cache_prompt=False))[0])
    ratio = _median(a / b for a, b in zip(again, fresh, strict=True))
    yield "| second turn, 1,000 tokens before it | first token, ms |"
    yield "|---|---|"
    yield f"| prompt used again | {_median(again):.0f} |"
    yield f"| computed anew | {_median(fresh):.0f} |"
    yield f"| ratio | {ratio:.3f} |"


async def _chat(bench: Bench, texts: list[str], new: int = 8, **fields: object) -> tuple[float, str]:
    """Return the milliseconds to the first token of a chat's answer, and the answer."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    body = {"messages": messages, "max_tokens": new, "stream": True, **fields}
    first, text = 0.0, ""
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as client:
        started = time.perf_counter()
        async with client.stream("POST", f"{bench.served}/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and (piece := _content(json.loads(line[6:]))):
                    first = first or (time.perf_counter() - started) * 1000
                    text += piece
    return first, text or "nothing"


def _content(chunk: dict[str, Any]) -> str:
    return str(chunk["choices"][0]["delta"].get("content") or "") if chunk["choices"] else ""


async def soak(bench: Bench, _checkpoint: Path, _threads: int, count: int) -> AsyncIterator[str]:
    """Mixed requests, 16 at a time: each answer beside the one that the same request had alone; memory."""
    requests = [_request(bench, place) for place in range(64)]
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as client:

        async def ask(body: object) -> object:
            answer = await client.post(f"{bench.served}/v1/chat/completions", json=body)
            answer.raise_for_status()
            return answer.json()["choices"]

        serial = [await ask(body) for body in requests]
        order = [random.Random(place).randrange(len(requests)) for place in range(count)]
        wrong, memory, done = 0, [], 0
        pending = iter(order)

        async def worker() -> None:
            nonlocal wrong, done
            for place in pending:
                wrong += await ask(requests[place]) != serial[place]
                done += 1
                if done % 500 == 0:
                    memory.append(private_bytes(bench.pid))
                    sys.stderr.write(f"{done} of {count}, {wrong} wrong, {memory[-1] / 1e6:.0f} MB\n")

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(16)))
    seconds = time.perf_counter() - started
    yield f"| {count} requests, 16 at a time | |"
    yield "|---|---|"
    yield f"| wrong, lost or mixed answers | {wrong} |"
    yield f"| requests a second | {count / seconds:.1f} |"
    if len(memory) > 2:
        yield f"| memory after the first 1,000 and at the end, MB | {memory[1] / 1e6:.0f}, {memory[-1] / 1e6:.0f} |"


def _request(bench: Bench, place: int) -> dict[str, object]:
    """Return one of many different requests whose answer is the same every time."""
    made = random.Random(place)
    body: dict[str, object] = {
        "messages": [{"role": "user", "content": bench.prompt(made.choice([8, 20, 60, 150, 300]))}],
        "max_tokens": made.choice([1, 4, 16, 32]),
    }
    if place % 3 == 0:
        body |= {"temperature": 1.0, "seed": place}
    if place % 5 == 0:
        body |= {"logprobs": True, "top_logprobs": 2}
    if place % 7 == 0:
        body |= {"stop": [" the", "."], "n": 2}
    return body


# ------------------------------------------------------------------------------------------------ the command


def _start_seconds(command: list[str]) -> float:
    """Return the seconds from the command to a server that is ready."""
    started = time.perf_counter()
    with serving(command, printed_address, {}) as server:
        while httpx.get(f"{server.address}/ready").status_code != httpx.codes.OK:
            time.sleep(0.01)
        return time.perf_counter() - started


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


PARTS: dict[str, Callable[..., AsyncIterator[str]]] = {
    "one": one, "many": many, "mixed": mixed, "turns": turns, "soak": soak,
}  # fmt: skip


async def run_parts(bench: Bench, names: list[str], checkpoint: Path, threads: int, requests: int) -> None:
    """Print the tables of some parts."""
    for name in names:
        arguments = (checkpoint, threads, requests) if name == "soak" else (checkpoint, threads)
        async for line in PARTS[name](bench, *arguments):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        sys.stdout.write("\n")


def main() -> None:
    """Start the servers and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_uri")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--only", default="start,one,many,mixed,turns,soak")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    names = given.only.split(",")
    import mlflow

    package = Path(mlflow.artifacts.download_artifacts(given.model_uri)) / "artifacts/package"
    ours = [sys.executable, "-m", "flows.cli", "serve", given.model_uri, "--port", "0", "--slots", "16",
            "--context", "4096", "--threads", str(given.threads)]  # fmt: skip
    llama = [sys.executable, str(ROOT / "benchmarks/llama_server.py"), str(given.gguf), "20480", str(AT_ONCE),
             str(given.threads)]  # fmt: skip
    scoring = [sys.executable, "-m", "mlflow", "models", "serve", "-m", given.model_uri, "--port", "8979",
               "--env-manager", "local"]  # fmt: skip
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # MLflow looks for uvicorn there
    if "start" in names:
        seconds = [_start_seconds(ours) for _ in range(ROUNDS)]
        sys.stdout.write(f"start to ready, s: {_median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})\n\n")
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving(ours, printed_address, {}))
        peers = {"one", "many"} & set(names)
        other = stack.enter_context(serving(llama, printed_address, {})).address if peers else ""
        scored = stack.enter_context(serving(scoring, scoring_address, path)).address if "many" in names else ""
        bench = Bench(package, served, other, scored)
        parts = [name for name in names if name in PARTS]
        asyncio.run(run_parts(bench, parts, given.checkpoint, given.threads, given.requests))


if __name__ == "__main__":
    main()
