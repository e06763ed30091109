"""What `make deploy` leaves on a real Prefect server, and what the server refuses."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from places import PROJECT
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_stack import PrefectServer, deploy, running_prefect_server

from flows.deploy import LOST_RUNS, STUCK_RUNS
from slmpack.errors import UsageError
from slmpack.records import Target
from slmpack.telemetry import SWITCHES
from tasks.dispatch import start_target

pytestmark = pytest.mark.slow

SCHEDULER_SECONDS = 900  # it looks once a minute


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server that was deployed to twice."""
    folder = tmp_path_factory.mktemp("server")
    with running_prefect_server(folder) as server, temporary_settings({PREFECT_API_URL: server.api}):
        for _ in range(2):
            done = deploy(folder, server.environment())
            assert done.returncode == 0, done.stderr
        assert "prefect worker start --pool cpu" in done.stdout
        yield server


@pytest.fixture(scope="module")
def deployments(server: PrefectServer) -> dict[str, DeploymentResponse]:
    with get_client(sync_client=True) as client:
        return {each.name: each for each in client.read_deployments()}


def test_each_target_is_built_in_the_pool_of_cpus_and_verified_in_that_of_its_hardware(
    deployments: dict[str, DeploymentResponse],
) -> None:
    for target in Target:
        deployment = deployments[f"package-{target}"]
        assert deployment.parameters == {"target": target.value}
        assert deployment.work_pool_name == "cpu"
        assert target.provider in deployment.tags
    assert deployments["package-all"].parameters["targets"] == ["cpu-int4", "cpu-int8", "transformers"]
    assert [deployments[f"verify-{pool}"].work_pool_name for pool in ("cpu", "cuda")] == ["cpu", "cuda"]
    assert [deployments[name].work_pool_name for name in ("rollback", "rollback-cuda")] == ["cpu", "cuda"]
    assert not deployments["rollback"].schedules


def offered(deployment: DeploymentResponse) -> list[str]:
    """Return the targets that the deployment's form offers."""
    options: list[str] = (deployment.parameter_openapi_schema or {})["properties"]["target"]["enum"]
    return options


def test_a_form_offers_no_target_but_those_that_the_deployment_is_for(
    deployments: dict[str, DeploymentResponse],
) -> None:
    for target in Target:
        assert offered(deployments[f"package-{target}"]) == [target]
    assert offered(deployments["rollback"]) == ["transformers", "cpu-int4", "cpu-int8"]
    assert offered(deployments["rollback-cuda"]) == ["cuda-int4", "cuda-fp16"]


def test_what_one_run_gives_another_is_in_no_form_and_is_taken_all_the_same(
    deployments: dict[str, DeploymentResponse],
) -> None:
    asked = {"checkpoint": f"models:/m-{'0' * 32}"}
    with get_client(sync_client=True) as client:
        for name, rest in (("package-cpu-int4", {}), ("verify-cpu", {"model_uri": f"models:/m-{'0' * 32}"})):
            schema = deployments[name].parameter_openapi_schema or {}
            assert "checkpoint" not in schema["properties"]
            run = client.create_flow_run_from_deployment(deployments[name].id, parameters=asked | rest)
            assert run.parameters["checkpoint"] == asked["checkpoint"]
            client.delete_flow_run(run.id)


def test_what_waits_for_a_worker_that_nobody_has_started_says_how_to_start_one(
    deployments: dict[str, DeploymentResponse],
) -> None:
    waiting = {each.name: each.description for each in deployments.values() if each.work_pool_name != "cpu"}
    assert waiting.keys() == {"verify-cuda", "rollback-cuda"}
    for description in waiting.values():
        assert "`prefect worker start --pool cuda` on a machine with such a GPU" in str(description)
    assert "`verify-cuda` proves it" in str(deployments["package-cuda-int4"].description)
    with get_client(sync_client=True) as client:
        assert "prefect worker start --pool cuda" in str(client.read_work_pool("cuda").description)


def test_a_runs_log_has_the_librarys_lines(deployments: dict[str, DeploymentResponse]) -> None:
    for deployment in deployments.values():
        assert deployment.job_variables["env"]["PREFECT_LOGGING_EXTRA_LOGGERS"] == "slmpack"


def test_another_target_is_refused_in_one_line_where_validation_is_switched_off(
    server: PrefectServer, deployments: dict[str, DeploymentResponse]
) -> None:
    with get_client(sync_client=True) as client:
        answer = client.request(
            "POST", "/deployments/{id}/create_flow_run", path_params={"id": deployments["package-cpu-int4"].id},
            json={"parameters": {"target": "cpu-int8"}, "enforce_parameter_schema": False},
        )  # fmt: skip
        run = answer.json()["id"]
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "flow-run", "execute", run],
            cwd=server.folder, env=server.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        state = client.read_flow_run(UUID(run)).state
    assert state is not None and state.is_failed(), done.stderr[-2000:]
    assert state.message == (
        "Flow run encountered an exception: UsageError: the target cpu-int8 in a run of package-cpu-int4; cpu-int4; "
        "start a run of package-cpu-int8 instead"
    )


def test_deploying_twice_leaves_one_of_each(server: PrefectServer, deployments: dict[str, DeploymentResponse]) -> None:
    with get_client(sync_client=True) as client:
        assert all(len(client.read_automations_by_name(each.name)) == 1 for each in (LOST_RUNS, STUCK_RUNS))
        names = [automation.name for automation in client.read_automations()]
        assert sorted(pool.name for pool in client.read_work_pools()) == ["cpu", "cuda"]
        assert len(client.read_deployments()) == len(deployments)
    assert len(names) == len(set(names))


def test_nothing_of_the_machine_that_deployed_is_stored(deployments: dict[str, DeploymentResponse]) -> None:
    for deployment in deployments.values():
        stored = deployment.model_dump_json()
        assert str(PROJECT) not in stored and str(Path.home()) not in stored
        assert not deployment.pull_steps
        assert str(deployment.entrypoint).startswith("flows.")


def test_a_run_has_every_switch_against_telemetry_in_its_environment(
    deployments: dict[str, DeploymentResponse],
) -> None:
    for deployment in deployments.values():
        assert SWITCHES.items() <= deployment.job_variables["env"].items()


def test_nightly_runs_are_off_and_their_time_zone_is_told(deployments: dict[str, DeploymentResponse]) -> None:
    nightly = {name: each.schedules for name, each in deployments.items() if name.startswith("package-")}
    assert {len(schedules) for schedules in nightly.values()} == {1}
    for (schedule,) in nightly.values():
        assert (schedule.slug, schedule.active) == ("nightly-0300-utc", False)
        assert schedule.schedule.timezone == "UTC"  # type: ignore[union-attr]


def test_a_retraining_polls_when_it_is_asked_to_and_nothing_piles_up_behind_it(
    deployments: dict[str, DeploymentResponse],
) -> None:
    retrain = deployments["retrain"]
    schedules = {(each.slug, each.active) for each in retrain.schedules}
    assert schedules == {("nightly-0300-utc", False), ("every-ten-minutes", False)}
    assert retrain.global_concurrency_limit is not None and retrain.concurrency_options is not None
    assert (retrain.global_concurrency_limit.limit, retrain.concurrency_options.collision_strategy) == (1, "CANCEL_NEW")
    assert "while another one runs is cancelled" in str(retrain.description)


def test_deploying_again_does_not_forget_which_runs_are_waited_for(server: PrefectServer) -> None:
    """The server drops what it noted of heartbeats when their automation is written; so it is not, once it is right."""
    with get_client(sync_client=True) as client:
        for automation in (LOST_RUNS, STUCK_RUNS):
            (found,) = client.read_automations_by_name(automation.name)
            assert AutomationCore.model_validate(found.model_dump(exclude={"id"})) == automation


def test_a_schedule_that_is_switched_on_makes_runs_and_stays_on(
    server: PrefectServer, deployments: dict[str, DeploymentResponse]
) -> None:
    deployment = deployments["package-transformers"]
    (nightly,) = deployment.schedules
    chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
    with get_client(sync_client=True) as client:
        client.update_deployment_schedule(deployment.id, nightly.id, active=True)
        deadline = time.monotonic() + SCHEDULER_SECONDS
        while not (runs := client.read_flow_runs(deployment_filter=chosen)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert deploy(server.folder, server.environment()).returncode == 0
        assert [each.active for each in client.read_deployment(deployment.id).schedules] == [True]
        client.update_deployment_schedule(deployment.id, nightly.id, active=False)
    assert runs and {run.expected_start_time.hour for run in runs if run.expected_start_time} == {3}


def test_the_form_has_a_help_text_for_each_parameter(deployments: dict[str, DeploymentResponse]) -> None:
    for deployment in deployments.values():
        schema = deployment.parameter_openapi_schema or {}
        records = schema.get("definitions", {}).values()
        groups = [record["properties"] for record in records if "properties" in record]
        for shown in (schema["properties"], *groups):
            assert [name for name, field in shown.items() if not field.get("description")] == []


def test_the_options_of_packaging_are_one_group_with_selects_limits_and_a_group_of_its_own(
    deployments: dict[str, DeploymentResponse],
) -> None:
    for name in ("package-cpu-int4", "package-all", "retrain"):
        schema = deployments[name].parameter_openapi_schema or {}
        assert schema["properties"]["options"]["$ref"].endswith("/PackageOptions")
        options = schema["definitions"]["PackageOptions"]["properties"]
        assert [*options][:2] == ["recipe", "interface"]
        assert "balanced" in schema["definitions"]["Recipe"]["enum"]
        assert options["policy"]["title"] == "Quality policy"
        assert options["licences"]["title"] == "Licence policy"
        assert schema["definitions"]["LicencePolicy"]["properties"]["refuse"]["items"]["maxLength"] == 200
        assert schema["definitions"]["QualityPolicy"]["properties"]["max_perplexity_ratio"]["minimum"] == 1.0
    verify = deployments["verify-cpu"].parameter_openapi_schema or {}
    assert "recipe" not in verify["definitions"]["ProofOptions"]["properties"]


@pytest.mark.parametrize(
    ("deployment", "field", "parameters"),
    [
        ("package-cpu-int4", "target", {"target": "rocm"}),
        ("package-cpu-int4", "target", {"target": "cpu-int8"}),
        ("package-cpu-int4", "checkpoint", {"checkpoint": "models:/another"}),
        ("rollback", "target", {"name": "tiny", "target": "cuda-int4"}),
        ("package-cpu-int4", "options.recipe", {"options": {"recipe": "smallest"}}),
        ("package-cpu-int4", "recipe is in the group options now: give options.recipe", {"recipe": "small"}),
        ("package-all", "give options.policy", {"policy": {"max_perplexity_ratio": 1.2}}),
        ("verify-cpu", "give options.waive_quality", {"model_uri": "models:/a/1", "waive_quality": "a good reason"}),
        ("retrain", "give options.force", {"data": "/data", "force": True}),
        ("package-cpu-int4", "max_perplexity_ratio", {"options": {"policy": {"max_perplexity_ratio": 0.9}}}),
        ("package-cpu-int4", "max_perplexity", {"options": {"policy": {"max_perplexity": 1.2}}}),
        ("package-cpu-int4", "precision", {"precision": "int4"}),
        ("package-cpu-int4", "source", {"source": " "}),
        ("package-all", "targets", {"targets": []}),
        ("package-all", "targets", {"targets": ["cpu-int4", "npu"]}),
        ("verify-cpu", "model_uri", {}),
        ("retrain", "data", {}),
        ("retrain", "data", {"data": " "}),
        ("rollback", "target", {"name": "tiny"}),
        ("rollback", "name", {"name": "", "target": "cpu-int4"}),
        ("rollback", "version", {"name": "tiny", "target": "cpu-int4", "version": 1}),
    ],
)
def test_the_server_refuses_a_wrong_parameter_by_its_name(
    deployments: dict[str, DeploymentResponse], deployment: str, field: str, parameters: dict[str, Any]
) -> None:
    with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError) as refused:
        client.create_flow_run_from_deployment(deployments[deployment].id, parameters=parameters)
    assert refused.value.response.status_code in (409, 422)
    assert field in refused.value.response.text


def test_a_deployment_of_another_version_is_named_with_what_to_type(
    deployments: dict[str, DeploymentResponse],
) -> None:
    with pytest.raises(UsageError) as refused:
        start_target.fn(Target.CPU_INT4, {"precision": "int4"})
    found = str(refused.value)
    assert found.startswith("the deployment package-model/package-cpu-int4 refuses the parameters: ")
    assert "precision" in found and found.endswith("; a deployment of this version; type: make deploy")


def test_without_a_server_it_says_so_in_one_line(tmp_path: Path, server: PrefectServer) -> None:
    dead = deploy(tmp_path, server.environment(PREFECT_API_URL="http://127.0.0.1:9/api"))
    environment = server.environment()
    del environment["PREFECT_API_URL"]
    unset = deploy(tmp_path, environment)
    assert (dead.returncode, unset.returncode) == (1, 1)
    assert dead.stderr.startswith("slmpack: no Prefect server answers at http://127.0.0.1:9/api")
    assert unset.stderr.startswith("slmpack: PREFECT_API_URL is not set; ")
    assert [done.stderr.count("\n") for done in (dead, unset)] == [1, 1]
