"""Rollback: the alias goes back to what was proved before and still is whole and answers; never forward."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from command_line import objects, slmpack
from made_proofs import ALIAS, flip_a_bit, holder_of, proofs_of, publish, versions_of
from mlflow import MlflowClient

from flows.package_model import package_model
from flows.rollback_model import rollback_model
from slmpack.errors import CheckError, PublishError, SourceError, UsageError
from slmpack.log.health import UNHEALTHY
from slmpack.log.tags import facts_in
from slmpack.machine.hardware import unprovable_error
from slmpack.publish.find import Search, find_published, published_before
from slmpack.publish.options import PackageOptions
from slmpack.publish.publish import publish_version
from slmpack.publish.rollback import RollbackPlan, move_alias_back, plan_rollback, read_version
from slmpack.records import Interface, LoggedModel, Recipe, Target
from slmpack.reports import Outcome

LogIt = Callable[..., LoggedModel]
pytestmark = pytest.mark.slow  # each of them packages tiny Phi-3, where that was not done before


def way_of(name: str) -> RollbackPlan:
    return plan_rollback(name, Target.CPU_INT4, Interface.CHAT)


def go_back(name: str) -> int:
    """Roll back without asking the model."""
    way = way_of(name)
    return move_alias_back(way, way.candidates[0] if way.candidates else way.holder, {"prefect_run": "run-2"}).version


def tags_of(name: str, version: int) -> dict[str, str]:
    return MlflowClient().get_model_version(name, str(version)).tags


def test_the_alias_goes_back_and_both_sides_say_so(name: str, log_it: LogIt) -> None:
    for variant in "ab":
        publish(log_it(variant))
    assert way_of(name).model_dump() == {
        "name": name, "alias": ALIAS, "holder": 2, "candidates": (1,), "interrupted": False,
    }  # fmt: skip

    found = move_alias_back(way_of(name), 1, {"prefect_run": "run-2"})

    assert (found.version, found.alias, found.target, holder_of(name)) == (1, ALIAS, Target.CPU_INT4, 1)
    left, restored = tags_of(name, 2), tags_of(name, 1)
    assert (left["slmpack.rolled_back_to"], facts_in(left)["rollback_prefect_run"]) == ("1", "run-2")
    assert restored["slmpack.restored_from"] == "2"
    assert left["slmpack.rolled_back"] == restored["slmpack.restored"] >= restored["slmpack.held_since"]
    assert (left["slmpack.published"], facts_in(left)["prefect_run"]) == (ALIAS, "run-1")


def test_two_rollbacks_go_two_versions_back_and_a_third_nowhere(name: str, log_it: LogIt) -> None:
    for variant in "abc":
        publish(log_it(variant))

    assert [go_back(name), go_back(name)] == [2, 1]

    with pytest.raises(PublishError, match=f"no version of {name} had the alias {ALIAS} before version 1; one to go"):
        way_of(name)
    assert holder_of(name) == 1


def test_a_version_after_a_rollback_goes_back_to_what_it_superseded(name: str, log_it: LogIt) -> None:
    for variant in "abc":
        publish(log_it(variant))
    go_back(name)
    publish(log_it("d"))

    assert way_of(name).candidates == (2, 1)
    assert [go_back(name), go_back(name)] == [2, 1]


def test_packaging_what_was_rolled_back_is_unchanged_and_moves_nothing(name: str, log_it: LogIt) -> None:
    key = "a" * 64
    publish(log_it("a"))
    second = log_it("b")
    publish_version(second, proofs_of(second), request_key=key)
    go_back(name)

    search = Search(name=name, target=Target.CPU_INT4, alias=ALIAS, fingerprint="", request_key=key)
    found = [find_published(name, second.digest, ALIAS), published_before(search)]
    again = publish(log_it("b"))

    assert [each and each.version for each in found] == [2, 2]
    assert (again.version, versions_of(name), holder_of(name)) == (2, [1, 2], 1)
    assert publish(log_it("b"), force=True).version == 3  # who insists gets a version of its own
    assert (holder_of(name), way_of(name).candidates) == (3, (1,))


def test_what_another_alias_had_is_no_way_back(name: str, log_it: LogIt) -> None:
    publish(log_it("a"))
    with pytest.raises(PublishError, match=r"no version of .* has the alias cpu-int4-prompt: no alias cpu-int4-prompt"):
        plan_rollback(name, Target.CPU_INT4, Interface.PROMPT)
    publish(log_it("b"))
    MlflowClient().set_model_version_tag(name, "1", "slmpack.held_alias", "cpu-int8")
    with pytest.raises(PublishError, match="had the alias cpu-int4 before version 2"):
        way_of(name)


@pytest.mark.parametrize("model_name", ["nothing", "a b"])
def test_a_name_that_nobody_registered_is_told(store: Path, model_name: str) -> None:
    with pytest.raises(PublishError, match=f"no version of {model_name} has the alias cpu-int4"):
        way_of(model_name)


def test_a_name_that_mlflow_refuses_is_bad_usage(store: Path) -> None:
    with pytest.raises(UsageError, match="a/b"):
        way_of("a/b")


def test_a_version_that_was_deleted_does_not_hide_those_before_it(name: str, log_it: LogIt) -> None:
    for variant in "abcd":
        publish(log_it(variant))
    MlflowClient().delete_model_version(name, "3")

    assert way_of(name).candidates == (2, 1)


def test_an_alias_that_was_moved_back_by_hand_goes_further_back(name: str, log_it: LogIt) -> None:
    for variant in "abc":
        publish(log_it(variant))
    MlflowClient().set_registered_model_alias(name, ALIAS, "2")
    assert way_of(name).candidates == (1,)
    MlflowClient().set_registered_model_alias(name, ALIAS, "1")
    with pytest.raises(PublishError, match="before version 1"):
        way_of(name)


def test_a_rollback_that_was_killed_before_the_alias_moved_goes_to_the_same_version(name: str, log_it: LogIt) -> None:
    for variant in "abc":
        publish(log_it(variant))
    MlflowClient().set_model_version_tag(name, "3", "slmpack.rolled_back_to", "2")

    assert (go_back(name), holder_of(name)) == (2, 2)
    assert "slmpack.rolled_back" in tags_of(name, 3)
    assert go_back(name) == 1


def test_a_rollback_that_was_killed_after_the_alias_moved_is_completed_and_goes_no_further(
    name: str, log_it: LogIt
) -> None:
    for variant in "abc":
        publish(log_it(variant))
    MlflowClient().set_model_version_tag(name, "3", "slmpack.rolled_back_to", "2")
    MlflowClient().set_registered_model_alias(name, ALIAS, "2")

    way = way_of(name)

    assert (way.interrupted, way.holder, way.candidates) == (True, 2, ())
    assert (go_back(name), holder_of(name)) == (2, 2)
    assert {"slmpack.rolled_back"} <= tags_of(name, 3).keys()
    assert tags_of(name, 2)["slmpack.restored_from"] == "3"
    assert go_back(name) == 1


def test_what_was_left_half_done_and_superseded_since_stops_no_later_rollback(name: str, log_it: LogIt) -> None:
    for variant in "abc":
        publish(log_it(variant))
    MlflowClient().set_model_version_tag(name, "3", "slmpack.rolled_back_to", "2")  # and nobody tried again
    publish(log_it("d"))

    assert [go_back(name), go_back(name)] == [2, 1]  # version 3 is what somebody wanted to leave


def test_the_same_call_twice_goes_back_once(name: str, log_it: LogIt) -> None:
    for variant in "abc":
        publish(log_it(variant))
    way = way_of(name)
    assert [move_alias_back(way, 2).version, move_alias_back(way, 2).version] == [2, 2]
    assert holder_of(name) == 2


def test_an_alias_that_somebody_moved_meanwhile_stays(name: str, log_it: LogIt) -> None:
    for variant in "ab":
        publish(log_it(variant))
    way = way_of(name)
    publish(log_it("c"))
    with pytest.raises(PublishError, match=f"{ALIAS} went to version 3 meanwhile; version 2; look at it"):
        move_alias_back(way, 1)
    assert holder_of(name) == 3
    assert "slmpack.rolled_back_to" not in tags_of(name, 2)


def test_a_version_given_back_by_hand_can_be_rolled_back_again(name: str, log_it: LogIt) -> None:
    for variant in "ab":
        publish(log_it(variant))
    go_back(name)
    MlflowClient().set_registered_model_alias(name, ALIAS, "2")

    assert go_back(name) == 1
    assert "slmpack.rolled_back" in tags_of(name, 2)


def test_a_version_is_read_back_without_its_source(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    read = read_version(name, 1)
    assert (read.model_id, read.digest, read.package.files) == (model.model_id, model.digest, model.package.files)
    flip_a_bit(model)
    with pytest.raises(CheckError, match=r"model\.onnx\.data"):
        read_version(name, 1)
    with pytest.raises(SourceError, match=f"MLflow has no models:/{name}/9"):
        read_version(name, 9)


@pytest.fixture
def three(name: str, log_it: LogIt, prefect_api: str) -> list[LoggedModel]:
    """Three versions, the third of which has the alias."""
    models = [log_it(variant) for variant in "abc"]
    for model in models:
        publish(model)
    return models


def test_the_command_gives_the_alias_back_to_a_version_that_answers(
    name: str, three: list[LoggedModel], workspace: Path, tmp_path: Path, prefect_api: str
) -> None:
    done = slmpack(
        "rollback", name, "--target", "cpu-int4", "--json", "--workspace", str(workspace), cwd=tmp_path,
        PREFECT_API_URL=prefect_api, MLFLOW_TRACKING_URI=mlflow.get_tracking_uri(),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    outcome = Outcome.model_validate(*objects(done))
    assert (outcome.status, outcome.name, outcome.version, outcome.alias) == ("published", name, 2, ALIAS)
    assert (outcome.model_uri, outcome.target, outcome.reason) == (f"models:/{name}/2", Target.CPU_INT4, None)
    assert (outcome.digest, outcome.size_bytes) == (three[1].digest, three[1].package.size_bytes)
    assert outcome.speed is not None and outcome.speed.decode_tokens_per_second != 12.5  # measured now
    assert outcome.quality is not None
    assert list(outcome.seconds) == ["find", "read back", "smoke", "give back"]
    assert "the alias went back from version 3 to version 2" in done.stderr
    assert holder_of(name) == 2
    assert "rollback_prefect_run" in facts_in(tags_of(name, 3))


def test_a_version_that_does_not_hold_is_told_and_the_one_before_it_is_next(
    name: str, three: list[LoggedModel], workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_a_bit(three[1])

    outcome = rollback_model(name, Target.CPU_INT4, workspace=workspace)

    assert (outcome.status, outcome.version, holder_of(name)) == ("published", 1, 1)
    assert "version 2 cannot be used: the artifact store serves artifacts/package/model.onnx.data" in caplog.text
    assert tags_of(name, 3)["slmpack.rolled_back_to"] == "1"
    assert "slmpack.rolled_back_to" not in tags_of(name, 2)


def test_where_nothing_holds_nothing_moves(
    name: str, three: list[LoggedModel], workspace: Path, tmp_path: Path, prefect_api: str
) -> None:
    flip_a_bit(three[0])
    MlflowClient().delete_logged_model(three[1].model_id)
    before = [tags_of(name, version) for version in (1, 2, 3)]

    done = slmpack(
        "rollback", name, "--target", "cpu-int4", "--json", "--workspace", str(workspace), cwd=tmp_path,
        PREFECT_API_URL=prefect_api, MLFLOW_TRACKING_URI=mlflow.get_tracking_uri(),
    )  # fmt: skip

    assert done.returncode == 1
    (outcome,) = objects(done)
    assert (outcome["status"], outcome["target"]) == ("failed", "cpu-int4")
    assert outcome["reason"].startswith(f"no version of {name} before 3 can be used (version 2: MLflow has no models:/")
    assert "version 1: the artifact store serves artifacts/package/model.onnx.data" in outcome["reason"]
    assert outcome["reason"].endswith("); one to go back to; the alias cpu-int4 stays at version 3")
    assert [line for line in done.stderr.splitlines() if line.startswith("slmpack: ")] == [
        f"slmpack: {outcome['reason']}"
    ]
    assert "Traceback" not in done.stderr
    after = [tags_of(name, version) for version in (1, 2, 3)]
    assert "model.onnx.data" in after[0].pop(UNHEALTHY)
    assert (holder_of(name), after) == (3, before)


def test_a_killed_rollback_is_completed_by_the_flow_and_goes_no_further(
    name: str, three: list[LoggedModel], workspace: Path
) -> None:
    MlflowClient().set_model_version_tag(name, "3", "slmpack.rolled_back_to", "2")
    MlflowClient().set_registered_model_alias(name, ALIAS, "2")

    outcome = rollback_model(name, Target.CPU_INT4, workspace=workspace)

    assert (outcome.status, outcome.version, holder_of(name)) == ("published", 2, 2)
    assert "slmpack.rolled_back" in tags_of(name, 3)


def test_a_packaging_run_after_a_rollback_is_unchanged_and_moves_nothing(
    name: str, log_it: LogIt, tiny_phi3: Path, workspace: Path, prefect_api: str
) -> None:
    publish(log_it("older"))
    publish(log_it())
    assert rollback_model(name, Target.CPU_INT4, workspace=workspace).version == 1

    again = package_model(str(tiny_phi3), name=name, options=PackageOptions(recipe=Recipe.SMALL), workspace=workspace)

    assert (again.status, again.version) == ("unchanged", 2)
    assert (versions_of(name), holder_of(name)) == ([1, 2], 1)


@pytest.mark.skipif(unprovable_error(Target.CUDA_INT4) is None, reason="this machine has a GPU")
def test_a_target_for_gpus_is_refused_without_one_before_anything_is_asked(tmp_path: Path, prefect_api: str) -> None:
    done = slmpack(
        "rollback", "tiny", "--target", "cuda-int4", "--json", cwd=tmp_path, PREFECT_API_URL=prefect_api,
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 1
    (outcome,) = objects(done)
    assert outcome["reason"].startswith("target cuda-int4 cannot be proved here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny"], "--target"),
        (["--target", "cpu-int4"], "NAME"),
        (["tiny", "--target", "npu"], "found 'npu'; expected one of"),
        (["a/b", "--target", "cpu-int4"], "a/b"),
    ],
)
def test_bad_usage_is_one_line_and_touches_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = slmpack("rollback", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
