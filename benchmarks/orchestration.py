"""Orchestration: what Prefect adds to a run, beside its own flow that does nothing.

    PYTHONPATH=tests/harness python benchmarks/orchestration.py       about five minutes

The overhead of a run is its wall time, from the command to its end, less the sum of its stages. It is measured without
a server, where Prefect starts one for the run, and with one; each command in turn, several times, medians shown. What a
stage's own tasks cost is in the stage: told beside it as the cost of a task that does nothing.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from checkpoints import write_tiny_phi3
from command_line import environment, objects, slmpack
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_stack import running_prefect_server

from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source

EMPTY = """
from prefect import flow
@flow
def empty(): pass
empty()
"""
TASKS = 50
EMPTY_TASKS = f"""
import time
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
@task(cache_policy=NO_CACHE)
def nothing(): pass
@flow
def empty():
    started = time.monotonic()
    for _ in range({TASKS}): nothing()
    print((time.monotonic() - started) / {TASKS})
empty()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="how often each is run")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = checkpoint(folder)
        say("| | empty flow, s | unchanged: overhead, s | ratio | whole run: overhead, s | an empty task, ms |")
        say("|---|---|---|---|---|---|")
        say(row("without a server", folder, source, times, {"PREFECT_HOME": str(folder / "prefect-home")}))
        with running_prefect_server(folder) as server:
            say(row("with a server", folder, source, times, {"PREFECT_API_URL": server.api}))
            say(f"\nAn unchanged run, from the flow's own start to its end: {seconds_of_last_run(server.api):.1f} s")


def checkpoint(folder: Path) -> Path:
    """Write a Phi-3 of two layers; the tokenizer is a real one."""
    tokenizer = fetch_snapshot(resolve_source(DEFAULT_SOURCE), Path.home() / ".cache" / "slmpack-tests").path
    write_tiny_phi3(folder / "tiny-phi3", tokenizer=tokenizer)
    return folder / "tiny-phi3"


def row(label: str, folder: Path, source: Path, times: int, settings: Mapping[str, str]) -> str:
    """Measure one way of running; the first of each kind warms up and is not counted."""
    run(EMPTY, settings)
    whole = overhead(folder, source, settings)
    empty, unchanged = [], []
    for _ in range(times):
        empty.append(run(EMPTY, settings)[0])
        unchanged.append(overhead(folder, source, settings))
    task = float(run(EMPTY_TASKS, settings)[1].split()[-1])
    nothing, ours = statistics.median(empty), statistics.median(unchanged)
    return f"| {label} | {nothing:.1f} | {ours:.1f} | {ours / nothing:.2f} | {whole:.1f} | {1000 * task:.0f} |"


def seconds_of_last_run(api: str) -> float:
    """Return how long the server says that the last packaging ran."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        (last,) = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["package-model"])),
            sort=FlowRunSort.START_TIME_DESC, limit=1,
        )  # fmt: skip
    assert last.state is not None and str(last.state.message).startswith("unchanged"), last.state
    return last.total_run_time.total_seconds()


def run(code: str, settings: Mapping[str, str]) -> tuple[float, str]:
    """Run Python code in a process; return its wall time in seconds and what it printed."""
    quiet = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**quiet, **settings), capture_output=True, text=True, check=True
    )
    return time.monotonic() - started, done.stdout


def overhead(folder: Path, source: Path, settings: Mapping[str, str]) -> float:
    """Package (the second time it is unchanged) and return the wall time less the sum of the stages, in seconds."""
    started = time.monotonic()
    done = slmpack(
        "package", str(source), "--recipe", "small", "--json", "--workspace", str(folder / "workspace"),
        "--waive-quality", "random weights", cwd=folder, **settings,
    )  # fmt: skip
    wall = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    (outcome,) = objects(done)
    return wall - float(sum(outcome["seconds"].values()))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
