"""A person in front of the dashboard: chooses in a deployment's form, submits, and looks at the run.

The browser, both servers and the worker are real. What is done is done in the browser; what came of it is asked of the
servers, and once of the page.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from browser import Form, Resume, links_to, open_page, open_run, take_picture
from mlflow import MlflowClient
from mlflow_server import running_mlflow_server
from playwright.sync_api import Page
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_stack import PrefectServer, deploy, running_prefect_server, running_worker

pytestmark = pytest.mark.slow

RUN_SECONDS = 900  # what takes one minute on an idle machine


@dataclass(frozen=True)
class Desk:
    """What a person has: a browser, a dashboard, and MLflow."""

    page: Page
    prefect: PrefectServer
    mlflow: str

    def deployment(self, name: str) -> DeploymentResponse:
        with get_client(sync_client=True) as client:
            return client.read_deployment_by_name(name)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    with (
        open_page() as page,  # first, since it skips
        running_mlflow_server(folder) as mlflow,
        running_prefect_server(folder) as prefect,
        temporary_settings({PREFECT_API_URL: prefect.api}),
    ):
        environment = prefect.environment(MLFLOW_TRACKING_URI=mlflow)
        done = deploy(folder, environment)
        assert done.returncode == 0, done.stderr
        with running_worker("cpu", folder, environment, "worker"):
            yield Desk(page, prefect, mlflow)


def until(run: UUID, state: str) -> None:
    """Wait until the run is in that state; one that ended is in it never."""
    deadline = time.monotonic() + RUN_SECONDS
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found = client.read_flow_run(run).state
            if found is not None and found.name == state:
                return
            assert found is None or not found.is_final(), found
            time.sleep(1)
    raise AssertionError(f"the run is not {state} after {RUN_SECONDS} s: {found}")


def ended(run: UUID) -> FlowRun:
    """Return the run when it has ended."""
    deadline = time.monotonic() + RUN_SECONDS
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found = client.read_flow_run(run)
            if found.state is not None and found.state.is_final():
                return found
            time.sleep(1)
    raise AssertionError(f"the run has not ended after {RUN_SECONDS} s: {found.state}")


def test_a_run_that_is_asked_for_in_the_form_publishes_a_model(
    desk: Desk, town_phi3: Path, workspace: Path, tmp_path: Path
) -> None:
    form = Form(desk.page, desk.prefect.address, desk.deployment("package-model/package-cpu-int4"))
    form.write("source", str(town_phi3))
    form.choose("options.recipe", "small")
    form.write_optional("name", "str", "asked-for")
    form.write_optional("options.waive_quality", "str", "random weights, for a test")
    form.write_optional("workspace", "path", str(workspace))
    assert form.options("target") == ["cpu-int4"]
    assert desk.page.get_by_text("checkpoint").count() == 0
    form.call("tiny for the edge")
    take_picture(desk.page, "form", tmp_path)
    answer = form.submit()
    assert answer.status == 201, answer.text()

    run = ended(UUID(answer.json()["id"]))
    assert run.state is not None and run.state.is_completed(), run.state
    assert run.name == "tiny for the edge"
    assert run.parameters["target"] == "cpu-int4"
    given = {"recipe": "small", "waive_quality": "random weights, for a test"}
    assert given.items() <= run.parameters["options"].items()
    assert MlflowClient(desk.mlflow).get_model_version_by_alias("asked-for", "cpu-int4").version == "1"

    open_run(desk.page, desk.prefect.address, run.id)
    desk.page.get_by_text("Completed").first.wait_for()
    stages = ("fetch", "build", "log", "smoke", "measure", "validate", "publish")
    for artifact in ("outcome", "proofs", "version", "mlflow-version", *(f"{stage}-progress" for stage in stages)):
        desk.page.get_by_text(artifact, exact=True).first.wait_for()
    take_picture(desk.page, "run", tmp_path)
    texts = ("asked-for version 1", "The page")
    links = {link.inner_text(): str(link.get_attribute("href")) for link in links_to(desk.page, desk.mlflow, *texts)}
    assert links.keys() == set(texts)
    desk.page.goto(links["asked-for version 1"])
    desk.page.get_by_role("heading", name="Version 1").first.wait_for()
    take_picture(desk.page, "mlflow-version", tmp_path)
    desk.page.goto(links["The page"])
    desk.page.locator("iframe").first.content_frame.get_by_text("Proved").first.wait_for()


def test_a_promotion_is_suspended_until_a_person_approves_it_on_the_page(desk: Desk, tmp_path: Path) -> None:
    registry = MlflowClient(desk.mlflow)
    form = Form(desk.page, desk.prefect.address, desk.deployment("promote-model/promote"))
    form.write("name", "asked-for")  # which the test before has published
    form.call("to production")
    answer = form.submit()
    assert answer.status == 201, answer.text()
    run = UUID(answer.json()["id"])
    until(run, "Suspended")
    assert "production" not in registry.get_registered_model("asked-for").aliases

    resume = Resume(desk.page, desk.prefect.address, run)
    take_picture(desk.page, "approval", tmp_path)
    desk.page.get_by_text("asked-for version 1").first.wait_for()
    desk.page.get_by_text("not signed").first.wait_for()
    resume.approve("Ada Lovelace")
    found = ended(run)
    assert found.state is not None and found.state.is_completed(), found.state
    assert str(found.state.message).endswith("version 1 (cpu-int4), approved by Ada Lovelace")
    version = registry.get_model_version_by_alias("asked-for", "production")
    assert version.tags["slmpack.approved.production"].endswith(" Ada Lovelace")


@pytest.mark.parametrize(("field", "value"), [("options.policy.max_perplexity_ratio", "0.5"), ("source", " ")])
def test_a_wrong_value_is_refused_on_the_page_by_its_field(desk: Desk, field: str, value: str) -> None:
    form = Form(desk.page, desk.prefect.address, desk.deployment("package-model/package-cpu-int4"))
    form.write(field, value)
    answer = form.submit()
    assert answer.status in (409, 422)
    desk.page.get_by_text(f"Validation failed for field '{field}'").first.wait_for()
