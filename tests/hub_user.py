"""Somebody with a Hub client of their own, who runs slmpack in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hub_server import HubServer

# The Hub's client reads its settings when it is imported, so each try is a process of its own, as a user's is.
PROGRAM = """
import json, logging, sys
from pathlib import Path
from slmpack import telemetry
telemetry.switch_off()
from slmpack.errors import SlmpackError
from slmpack.fetch import fetch_snapshot
from slmpack.progress import logger
from slmpack.resolve import resolve_source

class Collect(logging.Handler):
    def emit(self, record):
        last["progress"] = record.progress.model_dump()
        last.setdefault("first", record.progress.model_dump())

last = {}
collect = Collect()
try:
    last["source"] = resolve_source(sys.argv[1]).model_dump(mode="json")
    if len(sys.argv) > 2:
        logger.addHandler(collect)
        def keep_fetch(record):
            return record.progress.stage == "fetch"
        collect.addFilter(keep_fetch)
        snapshot = fetch_snapshot(resolve_source(sys.argv[1]), Path(sys.argv[2]))
        last["snapshot"] = snapshot.model_dump(mode="json")
except SlmpackError as error:
    last["ours"] = [type(error).__name__, str(error)]
except Exception as error:
    last["theirs"] = type(error).__name__
print(json.dumps(last))
"""


class HubUser:
    """Somebody with a Hub client of their own (`home`) and a workspace, who runs slmpack in a process."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.home, self.workspace = hub, folder / "hf-home", folder / "workspace"

    def resolve(self, text: str, **settings: str) -> dict[str, Any]:
        return self._run(settings, text)

    def fetch(self, text: str, **settings: str) -> dict[str, Any]:
        return self._run(settings, text, str(self.workspace))

    def _run(self, settings: dict[str, str], *arguments: str) -> dict[str, Any]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment = kept | {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home)} | settings
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True, check=True
        )
        self.stderr = run.stderr
        result: dict[str, Any] = json.loads(run.stdout)
        return result
