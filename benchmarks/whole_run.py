"""The whole run at full size: `slmpack package`, then `slmpack chat`, and who took how much memory meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import psutil
from memory import anonymous_bytes

QUESTION = "What is the capital of France?"


def tell_whole_run(checkpoint: Path, folder: Path) -> None:
    """Print table 3: stages with their time, processes with their highest private memory."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = os.environ | {"HOME": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    slmpack = [sys.executable, "-m", "flows.cli"]
    command = [*slmpack, "package", str(checkpoint), "--target", "cpu-int4", "--recipe", "small", "--json",
               "--workspace", str(folder / "workspace"), "--waive-quality", "its weights are random"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        started = time.monotonic()
        peaks, peak = _watch(process)
        seconds = time.monotonic() - started
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(f"slmpack package ended with {process.returncode}: see {folder / 'log'}")
    outcome = json.loads(lines[-1])
    _write(f"\n3. `slmpack package --target cpu-int4 --recipe small`: {outcome['status']} after {seconds:.0f} s\n")
    _write("| stage | s |\n|---|---|")
    for stage, took in outcome["seconds"].items():
        _write(f"| {stage} | {took:.1f} |")
    _write("\n| process | private GB at most |\n|---|---|")
    for name, size in sorted(peaks.items(), key=lambda item: -item[1]):
        _write(f"| {name} | {size / 1e9:.2f} |")
    _write(f"| all at the same time | {peak / 1e9:.2f} |")
    started = time.monotonic()
    with subprocess.Popen([*slmpack, "chat", outcome["model_uri"], QUESTION], cwd=folder, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as chat:  # fmt: skip
        assert chat.stdout is not None
        chat.stdout.read(1)
        first = time.monotonic() - started
        rest = chat.stdout.read()
    _write(f"\n`slmpack chat`: first characters after {first:.1f} s, {1 + len(rest)} bytes"
           f" after {time.monotonic() - started:.1f} s.")  # fmt: skip


def _watch(process: "subprocess.Popen[str]") -> tuple[dict[str, int], int]:
    """Return each process's highest private memory, by name, and that of all together, in bytes."""
    root = psutil.Process(process.pid)
    peaks: dict[str, int] = defaultdict(int)
    highest = 0
    while process.poll() is None:
        total = 0
        for each in [root, *root.children(recursive=True)]:
            try:
                size, name = anonymous_bytes(each.pid), _name_of(each.cmdline())
            except psutil.Error:
                continue
            peaks[name] = max(peaks[name], size)
            total += size
        highest = max(highest, total)
        time.sleep(0.25)
    return peaks, highest


def _name_of(command: list[str]) -> str:
    if "slmpack.machine.child" in command:
        return command[command.index("slmpack.machine.child") + 1]
    if "flows.cli" in command:
        return "the flow"
    return "Prefect's server" if any("prefect" in word for word in command) else Path(command[0]).name


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    tell_whole_run(Path(sys.argv[1]), Path(sys.argv[2]))
