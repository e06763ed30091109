"""A TCP proxy on the loopback that counts what its clients send and receive, and that can play an outage."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BLOCK_BYTES = 1 << 16


class CountingProxy(socketserver.ThreadingTCPServer):
    """Passes every connection on to one port; `sent_bytes` went there, `received_bytes` came back.

    While `is_down`, each client that connects is hung up on, as is one that sends what `holding` waits for.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = ("127.0.0.1", port)
        self.sent_bytes = self.received_bytes = 0
        self.is_down = False
        self._held: bytes | None = None
        self._reached, self._released = threading.Event(), threading.Event()
        self.counting = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def holding(self, words: bytes, seconds: float, begin: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Run the block once a client has sent the words, which waits for an answer meanwhile and gets none.

        Args:
            begin: what has them sent, where that is over soon: it is called when they are waited for.
        """
        self._reached.clear()
        self._released.clear()
        self._held = words
        try:
            begin()
            if not self._reached.wait(seconds):
                raise TimeoutError(f"nobody has sent {words!r} within {seconds:.0f} s")
            yield
        finally:
            self._held = None
            self._released.set()

    def lets_through(self, block: bytes) -> bool:
        """Say whether a block is passed on; one that is held waits first."""
        held = self._held  # which `holding` may take away at any moment
        if held is not None and held in block:
            self._reached.set()
            self._released.wait()
            return False
        return not self.is_down


class _Connection(socketserver.BaseRequestHandler):
    server: CountingProxy

    def handle(self) -> None:
        if self.server.is_down:
            return
        with socket.create_connection(self.server.target) as there:
            back = threading.Thread(target=self._pass, args=(there, self.request, "received_bytes"), daemon=True)
            back.start()
            self._pass(self.request, there, "sent_bytes")
            back.join()

    def _pass(self, source: socket.socket, into: socket.socket, counter: str) -> None:
        """Pass on until one side hangs up, then let the other side know."""
        try:
            while (block := source.recv(BLOCK_BYTES)) and self.server.lets_through(block):
                with self.server.counting:  # before it is there: whoever has all of it finds all of it counted
                    setattr(self.server, counter, getattr(self.server, counter) + len(block))
                into.sendall(block)
            into.shutdown(socket.SHUT_WR)
        except OSError:  # hung up in the middle
            return


@contextmanager
def counting_proxy(port: int) -> Iterator[CountingProxy]:
    """Yield a running proxy to `port` of the loopback."""
    with CountingProxy(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
