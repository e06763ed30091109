"""Validate: the logged model is what its interface promises."""

from pathlib import Path

from prefect import task

from slmpack.prove import validate
from slmpack.records import LoggedModel
from slmpack.reports import ValidationReport
from tasks.policies import PROOF
from tasks.progress import progress_artifact


@task(task_run_name="validate {model.name}", **PROOF)
@progress_artifact("validate")
def validate_model(model: LoggedModel, workspace: Path) -> ValidationReport:
    """Check signature, example, requirements and leaks; never retried."""
    return validate.validate_model(model, workspace)
