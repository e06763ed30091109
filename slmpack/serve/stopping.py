"""Stopping: uvicorn, with its settings, and with an end for answers that take too long after the signal."""

import asyncio
import math
import socket
from collections.abc import Callable
from functools import partial

import uvicorn

from slmpack.serve.connections import Connection
from slmpack.serve.options import ServeOptions

BACKLOG = 512
IDLE_SECONDS = 30  # until a connection without a request is closed
LAST_SECONDS = 2  # for clients to read how their answer ended, before their requests are cancelled


class StoppingServer(uvicorn.Server):
    """A server whose clients are told that their answer is cut off, before their connections are closed.

    Args:
        seconds: from the signal until `cut_off` is called.
        cut_off: ends all answers under way.
    """

    def __init__(self, config: uvicorn.Config, seconds: float, cut_off: Callable[[], None]) -> None:
        super().__init__(config)
        self._seconds, self._cut_off = seconds, cut_off

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop as uvicorn does, and end what is under way after the seconds are over."""
        timer = asyncio.get_running_loop().call_later(self._seconds, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def make_server(app: object, options: ServeOptions, cut_off: Callable[[], None]) -> StoppingServer:
    """Return the server of an app.

    Args:
        cut_off: ends all answers under way, `--stop-seconds` after the signal.
    """
    config = uvicorn.Config(
        app,  # type: ignore[arg-type] # FastAPI's
        http=partial(Connection, seconds=options.body_seconds),  # type: ignore[arg-type] # it makes one
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=math.ceil(options.stop_seconds) + LAST_SECONDS,
        server_header=False,
    )
    return StoppingServer(config, options.stop_seconds, cut_off)
