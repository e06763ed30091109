"""Fan-out: models x targets queued at once, with builds that do nothing: what Prefect itself takes, and of what.

    PYTHONPATH=tests/harness python benchmarks/fan_out.py --models 8       40 runs: about 3 minutes
    PYTHONPATH=tests/harness python benchmarks/fan_out.py --minutes 60     200 models x 5 targets; stops after an hour

The Prefect server is as in production, on PostgreSQL and with basic auth. Two pools have two workers each and run four
flows at a time, all on this machine. Processor time is of whole process trees: a flow's is what its worker has waited
for. How much of it is left for real builds is what this measures; it says nothing of how long those take.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psutil
from machines import PREFECT_USER, prefect_settings
from postgres import running_postgres
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect_stack import PrefectServer, running_prefect_server, running_worker

POOL_OF = {
    "cpu-int4": "near", "cpu-int8": "near", "transformers": "near", "cuda-int4": "far", "cuda-fp16": "far",
}  # fmt: skip
POOLS = tuple(dict.fromkeys(POOL_OF.values()))
CREATORS = 16  # requests at a time
SAMPLE_SECONDS = 2.0
PAGE = 50  # what the dashboard asks for at a time
STATES = ("Scheduled", "Late", "Pending", "Running", "Completed", "Failed", "Crashed")


class Processes(NamedTuple):
    """Who is watched."""

    server: psutil.Process
    database: psutil.Process
    workers: tuple[psutil.Process, ...]


class Cpu(NamedTuple):
    """Processor seconds so far."""

    server: float
    database: float
    workers: float
    flows: float


@dataclass
class Course:
    """What was seen, sample by sample."""

    counts: list[dict[str, int]] = field(default_factory=list)
    at_seconds: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    busy_percent: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of Prefect with builds that do nothing.")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2, help="workers of each pool")
    parser.add_argument("--limit", type=int, default=2, help="flows at a time of each worker")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after this long, and tell the rate reached")
    parsed = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="slmpack-fan-out-"))
    try:
        with running_stack(folder) as (server, database):
            measure(parsed, folder, server, database)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_stack(folder: Path) -> Iterator[tuple[PrefectServer, psutil.Process]]:
    """Yield the server and PostgreSQL's process; this process is a client of the server meanwhile."""
    with (
        running_postgres(folder) as postgres,
        running_prefect_server(folder, **prefect_settings(postgres)) as server,
        temporary_settings({PREFECT_API_URL: server.api, PREFECT_API_AUTH_STRING: PREFECT_USER}),
    ):
        yield server, _child(f"port={postgres.port}")


def measure(asked: argparse.Namespace, folder: Path, server: PrefectServer, database: psutil.Process) -> None:
    """Queue everything, let the workers loose, and print what was seen."""
    deployments = deploy(asked.workers * asked.limit)
    idle = Course()
    with get_client(sync_client=True) as client:
        for _ in range(10):
            look(client, idle)
        started = time.monotonic()
        asyncio.run(queue_runs(deployments, asked.models))
        creating = time.monotonic() - started
        queued = Course()
        for _ in range(10):
            look(client, queued)
        with running_workers(folder, server, asked.workers) as workers:
            processes = Processes(_child("server", "start"), database, workers)
            before = cpu_of(processes)
            course = follow(client, asked.models * len(POOL_OF), asked.minutes * 60)
            used = Cpu(*(after - start for after, start in zip(cpu_of(processes), before, strict=True)))
            memory = private_mb(processes)
    tell(asked, creating, idle, queued, course, used, memory)


def deploy(at_a_time: int) -> dict[str, UUID]:
    """Make the pools, each with so many runs at a time, and a deployment a target."""
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", concurrency_limit=at_a_time))
    stub: Any = flow.from_source(source=str(Path(__file__).parent), entrypoint="stub_build.py:stub_build")
    with redirect_stdout(sys.stderr):
        return {
            target: stub.deploy(
                name=f"stub-{target}", work_pool_name=pool, print_next_steps=False, ignore_warnings=True
            )
            for target, pool in POOL_OF.items()
        }


async def queue_runs(deployments: dict[str, UUID], models: int) -> None:
    """Create a run for each model and target, several requests at a time."""
    turn = asyncio.Semaphore(CREATORS)
    async with get_client() as client:

        async def create(model: str, target: str) -> None:
            async with turn:
                parameters = {"model": model, "target": target}
                await client.create_flow_run_from_deployment(deployments[target], parameters=parameters)

        await asyncio.gather(*(create(f"model-{n}", target) for n in range(models) for target in deployments))


@contextmanager
def running_workers(folder: Path, server: PrefectServer, workers: int) -> Iterator[tuple[psutil.Process, ...]]:
    """Yield the workers' processes, so many a pool."""
    environment = server.environment(PREFECT_API_AUTH_STRING=PREFECT_USER, PREFECT_LOGGING_LEVEL="WARNING")
    names = [(pool, f"{pool}-{number}") for pool in POOLS for number in range(workers)]
    with ExitStack() as running:
        for pool, name in names:
            running.enter_context(running_worker(pool, folder, environment, name))
        yield tuple(_child("worker", "start", name) for _, name in names)


def follow(client: SyncPrefectClient, total: int, limit_seconds: float) -> Course:
    """Look again and again until all have ended or time is up."""
    course, started = Course(), time.monotonic()
    psutil.cpu_percent(percpu=True)
    while True:
        look(client, course)
        ended = sum(course.counts[-1][name] for name in ("Completed", "Failed", "Crashed"))
        if ended == total or time.monotonic() - started > limit_seconds:
            return course
        time.sleep(SAMPLE_SECONDS)


def look(client: SyncPrefectClient, course: Course) -> None:
    """Ask what the dashboard asks, and how many runs are in each state."""
    started = time.monotonic()
    client.read_flow_runs(limit=PAGE)
    course.latencies_ms.append((time.monotonic() - started) * 1000)
    course.counts.append({name: client.count_flow_runs(flow_run_filter=_named(name)) for name in STATES})
    course.at_seconds.append(started)
    course.busy_percent.append(sum(psutil.cpu_percent(percpu=True)))


def _named(state: str) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[state])))


def cpu_of(processes: Processes) -> Cpu:
    """Return the processor time of each kind; the workers' own, without the flows that they started."""
    own = sum(_own_seconds(worker) for worker in processes.workers)
    trees = sum(_tree_seconds(worker) for worker in processes.workers)
    return Cpu(_tree_seconds(processes.server), _tree_seconds(processes.database), own, trees - own)


def _tree_seconds(root: psutil.Process) -> float:
    """Add up what is alive below `root` and what has ended there: whoever waits for an ended child adds its time."""
    seconds = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _own_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def private_mb(processes: Processes) -> dict[str, float]:
    """Return the unique set size of the server, of PostgreSQL and of one worker without its flows, in megabytes."""
    database = [processes.database, *processes.database.children(recursive=True)]
    kinds = {"server": [processes.server], "PostgreSQL": database, "one worker": [processes.workers[0]]}
    return {name: sum(each.memory_full_info().uss for each in some) / 1e6 for name, some in kinds.items()}


def _child(*words: str) -> psutil.Process:
    """Return our child whose command line has all of the words."""
    for process in psutil.Process().children():
        line = " ".join(process.cmdline())
        if all(word in line for word in words):
            return process
    raise LookupError(f"no process of ours has {words} in its command line")


def tell(
    asked: argparse.Namespace, creating: float, idle: Course, queued: Course, course: Course, used: Cpu,
    memory: dict[str, float],
) -> None:  # fmt: skip
    """Print the tables."""
    total, last = asked.models * len(POOL_OF), course.counts[-1]
    seconds = course.at_seconds[-1] - course.at_seconds[0]
    _write(f"\n{asked.models} models x {len(POOL_OF)} targets, {len(POOLS)} pools x {asked.workers} workers x "
           f"{asked.limit} flows, {psutil.cpu_count()} cores\n\n| | |\n|---|---|")  # fmt: skip
    rows = {
        "runs created": f"{total} in {creating:.1f} s: {total / creating:.1f} a second",
        "runs ended": f"{last['Completed']} completed, {last['Failed']} failed, {last['Crashed']} crashed "
        f"of {total} in {seconds:.0f} s",
        "steady rate": f"{steady_rate(course):.1f} runs a minute",
        "late at most": str(max(count["Late"] for count in course.counts)),
        "list of 50 runs, idle": _milliseconds(idle),
        "the same, all queued": _milliseconds(queued),
        "the same, workers busy": _milliseconds(course),
        "processor busy": f"{statistics.mean(course.busy_percent[1:] or [0]):.0f} % of "
        f"{100 * (psutil.cpu_count() or 1)} %",
    }  # fmt: skip
    for name, found in rows.items():
        _write(f"| {name} | {found} |")
    _tell_cpu(used, seconds, last["Completed"])
    _write("\nPrivate memory in MB: " + ", ".join(f"{name} {size:.0f}" for name, size in memory.items()))


def _tell_cpu(used: Cpu, seconds: float, completed: int) -> None:
    _write("\n| processor time of | s | % of a core | s a run | share |\n|---|---|---|---|---|")
    for name, spent in used._asdict().items():
        a_run = spent / max(completed, 1)
        _write(f"| {name} | {spent:.1f} | {100 * spent / seconds:.0f} | {a_run:.2f} | {spent / sum(used):.0%} |")


def steady_rate(course: Course) -> float:
    """Return completed runs a minute between the first and the last sample that saw a run complete."""
    changed = [n for n in range(1, len(course.counts))
               if course.counts[n]["Completed"] > course.counts[n - 1]["Completed"]]  # fmt: skip
    if len(changed) < 2:
        return 0.0
    first, last = changed[0], changed[-1]
    done = course.counts[last]["Completed"] - course.counts[first]["Completed"]
    return 60 * done / (course.at_seconds[last] - course.at_seconds[first])


def _milliseconds(course: Course) -> str:
    """Return median and highest."""
    return f"{statistics.median(course.latencies_ms):.0f} ms, at most {max(course.latencies_ms):.0f} ms"


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
