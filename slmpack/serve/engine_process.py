"""The process that computes: takes a plan and then jobs from one line, and sends tokens; ends when the line closes.

It has no thread of Python's and no event loop: everything the front has to answer at once is answered by the front.
What it needs is imported before it is told what to load, so that this goes on while the front finds the model.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the runtime is imported

import select
import signal
import socket
import sys
import time
from collections.abc import Iterator

from slmpack.serve.grammar import GrammarError, Grammars
from slmpack.serve.jobs import Job, Lines, Refusal, Token, line_of
from slmpack.serve.open_graph import EnginePlan, open_graph
from slmpack.serve.scheduler import Scheduler

READ_BYTES = 1 << 20
ALIVE_SECONDS = 1.0  # a process that works says so at least so often, between two parts of a prompt


class _Line:
    """The front's end of the line, as this process sees it."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._lines = Lines()
        self.is_open = True

    def send(self, message: object) -> None:
        try:
            self._socket.sendall(line_of(message))
        except OSError:  # nobody is there to hear it
            self.is_open = False

    def received(self, *, wait: bool) -> Iterator[dict[str, object]]:
        """Yield what was sent; wait for it where there is nothing else to do."""
        while self.is_open and select.select([self._socket], [], [], None if wait else 0)[0]:
            received = self._socket.recv(READ_BYTES)
            self.is_open = bool(received)
            messages = list(self._lines.push(received))
            yield from messages
            wait = wait and not messages


def main() -> None:
    """Open the package, say so, and answer jobs until the line closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the front's to answer
    line = _Line(int(sys.argv[1]))
    if (plan := _plan_from(line)) is None:
        return
    graph, opened = open_graph(plan)
    grammars = Grammars(plan.folder, plan.vocabulary, plan.end_tokens)
    scheduler = Scheduler(
        graph, plan.end_tokens, grammars, together=opened.together, reuse=opened.reuse, part=opened.part
    )
    line.send({"ready": opened.model_dump()})
    said, said_at = scheduler.state(), time.monotonic()
    while line.is_open:
        for message in line.received(wait=not scheduler.has_work):
            _take(message, scheduler, line)
        found = list(scheduler.turn())
        tokens = [each.to_fields() for each in found if isinstance(each, Token)]
        state = scheduler.state()
        if tokens or state != said or time.monotonic() - said_at > ALIVE_SECONDS:
            line.send({"tokens": tokens, "state": state})
            said, said_at = state, time.monotonic()
        for refusal in [each for each in found if isinstance(each, Refusal)]:  # behind the tokens that came before it
            line.send({"refused": [refusal.id, refusal.reason]})


def _plan_from(line: _Line) -> EnginePlan | None:
    """Return what is to be loaded; None if the front is gone before it says so."""
    import onnx  # noqa: F401 - that and the runtime take half a second
    import onnxruntime  # noqa: F401

    for message in line.received(wait=True):
        return EnginePlan.model_validate(message["plan"])
    return None


def _take(message: dict[str, object], scheduler: Scheduler, line: _Line) -> None:
    if isinstance(fields := message.get("new"), dict):
        job = Job.from_fields(fields)
        try:
            scheduler.add(job)
        except GrammarError as error:
            line.send({"refused": [job.id, str(error)]})
    elif isinstance(job_id := message.get("cancel"), int):
        scheduler.cancel(job_id)


if __name__ == "__main__":
    main()
