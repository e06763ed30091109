"""Connections: uvicorn's HTTP/1.1, with an end to clients that send nothing, send without end, or read nothing.

uvicorn has a limit for idle connections between two requests only. Here a clock runs while a client has the turn:

    connected, or answered -> a request's headers    else 408, or the connection is closed
    answered before the body was there -> its rest   else the connection is closed; of the rest so many bytes are read
    an answer that waits to be sent                  else the connection is closed, which frees the answer's slot

What is no HTTP is answered in the form of all errors. A body that does not arrive is a matter of `bodies`.
"""

import asyncio
import json
import socket
import struct
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from slmpack.serve.failures import BAD_REQUEST, TIMEOUT, Failure

MOST_REST = 1 << 20  # bytes of a body that are read after its answer, so that a client that still sends can see that


class Connection(H11Protocol):
    """One client.

    Args:
        seconds: for headers, for the rest of a refused body, and for a part of an answer.
    """

    def __init__(self, *args: Any, seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seconds = seconds
        self._request_clock: asyncio.TimerHandle | None = None
        self._reader_clock: asyncio.TimerHandle | None = None
        self._rest = MOST_REST

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._request_clock = self.loop.call_later(self._seconds, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Take what was sent; once a request has begun, its body has a time of its own."""
        before = self.cycle
        if self._sends_refused_body():
            self._rest -= len(data)
            if self._rest < 0:
                self._drop()
                return
        super().data_received(data)
        if self.cycle is not before:
            self._stop_clock()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one's body."""
        before = self.cycle
        self._rest = MOST_REST
        super().on_response_complete()
        if self.cycle is before:  # else the next request was there already
            self._stop_clock()
            self._request_clock = self.loop.call_later(self._seconds, self._give_up)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._reader_clock = self.loop.call_later(self._seconds, self._drop)

    def resume_writing(self) -> None:
        """Go on with what is written."""
        super().resume_writing()
        if self._reader_clock is not None:
            self._reader_clock.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        super().connection_lost(exc)
        self._stop_clock()
        if self._reader_clock is not None:
            self._reader_clock.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(Failure(BAD_REQUEST, f"{msg} One of HTTP/1.1 is expected, with headers of 64 kB at most."))

    def _sends_refused_body(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY

    def _stop_clock(self) -> None:
        if self._request_clock is not None:
            self._request_clock.cancel()
            self._request_clock = None

    def _give_up(self) -> None:
        """End the connection; a request that has begun is answered."""
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and not self.transport.is_closing():
            self._refuse(Failure(TIMEOUT, f"the headers did not arrive within {self._seconds:g} s", code="timeout"))
        elif self.transport.get_write_buffer_size() or self._sends_refused_body():
            self._drop()
        else:
            self.transport.close()

    def _drop(self) -> None:
        """End the connection now; else the system would go on trying to send what nobody reads."""
        if (line := self.transport.get_extra_info("socket")) is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _refuse(self, failure: Failure) -> None:
        body = json.dumps(failure.to_row()).encode()
        headers = [
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]  # fmt: skip
        response = h11.Response(status_code=failure.status, headers=headers)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
