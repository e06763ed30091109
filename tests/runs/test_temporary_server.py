"""The temporary server of a command: it starts beside the imports, and its code is in no process but its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import environment, processes_of
from prefect_database import write_empty_database

from flows.temporary_server import START_SECONDS

RUN = """
import array, fcntl, json, os, sys, termios, time
from flows import temporary_server
from flows.temporary_server import prefect_server, start_server
start_server()
said = array.array("i", [0])
while "late" in sys.argv and said[0] < len("http://127.0.0.1:1234/api\\nit listens\\n"):  # until it has said all
    fcntl.ioctl(temporary_server._servers[0].stdout, termios.FIONREAD, said)
    time.sleep(0.05)
begun = time.monotonic()
with prefect_server():
    entered = time.monotonic()
    from prefect import flow
    from tasks.lasting_server import has_lasting_server
    imported = time.monotonic()
waited = time.monotonic() - imported + entered - begun  # the imports take what they take

@flow
def double(number: int) -> int:
    return 2 * number

print(json.dumps({
    "waited": waited, "doubled": double(21), "address": os.environ.get("PREFECT_API_URL"),
    "lasts": has_lasting_server(),
    "imported": [name for name in sys.modules if name.startswith("prefect.server.api")],
}))
"""


def run(home: Path, *arguments: str, **settings: str) -> dict[str, Any]:
    told = environment(PREFECT_HOME=str(home), PREFECT_LOGGING_LEVEL="ERROR", **settings)
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, *arguments], env=told, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_run_has_a_server_that_ends_with_it_and_imports_none_of_its_code(tmp_path: Path) -> None:
    write_empty_database(tmp_path)
    found = run(tmp_path, "late")
    assert found["waited"] < START_SECONDS  # which it takes at least if it waits for what was said before it asked
    assert (found["doubled"], found["lasts"], found["imported"]) == (42, False, [])
    assert str(found["address"]).startswith("http://127.0.0.1:")
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("by_profile", [False, True])
def test_a_server_that_the_settings_name_is_the_runs_own(prefect_api: str, by_profile: bool, tmp_path: Path) -> None:
    if by_profile:
        (tmp_path / "profiles.toml").write_text(
            f'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "{prefect_api}"\n'
        )
    found = run(tmp_path, **({} if by_profile else {"PREFECT_API_URL": prefect_api}))
    del found["waited"]
    assert found == {
        "doubled": 42, "address": None if by_profile else prefect_api, "lasts": True, "imported": []
    }  # fmt: skip
