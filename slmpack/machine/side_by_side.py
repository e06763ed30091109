"""Work that waits for child processes, side by side: several jobs at once, or one behind another.

A job that fails ends the children of the others, so that nobody waits for results without a use.
"""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

from slmpack.machine.process import end_children_of

Result = TypeVar("Result")


class Job(Generic[Result]):
    """One function in a thread of its own, from its start to `result` or `end`."""

    def __init__(self, function: Callable[[], Result]) -> None:
        context = contextvars.copy_context()  # what it logs belongs to the caller's run
        self._thread: int | None = None
        self._begun = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="slmpack-job")
        self.future: Future[Result] = self._pool.submit(context.run, self._run, function)

    def _run(self, function: Callable[[], Result]) -> Result:
        self._thread = threading.get_ident()
        self._begun.set()
        return function()

    def result(self) -> Result:
        """Wait for the function's result, or raise its error."""
        try:
            return self.future.result()
        finally:
            self.end()

    def wait(self) -> None:
        """Wait for the function's end, however it ends."""
        wait([self.future])

    def end(self) -> None:
        """End the children of a function that still runs, and wait for it; its error is nobody's then."""
        if not self.future.done():
            self._begun.wait()
            assert self._thread is not None
            end_children_of(self._thread, self.future.done)
        self._pool.shutdown()


def side_by_side(*functions: Callable[[], Any]) -> tuple[Any, ...]:
    """Run functions at the same time and return their results in order; the first error ends the others."""
    jobs = [Job(function) for function in functions]
    try:
        done, _ = wait([job.future for job in jobs], return_when=FIRST_EXCEPTION)
        failed = [job for job in jobs if job.future in done and job.future.exception() is not None]
        return tuple(job.result() for job in failed or jobs)
    finally:
        for job in jobs:
            job.end()
