"""Promotion: an alias that people give moves to a version that was proved, with the name of who approved."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_proofs import ALIAS, flip_a_bit, proofs_of, publish
from mlflow import MlflowClient

from slmpack.errors import CheckError, PublishError, TrustError, UsageError
from slmpack.log.tags import APPROVED
from slmpack.publish.promote import check_promotion, describe_promotion, plan_promotion, promote, what_is_approved
from slmpack.publish.publish import publish_version
from slmpack.records import LoggedModel
from slmpack.signing.keys import new_key
from slmpack.signing.policy import VARIABLE

LogIt = Callable[..., LoggedModel]
PRODUCTION = "production"


def holder(name: str, alias: str = PRODUCTION) -> int | None:
    aliases = MlflowClient().get_registered_model(name).aliases
    return int(aliases[alias]) if alias in aliases else None


@pytest.mark.slow
def test_the_alias_moves_and_the_version_says_who_approved(name: str, log_it: LogIt) -> None:
    publish(log_it())
    plan = plan_promotion(name, ALIAS, PRODUCTION)
    assert (plan.status, plan.version, plan.before, holder(name)) == ("planned", 1, None, None)
    done = promote(plan, "Ada\nLovelace")
    assert (done.status, done.approver, holder(name)) == ("promoted", "Ada Lovelace", 1)
    time, _, approver = MlflowClient().get_model_version(name, "1").tags[f"{APPROVED}{PRODUCTION}"].partition(" ")
    assert (approver, time[:2]) == ("Ada Lovelace", "20")
    assert holder(name, ALIAS) == 1
    assert describe_promotion(done) == f"promoted: {name}@production is version 1 (cpu-int4), approved by Ada Lovelace"


@pytest.mark.slow
def test_the_same_promotion_again_is_unchanged_and_keeps_the_first_approver(name: str, log_it: LogIt) -> None:
    publish(log_it())
    promote(plan_promotion(name, ALIAS, PRODUCTION), "Ada")
    again = promote(plan_promotion(name, "1", PRODUCTION), "Grace")
    assert again.status == "unchanged"
    assert MlflowClient().get_model_version(name, "1").tags[f"{APPROVED}{PRODUCTION}"].endswith(" Ada")


@pytest.mark.slow
def test_an_alias_goes_back_by_a_version_s_number(name: str, log_it: LogIt) -> None:
    publish(log_it())
    publish(log_it(), force=True)
    assert promote(plan_promotion(name, ALIAS, PRODUCTION), "Ada").version == 2
    back = promote(plan_promotion(name, "1", PRODUCTION), "Ada")
    assert (back.before, holder(name), holder(name, ALIAS)) == (2, 1, 2)
    assert describe_promotion(back).startswith(f"promoted: {name}@production is version 1 (1), before it version 2")


@pytest.mark.slow
def test_what_was_approved_is_what_is_promoted(name: str, log_it: LogIt) -> None:
    publish(log_it())
    plan = plan_promotion(name, ALIAS, PRODUCTION)
    publish(log_it(), force=True)
    assert promote(plan, "Ada").version == 1  # although the alias it was named by is another's now
    other = plan_promotion(name, ALIAS, PRODUCTION)
    MlflowClient().set_registered_model_alias(name, PRODUCTION, "2")
    assert promote(other, "Ada").status == "unchanged"
    with pytest.raises(PublishError, match=f"{name}@production went to version 2 meanwhile; version None"):
        promote(plan, "Ada")


@pytest.mark.slow
def test_a_version_that_was_not_proved_or_is_damaged_is_not_promoted(name: str, log_it: LogIt) -> None:
    model = log_it()
    MlflowClient().create_registered_model(name)
    MlflowClient().create_model_version(name, model.uri, model_id=model.model_id)
    with pytest.raises(PublishError, match=f"{name} version 1 was not published; a proved version"):
        plan_promotion(name, "1", PRODUCTION)
    proved = log_it()
    publish(proved, force=True)
    plan = plan_promotion(name, ALIAS, PRODUCTION)
    flip_a_bit(proved)
    with pytest.raises(CheckError, match=r"model\.onnx\.data"):
        promote(plan, "Ada")
    assert holder(name) is None
    with pytest.raises(PublishError, match=f"{name} version 2 cannot be used: .*model.onnx.data"):
        plan_promotion(name, ALIAS, PRODUCTION)


@pytest.mark.slow
def test_a_version_with_a_waiver_needs_a_yes(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish_version(model, proofs_of(model, waiver="a demonstration"))
    with pytest.raises(PublishError, match=r"with a waiver: a demonstration; .*--accept-waiver"):
        plan_promotion(name, ALIAS, PRODUCTION)
    plan = plan_promotion(name, ALIAS, PRODUCTION, accept_waiver=True)
    assert "published with a waiver: a demonstration" in what_is_approved(plan)
    assert promote(plan, "Ada").status == "promoted"


@pytest.mark.slow
def test_with_a_trust_policy_only_a_signed_version_is_promoted(
    name: str, log_it: LogIt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(tmp_path / "release.pem")
    policy = tmp_path / "trust.toml"
    policy.write_text(f"[trust.keys.release]\npublic_key = '''{key.public_pem()}'''\nnames = ['*']\n")
    monkeypatch.setenv(VARIABLE, str(policy))
    publish(log_it())
    with pytest.raises(TrustError, match=f"models:/{name}/1 is not signed; a signature by release"):
        promote(plan_promotion(name, ALIAS, PRODUCTION), "Ada")
    assert holder(name) is None
    signed = log_it()
    publish_version(signed, proofs_of(signed), key=key, force=True)
    plan = plan_promotion(name, ALIAS, PRODUCTION)
    assert f"signed by {key.fingerprint[:12]}" in what_is_approved(plan)
    assert promote(plan, "Ada").version == 2


@pytest.mark.slow
def test_what_is_not_there_is_said(name: str, log_it: LogIt) -> None:
    with pytest.raises(PublishError, match=f"nobody has no {ALIAS} to promote: .*nobody"):
        plan_promotion("nobody", ALIAS, PRODUCTION)
    publish(log_it())
    with pytest.raises(PublishError, match=f"{name} has no staging to promote: .*{ALIAS}"):
        plan_promotion(name, "staging", PRODUCTION)
    with pytest.raises(PublishError, match=f"{name} has no 7 to promote: there is no version 7"):
        plan_promotion(name, "7", PRODUCTION)
    with pytest.raises(UsageError, match="an approval without a name"):
        promote(plan_promotion(name, ALIAS, PRODUCTION), " \n ")


@pytest.mark.parametrize("alias", ["cpu-int4", "cuda-fp16-prompt", "tuned"])
def test_an_alias_that_proofs_move_is_nobody_s_to_give(alias: str) -> None:
    with pytest.raises(UsageError, match=f"the alias {alias}, which moves when a version is proved; one of your own"):
        check_promotion("small", ALIAS, alias)


@pytest.mark.parametrize("alias", ["latest", "v1", "a b", ""])
def test_an_alias_that_mlflow_would_refuse_is_refused_first(alias: str) -> None:
    with pytest.raises(UsageError, match="the alias"):
        check_promotion("small", ALIAS, alias)
