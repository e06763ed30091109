"""Engine: the front's side of the process that computes; tokens of a job come as an asynchronous stream.

If the process dies, every answer under way ends with an EngineDiedError, and a new process is started; if that dies as
well, the next one waits longer. While there is none, jobs are refused at once.
"""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmpack.machine.private import open_log
from slmpack.machine.process import Process, start_process
from slmpack.machine.process_tree import kill_tree
from slmpack.serve.jobs import LONGEST_LINE, Job, Token, line_of
from slmpack.serve.open_graph import EnginePlan, OpenGraph
from slmpack.serve.sampling import SamplingRule

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a process that died is started again
STABLE_SECONDS = 60.0  # after so long a process that dies is no failure of its start
STOP_SECONDS = 2.0
POLL_SECONDS = 0.02
SILENT_SECONDS = 300.0  # a part of a prompt takes seconds; a whole one, by the runtime's generators, minutes


class EngineDiedError(RuntimeError):
    """The process that computes ended; the request may be sent again."""


class BusyError(RuntimeError):
    """As many answers as may wait are waiting already.

    Attributes:
        retry_seconds: when there may be room.
    """

    def __init__(self, waiting: int, retry_seconds: int) -> None:
        super().__init__(f"{waiting} answers are waiting, which is as many as may; send the request again later")
        self.retry_seconds = retry_seconds


class RefusedError(ValueError):
    """The engine cannot follow what the answer was to match."""


@dataclass
class Load:
    """What the engine said last about its work."""

    slots: int = 0
    waiting: int = 0
    taken_tokens: int = 0


@dataclass
class Started:
    """A process that computes, and our end of its line."""

    process: Process
    line: socket.socket


def start_engine(log: Path) -> Started:
    """Start a process, which imports what it needs and waits for a plan.

    Args:
        log: where its standard error goes.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "slmpack.serve.engine_process", str(theirs.fileno())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # of numpy; the session has threads of its own
    with theirs, open_log(log) as noise:
        process = start_process(command, stdout=noise, stderr=noise, environment=environment, files=[theirs.fileno()])
    return Started(process, ours)


class Engine:
    """One process, and the jobs that it has.

    Args:
        log: where its standard error goes.
        queue: jobs beyond the slots that may wait.
        started: a process that was started before; None: one is started.
        silent_seconds: after so long a process that has jobs and says nothing is ended.

    Attributes:
        opened: what the process loaded; None while there is none.
        load: its work.
        restarts: how often it was started again.
    """

    def __init__(self, plan: EnginePlan, log: Path, queue: int, started: Started | None = None,
                 silent_seconds: float = SILENT_SECONDS) -> None:  # fmt: skip
        self._plan, self._log, self._most = plan, log, queue + plan.slots
        self._ids = itertools.count()
        self._jobs: dict[int, asyncio.Queue[Token | Exception]] = {}
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._started, self._silent_seconds = started, silent_seconds
        self._seconds = 1.0  # of an answer, lately
        self.opened: OpenGraph | None = None
        self.load = Load()
        self.restarts = 0

    @property
    def is_ready(self) -> bool:
        """Whether there is a process that takes jobs."""
        return self.opened is not None

    @property
    def jobs(self) -> int:
        """Answers under way or waiting."""
        return len(self._jobs)

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process and wait until it has loaded the model.

        Raises:
            EngineDiedError: it did not; its log says why.
        """
        reader = await self._spawn()
        try:
            await self._load(reader)
        except EngineDiedError:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep(reader))

    async def stop(self) -> None:
        """End the process; answers under way end with an EngineDiedError."""
        if self._keeper is not None:
            self._keeper.cancel()
        self._close()
        if self._process is not None:
            await asyncio.to_thread(_end, self._process)
        self._fail_jobs()

    async def tokens(
        self, prompt: list[int], max_tokens: int, rule: SamplingRule, *, reuse: bool
    ) -> AsyncGenerator[Token]:
        """Yield the tokens of one answer; what leaves this early frees its slot.

        Raises:
            BusyError: too many wait.
            EngineDiedError: there is no process, or it ended.
            RefusedError: the rule's grammar cannot be followed.
        """
        if self._writer is None or self.opened is None:
            raise EngineDiedError("the process that computes is being started; send the request again in some seconds")
        if len(self._jobs) >= self._most:
            raise BusyError(len(self._jobs), self._retry_seconds())
        job = Job(next(self._ids), prompt, max_tokens, rule, reuse)
        queue = self._jobs[job.id] = asyncio.Queue()
        started, finish = time.monotonic(), None
        try:
            self._writer.write(job.to_line())
            while finish is None:
                found = await queue.get()
                if isinstance(found, Exception):
                    finish = "failed"
                    raise found
                finish = found.finish
                yield found
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
        finally:
            del self._jobs[job.id]
            if finish is None and self._writer is not None:
                self._writer.write(line_of({"cancel": job.id}))

    def _retry_seconds(self) -> int:
        return max(1, round(self._seconds * len(self._jobs) / self._plan.slots))

    async def _spawn(self) -> asyncio.StreamReader:
        started, self._started = self._started or start_engine(self._log), None
        self._process = started.process
        reader, self._writer = await asyncio.open_connection(sock=started.line, limit=LONGEST_LINE)
        self._writer.write(line_of({"plan": self._plan.model_dump(mode="json")}))
        return reader

    async def _load(self, reader: asyncio.StreamReader) -> None:
        line = await _line(reader)
        if not line:
            raise EngineDiedError(f"the process that computes ended while it loaded the model; see {self._log}")
        self.opened = OpenGraph.model_validate(line["ready"])

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Hand out tokens; start another process when this one ends."""
        wait = FIRST_WAIT
        while True:
            started = time.monotonic()
            with contextlib.suppress(EngineDiedError, TimeoutError):
                if self.opened is None:
                    await self._load(reader)
                await self._hand_out_all(reader)
            self.opened, self.load = None, Load()
            self._close()
            self._fail_jobs()
            if self._process is not None:
                await asyncio.to_thread(_end, self._process)
            wait = FIRST_WAIT if time.monotonic() - started > STABLE_SECONDS else min(2 * wait, LONGEST_WAIT)
            await asyncio.sleep(wait)
            self.restarts += 1
            reader = await self._spawn()

    async def _hand_out_all(self, reader: asyncio.StreamReader) -> None:
        """Hand out what comes, until the process ends.

        Raises:
            TimeoutError: it has jobs, and is silent for too long: native code may hang.
        """
        while True:
            try:
                async with asyncio.timeout(self._silent_seconds):
                    line = await _line(reader)
            except TimeoutError:
                if not self._jobs:
                    continue
                raise
            if not line:
                return
            self._hand_out(line)

    def _hand_out(self, line: dict[str, Any]) -> None:
        if "refused" in line:
            job, reason = line["refused"]
            if (queue := self._jobs.get(job)) is not None:
                queue.put_nowait(RefusedError(reason))
            return
        self.load = Load(**line["state"])
        for fields in line["tokens"]:
            if (queue := self._jobs.get(fields[0])) is not None:
                queue.put_nowait(Token.from_fields(fields))

    def cut_off(self) -> None:
        """End the answers under way with an EngineDiedError: there is no time for the rest of them."""
        self._fail_jobs("the server is being stopped; send the request again when it is back")

    def _fail_jobs(
        self, reason: str = "the process that computes ended; send the request again in some seconds"
    ) -> None:
        for queue in self._jobs.values():
            queue.put_nowait(EngineDiedError(reason))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


async def _line(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return the next message; an empty one at the end of the line."""
    with contextlib.suppress(ConnectionError):
        if (line := await reader.readline()).endswith(b"\n"):
            return dict(json.loads(line))
    return {}


def _end(process: Process) -> None:
    """Wait for a process whose line is closed, and kill it if it goes on."""
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    kill_tree(process.pid)
    process.wait()
