"""Prefect's temporary server, for commands that no PREFECT_API_URL leads to a lasting one.

    command: starts it --- imports MLflow --- takes the address --- imports Prefect and a flow --- waits for it --> run
                 |                                  ^                                                   ^
    server:      +-- reads Prefect's settings --> address --> imports, migrates its database --> "it listens"

Prefect itself starts it at a run's first request, and imports all of the server's code into the run's process for that.
Here both processes import at the same time, each what it needs. Where this server does not come up, Prefect's way is
still open.
"""

import atexit
import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

from slmpack.machine.surroundings import TEMPORARY_PREFECT

API_URL = "PREFECT_API_URL"
APPLICATION = "prefect.server.api.server:create_app"
# Source: prefect.server.api.server.SubprocessASGIServer, which starts Prefect's own.
AS_PREFECT_STARTS_IT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
LISTENS = "it listens"
START_SECONDS = 120.0
STOP_SECONDS = 5.0

_servers: list["subprocess.Popen[bytes]"] = []


def start_server() -> None:
    """Start the server, unless this process has one, was given another's address, or has Prefect imported already."""
    if _servers or API_URL in os.environ or "prefect" in sys.modules:
        return
    command = [sys.executable, "-P", "-m", "flows.temporary_server"]
    environment = os.environ | AS_PREFECT_STARTS_IT
    server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
    _servers.append(server)
    atexit.register(_stop, server)  # before Prefect's own are registered, hence after them: its last events are sent


@contextlib.contextmanager
def prefect_server() -> Iterator[None]:
    """Have a server when the block has ended, in which Prefect is imported for the first time."""
    start_server()
    server = next(iter(_servers), None)
    if server is None or "prefect" in sys.modules or not (address := _line_of(server)):
        yield  # Prefect's settings lead to a server, or it starts one itself
        return
    os.environ[API_URL], os.environ[TEMPORARY_PREFECT] = address, "1"
    yield
    _line_of(server)


def _line_of(server: "subprocess.Popen[bytes]") -> str:
    """Return what the server says next; nothing where it ended or took too long."""
    says: IO[bytes] | None = server.stdout
    assert says is not None
    ready, _, _ = select.select([says], [], [], START_SECONDS)
    return says.readline().decode().strip() if ready else ""  # unbuffered: it leaves the next line in the pipe


def _stop(server: "subprocess.Popen[bytes]") -> None:
    if "prefect" in sys.modules:
        server.terminate()
    else:
        server.kill()  # no run came to it
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main() -> None:
    """Say the address, and that it listens, on standard output; serve. Say nothing where the settings name a server."""
    import asyncio  # which the command itself needs no sooner than Prefect does

    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url is not None or not settings.server.ephemeral.enabled:
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        _say(f"http://127.0.0.1:{listening.getsockname()[1]}/api")
        asyncio.run(_serve(listening))


async def _serve(listening: socket.socket) -> None:
    import asyncio

    import uvicorn

    server = uvicorn.Server(uvicorn.Config(APPLICATION, factory=True, log_level="error", lifespan="on"))
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    _say(LISTENS)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads it any more
    await serving


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
