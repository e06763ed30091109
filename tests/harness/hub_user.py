"""Somebody with a Hub client of their own, who runs slmpack in a process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hub_server import HubServer

# Reads a line: a source, a workspace or none, and whether its templates are looked at; writes what became of it.
PROGRAM = """
import json, logging, sys
from pathlib import Path
from slmpack import telemetry
telemetry.switch_off()
from slmpack.errors import SlmpackError
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.open_source import fetch_open_snapshot
from slmpack.progress import logger
from slmpack.source.resolve import resolve_source

class Collect(logging.Handler):
    def emit(self, record):
        if record.progress.stage == "fetch":
            last["progress"] = record.progress.model_dump()
            last.setdefault("first", record.progress.model_dump())

logger.addHandler(Collect())
for line in sys.stdin:
    text, workspace, is_judged = json.loads(line)
    last = {}
    try:
        last["source"] = resolve_source(text).model_dump(mode="json")
        if workspace is not None:
            source = resolve_source(text)
            snapshot = (
                fetch_open_snapshot(source, Path(workspace), None) if is_judged
                else fetch_snapshot(source, Path(workspace))
            )
            last["snapshot"] = snapshot.model_dump(mode="json")
    except SlmpackError as error:
        last["ours"] = [type(error).__name__, str(error)]
    except Exception as error:
        last["theirs"] = type(error).__name__
    print(json.dumps(last), flush=True)
"""


class HubUser:
    """Somebody with a Hub client (`home`) and a workspace of their own, who runs slmpack in processes.

    The Hub's client reads its settings when it is imported, so each combination of them has a process. It stays for
    the next source: to look at its first checkpoint it imports torch and transformers, which takes 5 s.
    """

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.home, self.workspace = hub, folder / "hf-home", folder / "workspace"
        self._stderr = folder / "stderr"
        self._processes: dict[frozenset[tuple[str, str]], subprocess.Popen[str]] = {}

    def begin(self, workspace: Path) -> None:
        """Begin with an empty cache and an empty workspace."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.workspace = workspace

    def resolve(self, text: str, **settings: str) -> dict[str, Any]:
        return self._run(settings, text, None)

    def fetch(self, text: str, **settings: str) -> dict[str, Any]:
        return self._run(settings, text, str(self.workspace))

    def fetch_judged(self, text: str, **settings: str) -> dict[str, Any]:
        """Fetch as a flow does, which refuses some chat templates."""
        return self._run(settings, text, str(self.workspace), is_judged=True)

    @property
    def stderr(self) -> str:
        """What the processes wrote to stderr, all of them together."""
        return self._stderr.read_text()

    def end_processes(self) -> None:
        """End the processes, so that the next source is the first of a new one."""
        for process in self._processes.values():
            process.communicate()
        self._processes.clear()

    def _run(
        self, settings: dict[str, str], text: str, workspace: str | None, is_judged: bool = False
    ) -> dict[str, Any]:
        key = frozenset(settings.items())
        if key not in self._processes:
            self._processes[key] = self._start(settings)
        process = self._processes[key]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([text, workspace, is_judged]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, self.stderr
        result: dict[str, Any] = json.loads(line)
        return result

    def _start(self, settings: dict[str, str]) -> "subprocess.Popen[str]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment = inherited | {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home)} | settings
        with self._stderr.open("a") as stderr:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM], env=environment, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip


@contextmanager
def running_hub_user(folder: Path) -> Iterator[HubUser]:
    """Yield a user of a Hub that has no repository yet."""
    with HubServer({}) as hub:
        user = HubUser(hub, folder)
        try:
            yield user
        finally:
            user.end_processes()
