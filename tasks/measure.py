"""Measure: how much of its source the package keeps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import task

from slmpack import measure
from slmpack.cores import share_of_cores, threads_of_children
from slmpack.records import LoggedModel, QualityReport, Recipe, Snapshot, Target
from slmpack.request import Request
from tasks.policies import PROOF
from tasks.progress import progress_artifact


@task(task_run_name="measure {model.name}", **PROOF)
@progress_artifact("measure")
def measure_quality(model: LoggedModel, request: Request, recipe: Recipe | None) -> QualityReport:
    """Hold the package against its source and the policy; never retried."""
    return measure.measure_quality(
        model,
        request.policy,
        request.workspace,
        text=request.quality_text,
        chats=request.quality_chats,
        checked=request.checked,
        waiver=request.waiver_for(recipe),
        advice=request.advice_for(recipe),
    )


Wait = Callable[[], None]


@contextmanager
def reading_source_beside(snapshot: Snapshot, target: Target, request: Request) -> Iterator[Wait]:
    """Read the source for `measure_quality` while the block runs, each with half of the cores; give how to wait for it.

    It ends with the block. Where there is no memory for both, `measure_quality` reads it.
    """
    job = None
    if target is not Target.TRANSFORMERS:
        job = measure.read_source_beside(
            snapshot, request.workspace, text=request.quality_text, chats=request.quality_chats,
            checked=request.checked,
        )  # fmt: skip
    if job is None:
        yield lambda: None
        return
    try:
        with threads_of_children(share_of_cores() - share_of_cores() // 2) as restore:

            def wait() -> None:
                job.wait()
                restore()

            yield wait
    finally:
        job.end()
