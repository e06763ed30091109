"""What publishing through the HTTP server of MLflow takes: bytes sent, and memory of both sides.

    PYTHONPATH=tests/harness python benchmarks/publishing.py               packages of 50 and 500 MB: about a minute
    PYTHONPATH=tests/harness python benchmarks/publishing.py --mb 500 5000 10 GB of disk

The server is as in production: PostgreSQL, basic auth, artifacts handed out by itself. The client, a process of its
own, logs a package whose weights are random bytes, reads it back and publishes it, through a proxy that counts.
Memory is each side's unique set size at its highest, sampled, all processes of the server together.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from counting_proxy import counting_proxy
from made_proofs import publish
from mlflow_server import GuardedMlflow, running_guarded_mlflow_server
from postgres import running_postgres

from slmpack.log.log import log_model
from slmpack.machine.store import Manifest, store_folder
from slmpack.records import Interface, ModelSource, Package, Recipe, Snapshot, SourceKind, Target, digest_of_files

MB = 1_000_000
SAMPLE_SECONDS = 0.05
NAME = "random-weights"


class Figures(NamedTuple):
    """What one publication took."""

    package_bytes: int
    sent_bytes: int
    received_bytes: int
    client_bytes: int
    server_before_bytes: int
    server_bytes: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes and memory of publishing through MLflow's HTTP server.")
    parser.add_argument("--mb", type=int, nargs="+", default=[50, 500], help="sizes of the packages in megabytes")
    parser.add_argument("--publish", type=Path, help=argparse.SUPPRESS)  # the client: a package's record
    parsed = parser.parse_args()
    if parsed.publish is not None:
        publish_package(parsed.publish)
        return
    print_head()
    for size in parsed.mb:
        folder = Path(tempfile.mkdtemp(prefix="slmpack-publishing-"))
        try:
            print_row(measure(size * MB, folder))
        finally:
            shutil.rmtree(folder)


def print_head() -> None:
    _write("| package MB | sent MB | sent / package | received MB | client MB | server MB before | server MB | s |")
    _write("|---|---|---|---|---|---|---|---|")


def print_row(found: Figures) -> None:
    sent, received, client, before, server = (size / MB for size in found[1:6])
    package = found.package_bytes / MB
    _write(
        f"| {package:.1f} | {sent:.1f} | {sent / package:.4f} | {received:.1f} | {client:.0f} | {before:.0f}"
        f" | {server:.0f} | {found.seconds:.1f} |"
    )


def measure(size_bytes: int, folder: Path) -> Figures:
    """Publish one package of a fresh stack."""
    package = make_package(size_bytes, folder / "workspace")
    record = folder / "package.json"
    record.write_text(package.model_dump_json())
    with running_postgres(folder) as postgres, running_guarded_mlflow_server(folder, postgres) as server:
        return _publish_through_proxy(package, record, server)


def _publish_through_proxy(package: Package, record: Path, server: GuardedMlflow) -> Figures:
    before = unique_bytes(server.pid)
    with counting_proxy(int(server.address.rpartition(":")[2])) as proxy:
        environment = os.environ | server.environment() | {"MLFLOW_TRACKING_URI": proxy.address}
        started = time.monotonic()
        with (record.parent / "client.log").open("wb") as log:
            client = subprocess.Popen(
                [sys.executable, __file__, "--publish", str(record)], env=environment, stdout=log, stderr=log
            )
            with Peaks(client.pid, server.pid) as peaks:
                client.wait()
        seconds = time.monotonic() - started
    if client.returncode:
        raise SystemExit((record.parent / "client.log").read_text()[-3000:])
    return Figures(
        package.size_bytes, proxy.sent_bytes, proxy.received_bytes, peaks.bytes[client.pid], before,
        peaks.bytes[server.pid], seconds,
    )  # fmt: skip


def publish_package(record: Path) -> None:
    """Be the client: log the package and publish it, with proofs that nobody made."""
    package = Package.model_validate_json(record.read_text())
    publish(log_model(package, Interface.CHAT, NAME, record.parent / "workspace", {}))


def make_package(size_bytes: int, workspace: Path) -> Package:
    """Store random bytes in the way that a build stores weights."""

    def write(folder: Path) -> dict[str, str | int | None]:
        with (folder / "model.onnx.data").open("wb") as file:
            for start in range(0, size_bytes, MB):
                file.write(os.urandom(min(MB, size_bytes - start)))
        (folder / "genai_config.json").write_text("{}")
        return {}

    path = store_folder(workspace, "packages", f"random-{size_bytes}", write)
    files = Manifest.read(path).files
    source = ModelSource(text=NAME, kind=SourceKind.HUB, location=f"nobody/{NAME}", revision="0" * 40, name=NAME)
    snapshot = Snapshot(
        source=source, path=path, files=files, architecture="Phi3ForCausalLM", dtype="BF16", parameters=size_bytes // 2,
        layers=1, context_length=4096, licence=None,
    )  # fmt: skip
    return Package(
        snapshot=snapshot, target=Target.CPU_INT4, recipe=Recipe.SMALL, path=path, files=files, versions={},
        digest=digest_of_files(files),
    )  # fmt: skip


class Peaks:
    """While it is entered, samples the unique set size of processes with their children; `bytes` has the highest."""

    def __init__(self, *pids: int) -> None:
        self.bytes = dict.fromkeys(pids, 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Peaks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            for pid, highest in self.bytes.items():
                self.bytes[pid] = max(highest, unique_bytes(pid))


def unique_bytes(pid: int) -> int:
    """Return the unique set size of a process and its children; 0 if it is gone."""
    try:
        root = psutil.Process(pid)
        return sum(_uss(each) for each in [root, *root.children(recursive=True)])
    except psutil.Error:
        return 0


def _uss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
