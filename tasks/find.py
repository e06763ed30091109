"""Find: what the same request ended with before."""

from prefect import task

from slmpack.publish import previous
from slmpack.publish.find import PublishedLookup
from slmpack.publish.request import Request
from slmpack.reports import UnprovedModel
from tasks.policies import REMOTE


@task(task_run_name="find what there is of {request.name}", **REMOTE)
def find_previous(request: Request, digests: tuple[str, ...] = ()) -> PublishedLookup | UnprovedModel | None:
    """Look for a healthy version or a waiting model; retried, since the registry is remote."""
    return previous.find_previous(request, digests)
