"""Crashes: the flow, its worker, or both are killed in each stage; what state is found, and what a retry does.

    PYTHONPATH=tests/harness python benchmarks/crashes.py           about twenty minutes
    PYTHONPATH=tests/harness python benchmarks/crashes.py both      one of flow, worker, both, cancel

All runs of a round are held in their stage, each in its own, and then killed together. Prints a Markdown table.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from uuid import UUID

import psutil
from checkpoints import write_tiny_phi3
from crashing import (
    STAGES,
    Site,
    hold,
    kill,
    kill_machine,
    kill_worker,
    let_go,
    logged,
    read,
    retry,
    running_site,
    seconds_of,
    start,
    until_state,
    versions,
)
from machines import write_variant
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.states import Cancelling
from prefect_stack import running_worker

from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source

Held = dict[str, tuple[UUID, psutil.Process]]
Round = Callable[[Site, Path], None]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_site(Path(folder)) as site:
        source = checkpoint(site.folder)
        let_many_run()
        say("| killed | in | state found | after, s | retry | ran again | versions | logged models |")
        say("|---|---|---|---|---|---|---|---|")
        for name in sys.argv[1:] or ROUNDS:
            ROUNDS[name](site, source)


def checkpoint(folder: Path) -> Path:
    tokenizer = fetch_snapshot(resolve_source(DEFAULT_SOURCE), Path.home() / ".cache" / "slmpack-tests").path
    write_tiny_phi3(folder / "tiny-phi3", tokenizer=tokenizer)
    return folder / "tiny-phi3"


def let_many_run() -> None:
    """Lift the limit of one run a deployment: all stages are tried at once."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("package-model/package-cpu-int4")
        limit = ConcurrencyLimitConfig(limit=len(STAGES)).model_dump(mode="json")
        client.request("PATCH", "/deployments/{id}", path_params={"id": deployment.id}, json={
            "concurrency_limit": limit["limit"], "concurrency_options": {"collision_strategy": "ENQUEUE"},
        })  # fmt: skip


def hold_all(site: Site, source: Path, label: str) -> Held:
    """Start a run for each stage, with a workspace of its own, and hold it there."""
    workspaces = {stage: site.folder / f"workspace-{label}-{stage}" for stage in STAGES}
    runs = {
        stage: start(site, write_variant(source, site.folder / f"{label}-{stage}", seed=seed + 100 * len(label)),
                     workspace=str(workspaces[stage]))
        for seed, stage in enumerate(STAGES)
    }  # fmt: skip
    with ThreadPoolExecutor(len(runs)) as pool:
        held = {
            stage: pool.submit(copy_context().run, hold, run, stage, workspaces[stage]) for stage, run in runs.items()
        }
        return {stage: (runs[stage], flow.result()) for stage, flow in held.items()}


def tell(killed: str, held: Held, after: dict[str, float], found: dict[str, str]) -> None:
    for stage, (run, _) in held.items():
        again = [task for task in ("fetch", "build", "smoke", "measure", "validate") if ran_again(run, task)]
        retried = "Completed" if read(run).run_count > 1 else "-"
        name = f"{killed}-{stage}"
        say(f"| {killed} | {stage} | {found[stage]} | {after[stage]:.0f} | {retried} | {', '.join(again) or '-'} "
              f"| {len(versions(name))} | {logged(name)} |")  # fmt: skip


def ran_again(run: UUID, task: str) -> bool:
    """Tell whether a retry took as long over the task as doing it takes; what was complete takes a moment."""
    seconds = seconds_of(run, f"{task} ")
    return len(seconds) > 1 and seconds[-1] > 2.0


def wait_crashed(held: Held) -> tuple[dict[str, float], dict[str, str]]:
    killed = time.monotonic()
    after, found = {}, {}
    for stage, (run, _) in held.items():
        state = until_state(run, StateType.CRASHED, StateType.FAILED).state
        assert state is not None
        timestamp = state.timestamp.timestamp()
        after[stage] = max(0.0, timestamp - (time.time() - (time.monotonic() - killed)))
        found[stage] = str(state.name)
    return after, found


def retry_all(site: Site, held: Held) -> None:
    for run, _ in held.values():
        retry(site, run)
    for run, _ in held.values():
        until_state(run, StateType.COMPLETED)


def kill_flows(site: Site, source: Path) -> None:
    with running_worker("cpu", site.folder, site.environment(), "flows"):
        held = hold_all(site, source, "flow")
        for _, flow in held.values():
            kill(flow)
        after, found = wait_crashed(held)
        retry_all(site, held)
        tell("flow", held, after, found)


def kill_workers(site: Site, source: Path) -> None:
    """A flow ends at its next log line, which goes through the worker."""
    with running_worker("cpu", site.folder, site.environment(), "workers") as worker:
        held = hold_all(site, source, "worker")
        kill_worker(worker)
        for _, flow in held.values():
            let_go(flow)
        after, found = wait_crashed(held)
    with running_worker("cpu", site.folder, site.environment(), "workers-2"):
        retry_all(site, held)
        tell("worker", held, after, found)


def kill_both(site: Site, source: Path) -> None:
    with running_worker("cpu", site.folder, site.environment(), "machine-1") as worker:
        held = hold_all(site, source, "both")
        kill_machine(worker, *(flow for _, flow in held.values()))
        after, found = wait_crashed(held)
    with running_worker("cpu", site.folder, site.environment(), "machine-2"):
        retry_all(site, held)
        tell("both", held, after, found)


def cancel_build(site: Site, source: Path) -> None:
    """As the dashboard's button does."""
    with running_worker("cpu", site.folder, site.environment(), "cancelling"):
        run = start(site, write_variant(source, site.folder / "cancel-build", seed=1000))
        flow = hold(run, "build")
        processes = [flow, *flow.children(recursive=True)]
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelling())
        asked = time.monotonic()
        psutil.wait_procs(processes, timeout=60)
        gone = time.monotonic() - asked
        found = until_state(run, StateType.CANCELLED).state_name
        say(f"| cancelled | build | {found} | {gone:.1f} until its processes are gone | - | - | 0 | 0 |")


ROUNDS: dict[str, Round] = {
    "flow": kill_flows, "worker": kill_workers, "both": kill_both, "cancel": cancel_build,
}  # fmt: skip


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
