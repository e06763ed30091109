"""What a run leaves with Prefect, and what others make of it when the run did not end well."""

from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import State

from slmpack.progress import report
from slmpack.records import Target
from slmpack.reports import Outcome
from tasks.dispatch import await_target
from tasks.outcome import keep_outcome
from tasks.progress import progress_artifact

TARGET = Target.CPU_INT4
PUBLISHED = Outcome(status="published", target=TARGET, name="tiny", version=1, alias="cpu-int4")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def id_of(state: State[None]) -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def test_a_run_that_crashed_has_published_nothing_whatever_it_kept() -> None:
    @flow
    def keeps_an_outcome(fails: bool) -> None:
        keep_outcome(PUBLISHED)
        if fails:
            raise RuntimeError("killed")

    good, bad = (id_of(keeps_an_outcome(fails, return_state=True)) for fails in (False, True))
    assert await_target.fn(TARGET, good) == PUBLISHED
    lost = await_target.fn(TARGET, bad)
    assert (lost.status, lost.target, lost.version) == ("failed", TARGET, None)
    assert "ended Failed: " in str(lost.reason)


def test_a_stage_that_failed_is_not_shown_as_done() -> None:
    @flow
    def works(fails: bool) -> None:
        with progress_artifact("build"):
            report("build", 1, 4, "steps")
            if fails:
                raise RuntimeError("no more")

    shown = []
    for fails in (True, False):
        run = id_of(works(fails, return_state=True))
        with get_client(sync_client=True) as client:
            (artifact,) = client.read_artifacts(
                artifact_filter=ArtifactFilter(
                    flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=ArtifactFilterKey(any_=["build-progress"])
                )
            )
        shown.append((artifact.data, artifact.description))
    assert shown == [(25.0, "build: 1 of 4 steps"), (100.0, "done")]
