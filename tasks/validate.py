"""Validate: the logged model is what its interface promises."""

from prefect import task

from slmpack.prove import validate
from slmpack.publish.request import Request
from slmpack.records import LoggedModel
from slmpack.reports import ValidationReport
from tasks.policies import PROOF
from tasks.progress import progress_artifact


@task(task_run_name="validate {model.name}", **PROOF)
@progress_artifact("validate")
def validate_model(model: LoggedModel, request: Request) -> ValidationReport:
    """Check signature, example, requirements, leaks and chat templates; never retried."""
    return validate.validate_model(model, request.workspace, request.options.waive_template)
