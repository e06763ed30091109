"""A server that sends what a test chooses, as no server of ours would."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = b'data: {"choices": [{"delta": {"content": "Hello"}, "finish_reason": null}]}\n\n'
ENDLESS = PIECE * 2  # goes on with the same until the client leaves


class Server(ThreadingHTTPServer):
    """Sends the same bytes to every request, without a length: they end where the connection does."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.status = body, status
        self.left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        self.end_headers()
        try:
            self.wfile.write(self.server.body)
            while self.server.body == ENDLESS:  # until nobody listens
                self.wfile.write(PIECE)
                time.sleep(0.01)
        except OSError:
            self.server.left.set()

    def log_message(self, *_: object) -> None:
        """Write nothing to the tests' output."""


@contextmanager
def sending(body: bytes, status: int = 200) -> Iterator[Server]:
    with Server(body, status) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
