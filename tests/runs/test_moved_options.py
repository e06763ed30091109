"""Options that were parameters of their own: a run that was written for an earlier version is told what to write."""

from collections.abc import Callable
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from flows.options_flow import OptionsFlow, refuse_moved
from flows.package_model import package_model
from flows.package_targets import package_targets
from flows.retrain_model import retrain_model
from flows.verify_model import verify_model
from slmpack.errors import UsageError

ADVICE = "put it into the group options, where it stands since this version"


@pytest.mark.parametrize(
    ("run", "parameters", "told"),
    [
        (package_model, {"source": "x", "recipe": "small"}, "the parameter recipe; options.recipe"),
        (package_targets, {"policy": {}, "force": True}, "the parameter policy, force; options.policy, options.force"),
        (retrain_model, {"data": "x", "waive_quality": "why"}, "the parameter waive_quality; options.waive_quality"),
        (verify_model, {"model_uri": "x", "quality_text": None}, "the parameter quality_text; options.quality_text"),
    ],
)
def test_an_option_beside_the_options_is_refused_by_its_name(
    run: OptionsFlow[Any, Any], parameters: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as refused:
        run.validate_parameters(parameters)
    assert str(refused.value) == f"{told}; {ADVICE}"


@pytest.mark.parametrize("run", [package_model, package_targets, retrain_model, verify_model])
def test_what_is_a_parameter_is_refused_nowhere(run: OptionsFlow[Any, Any]) -> None:
    function: Callable[..., Any] = run.fn
    refuse_moved(function, dict.fromkeys(run.parameters.properties) | {"unknown": 1})


@pytest.mark.slow
def test_a_run_with_an_earlier_versions_parameters_ends_in_one_line(prefect_api: str) -> None:
    with get_client(sync_client=True) as client:
        created: Any = client.create_flow_run(package_model, parameters={"source": "nowhere", "recipe": "small"})
        with pytest.raises(UsageError):
            run_flow(package_model, flow_run=created, parameters=created.parameters)
        state = client.read_flow_run(created.id).state
    assert state is not None and state.is_failed()
    assert state.message == (
        f"Validation of flow parameters failed with error: UsageError: the parameter recipe; options.recipe; {ADVICE}"
    )
