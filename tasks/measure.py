"""Measure: how much of its source the package keeps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import task

from slmpack.machine.cores import share_of_cores, threads_of_children
from slmpack.machine.side_by_side import Job
from slmpack.prove import measure
from slmpack.publish.request import Request
from slmpack.records import LoggedModel, Recipe, Snapshot, Target
from slmpack.reports import QualityReport
from tasks.policies import PROOF
from tasks.progress import progress_artifact


@task(task_run_name="measure {model.name}", **PROOF)
@progress_artifact("measure")
def measure_quality(model: LoggedModel, request: Request, recipe: Recipe | None) -> QualityReport:
    """Hold the package against its source and the policy; never retried."""
    return measure.measure_quality(
        model,
        request.options.policy,
        request.workspace,
        text=request.options.quality_text,
        chats=request.options.quality_chats,
        checked=request.checked,
        waiver=request.waiver_for(recipe),
        advice=request.advice_for(recipe),
    )


class SourceBeside:
    """A source that is read while something else is done."""

    def __init__(self, job: Job[None] | None, end_sharing: Callable[[], None]) -> None:
        self._job, self._end_sharing = job, end_sharing

    def is_read(self) -> bool:
        """Say whether nothing is read any more, or nothing was to be."""
        if self._job is not None and self._job.future.done():
            self.wait()
        return self._job is None

    def wait(self) -> None:
        """Wait until it is read; from then on the cores are those of others alone."""
        if self._job is not None:
            self._job.wait()
            self._end_sharing()
            self._job = None


@contextmanager
def reading_source_beside(snapshot: Snapshot, request: Request) -> Iterator[SourceBeside]:
    """Read the source for `measure_quality` while the block runs, each with half of the cores.

    It ends with the block. Where there is no memory for both, `measure_quality` reads it.
    """
    job = None
    if request.target is not Target.TRANSFORMERS:
        job = measure.read_source_beside(
            snapshot,
            request.workspace,
            text=request.options.quality_text,
            chats=request.options.quality_chats,
            checked=request.checked,
        )
    if job is None:
        yield SourceBeside(None, lambda: None)
        return
    try:
        with threads_of_children(share_of_cores() - share_of_cores() // 2) as end_sharing:
            yield SourceBeside(job, end_sharing)
    finally:
        job.end()
