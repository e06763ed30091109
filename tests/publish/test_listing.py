"""`slmpack list`: what is in use and what there is of a model, from tags alone, whatever somebody wrote in them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_proofs import ALIAS, proofs_of, publish
from mlflow import MlflowClient

from flows.cli import run
from flows.cli_lines import FAILED, OK, USAGE
from slmpack.errors import SourceError
from slmpack.log.health import UNHEALTHY
from slmpack.log.tags import FACTS, PUBLISHED, SIGNED_BY, facts_in
from slmpack.publish.publish import publish_version
from slmpack.publish.view.listing import Listing, list_versions, listing_lines, notes_on
from slmpack.records import LoggedModel
from slmpack.signing.keys import new_key
from slmpack.signing.policy import VARIABLE

LogIt = Callable[..., LoggedModel]

HOSTILE = "\x1b]0;x\x07\x9b31m\u202egpj\x00\r\n" + "W" * 500


def of_model(listing: Listing, name: str) -> list[tuple[int, tuple[str, ...]]]:
    return [(each.version, each.aliases) for each in listing.versions if each.name == name]


@pytest.mark.slow
def test_what_is_in_use_has_a_line_for_each_alias_and_a_model_all_its_versions(name: str, log_it: LogIt) -> None:
    publish(log_it())
    publish(log_it(), force=True)
    MlflowClient().set_registered_model_alias(name, "production", "1")
    MlflowClient().set_registered_model_alias(name, "a-trial", "2")
    assert of_model(list_versions(), name) == [(2, ("a-trial",)), (2, (ALIAS,)), (1, ("production",))]
    assert of_model(list_versions(name), name) == [(2, ("a-trial", ALIAS)), (1, ("production",))]


@pytest.mark.slow
def test_a_listed_version_has_what_it_was_published_with(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    (found,) = list_versions(name).versions
    assert (found.model_uri, found.target, found.recipe) == (f"models:/{name}/1", "cpu-int4", "small")
    assert (found.perplexity_ratio, found.size_bytes) == (1.05, model.package.size_bytes)
    head, line = listing_lines(Listing(versions=(found,)))
    assert head.split() == ["NAME", "VERSION", "ALIASES", "TARGET", "RECIPE", "RATIO", "SIZE", "PUBLISHED", "SIGNED"]
    assert line.startswith(f"{name}  ")
    assert " 1.050 " in line
    assert line.endswith(" -")


@pytest.mark.slow
def test_pages_are_read_to_the_last(name: str, log_it: LogIt) -> None:
    for _ in range(3):
        publish(log_it(), force=True)
    client = MlflowClient()
    for number in range(3):
        client.create_registered_model(f"{name} {number}")  # before and behind ours in the pages of models
    assert [each.version for each in list_versions(name, page_size=1).versions] == [3, 2, 1]
    assert of_model(list_versions(page_size=1), name) == [(3, (ALIAS,))]


@pytest.mark.slow
def test_what_slmpack_did_not_publish_is_not_listed(name: str, log_it: LogIt) -> None:
    model, client = log_it(), MlflowClient()
    client.create_registered_model(name)
    client.create_model_version(name, model.uri, model_id=model.model_id)
    client.set_registered_model_alias(name, "theirs", "1")
    assert list_versions(name).versions == ()
    assert of_model(list_versions(), name) == []
    assert notes_on(list_versions(name), name) == [
        f"no version of {name} is published here; slmpack package SOURCE publishes one"
    ]


@pytest.mark.slow
def test_tags_that_a_stranger_wrote_are_text_or_nothing(
    name: str, log_it: LogIt, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(log_it())
    client = MlflowClient()
    facts = {"size_bytes": HOSTILE, "perplexity_ratio": "nan", "recipe": HOSTILE}
    client.set_model_version_tag(name, "1", FACTS, json.dumps(facts))
    for key in ("slmpack.target", "slmpack.recipe", SIGNED_BY, UNHEALTHY):
        client.set_model_version_tag(name, "1", key, HOSTILE)
    assert run(["list", name]) == OK
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    for text in (shown.out, shown.err):
        assert not {"\x1b", "\x9b", "\x07", "\u202e", "\x00", "\r"} & set(text)
    assert "\\x1b]0;x" in shown.out
    assert f"{name} version 1 cannot be used: \\x1b]0;x" in shown.err
    assert run(["list", name, "--json"]) == OK
    out = capsys.readouterr().out
    assert set(out) <= {"\n", *map(chr, range(0x20, 0x7F))}
    (found,) = json.loads(out)["versions"]
    assert found["target"] == client.get_model_version(name, "1").tags["slmpack.target"]
    assert (found["size_bytes"], found["perplexity_ratio"]) == (None, None)


@pytest.mark.slow
def test_a_version_whose_facts_are_gone_is_listed_without_them(name: str, log_it: LogIt) -> None:
    publish(log_it())
    client = MlflowClient()
    for key in client.get_model_version(name, "1").tags:
        if key != PUBLISHED:
            client.delete_model_version_tag(name, "1", key)
    (found,) = list_versions(name).versions
    assert (found.target, found.recipe, found.size_bytes, found.signed_by) == (None, None, None, None)


@pytest.mark.slow
def test_who_signed_is_told_by_fingerprint_and_by_the_name_in_the_trust_policy(
    name: str, log_it: LogIt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, model = new_key(tmp_path / "release.pem"), log_it()
    publish_version(model, proofs_of(model), key=key)
    (found,) = list_versions(name).versions
    assert (found.signed_by, found.key) == (key.fingerprint, None)
    assert listing_lines(Listing(versions=(found,)))[1].endswith(f" {key.fingerprint[:12]}")
    policy = tmp_path / "trust.toml"
    policy.write_text(f"[trust.keys.release]\npublic_key = '''{key.public_pem()}'''\nnames = ['*']\n")
    monkeypatch.setenv(VARIABLE, str(policy))
    (found,) = list_versions(name).versions
    assert found.key == "release"
    assert listing_lines(Listing(versions=(found,)))[1].endswith(" release")


@pytest.mark.slow
def test_a_model_that_there_is_not_is_one_line_with_what_was_meant(
    name: str, log_it: LogIt, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(log_it())
    wrong = f"{name[:-1]}"
    with pytest.raises(SourceError, match=f"MLflow has no model {wrong}; .*did you mean {name}"):
        list_versions(wrong)
    assert run(["list", wrong]) == FAILED
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("slmpack: ")) == ("", 1)
    assert run(["list", "a'b"]) == USAGE


@pytest.mark.slow
def test_the_facts_of_an_earlier_release_are_read_as_well(name: str, log_it: LogIt) -> None:
    publish(log_it())
    client = MlflowClient()
    for fact, value in facts_in(client.get_model_version(name, "1").tags).items():
        client.set_model_version_tag(name, "1", f"slmpack.{fact}", value)
    client.delete_model_version_tag(name, "1", FACTS)
    (found,) = list_versions(name).versions
    assert found.perplexity_ratio == 1.05
    assert found.size_bytes is not None


def test_an_empty_registry_is_a_friendly_line_and_no_store_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run(["list"]) == OK
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[1:] == ["no version is in use here; slmpack package SOURCE publishes one"]
    assert run(["list", "--json"]) == OK
    assert json.loads(capsys.readouterr().out) == {"versions": []}
    assert run(["list", "our-phi"]) == FAILED
    assert "there is no registry: MLFLOW_TRACKING_URI is not set" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
