"""Measure: how much of its source the package keeps."""

from prefect import task

from slmpack import measure
from slmpack.records import LoggedModel, QualityReport, Recipe
from slmpack.request import Request
from tasks.policies import PROOF


@task(task_run_name="measure {model.name}", **PROOF)
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
