"""Packages for CUDA against transformers in float16 on the same GPU: prompts read and tokens decoded a second.

    .venv/bin/python benchmarks/gpu.py                                     on a machine with a GPU
    .venv/bin/python benchmarks/gpu.py --provider cpu --batches 1 --prompts 16 --tokens 4     tries the script itself

Every engine runs in a process of its own, one after the other, and is asked once before it is measured. Greedy, random
token ids; a row of the table is the median of three. Ratios are to transformers at the same batch and prompt.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmpack.build.build import build_package
from slmpack.build.open_package import open_package
from slmpack.machine.hardware import device_of
from slmpack.machine.surroundings import default_workspace
from slmpack.records import Recipe, Target
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source

ROUNDS = 3
Run = Callable[[int], None]  # decodes so many tokens after the prompt


def prompt_ids(batch: int, length: int) -> list[list[int]]:
    return [[100 + (row * 7919 + column * 104729) % 5000 for column in range(length)] for row in range(batch)]


def package_run(folder: Path, provider: Any, batch: int, length: int) -> Run:
    import onnxruntime_genai as og

    model, ids = open_package(folder, provider), prompt_ids(batch, length)

    def run(tokens: int) -> None:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=length + tokens, min_length=length + tokens, batch_size=batch)
        generator = og.Generator(model, parameters)
        generator.append_tokens([token for row in ids for token in row] if batch == 1 else ids)
        for _ in range(tokens):
            generator.generate_next_token()

    return run


def transformers_run(folder: Path, provider: Any, batch: int, length: int) -> Run:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, local_files_only=True)
    model.to(provider)
    ids = torch.tensor(prompt_ids(batch, length), device=provider)

    def run(tokens: int) -> None:
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False
            )
        if provider == "cuda":
            torch.cuda.synchronize()

    return run


def measure(run: Run, batch: int, length: int, tokens: int) -> dict[str, float]:
    """Return prompt tokens a second and new tokens a second, of all rows together."""
    run(2)
    prompts, decodes = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run(1)
        first = time.perf_counter() - started
        started = time.perf_counter()
        run(1 + tokens)
        prompts.append(batch * length / first)
        decodes.append(batch * tokens / max(time.perf_counter() - started - first, 1e-9))
    return {"prompt": statistics.median(prompts), "decode": statistics.median(decodes)}


def in_process(asked: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{asked['engine']} failed: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def one(asked: dict[str, Any]) -> None:
    make = transformers_run if asked["engine"] == "transformers" else package_run
    run = make(Path(asked["folder"]), asked["provider"], asked["batch"], asked["prompt"])
    sys.stdout.write(json.dumps(measure(run, asked["batch"], asked["prompt"], asked["tokens"])) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--source", default=DEFAULT_SOURCE)
    parser.add_argument("--recipe", type=Recipe, default=Recipe.SMALL, help="of cuda-int4")
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 2048])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--workspace", type=Path, default=default_workspace())
    parsed = parser.parse_args()
    if parsed.one:
        one(json.loads(parsed.one))
        return
    device = device_of(parsed.provider)
    snapshot = fetch_snapshot(resolve_source(parsed.source, parsed.workspace), parsed.workspace)
    folders = {
        "transformers": snapshot.path,
        "cuda-fp16": build_package(snapshot, Target.CUDA_FP16, None, parsed.workspace).path,
        f"cuda-int4 {parsed.recipe}": build_package(snapshot, Target.CUDA_INT4, parsed.recipe, parsed.workspace).path,
    }
    write = sys.stdout.write
    write(f"{time.strftime('%Y-%m-%d')}, {device.name or 'CPU'} {device.driver}, {snapshot.source.name}, float16\n\n")
    write("| batch | prompt | engine | prompt tokens/s | of transformers | decoded tokens/s | of transformers |\n")
    write("|---|---|---|---|---|---|---|\n")
    for batch in parsed.batches:
        for prompt in parsed.prompts:
            base: dict[str, float] | None = None
            for engine, folder in folders.items():
                asked = {"engine": engine, "folder": str(folder), "provider": parsed.provider, "batch": batch,
                         "prompt": prompt, "tokens": parsed.tokens}  # fmt: skip
                found = in_process(asked)
                base = base or found
                write(
                    f"| {batch} | {prompt} | {engine} | {found['prompt']:.0f} | {found['prompt'] / base['prompt']:.2f} "
                    f"| {found['decode']:.0f} | {found['decode'] / base['decode']:.2f} |\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
