"""Trace: which Prefect run something comes from, as tags for MLflow."""

from prefect import runtime
from prefect.utilities.urls import url_for

from slmpack.log.log import PREFECT_RUN
from tasks.lasting_server import has_lasting_server


def trace_of_run() -> dict[str, str]:
    """Return the id of this flow run and, unless its server lives only as long as it does, where to see it."""
    run_id = str(runtime.flow_run.id)
    address = url_for("flow-run", run_id) if has_lasting_server() else None
    return {PREFECT_RUN: run_id} | ({"prefect_address": address} if address else {})
