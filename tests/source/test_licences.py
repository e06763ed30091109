"""Licences: a source that the policy refuses ends the run before a weight of it is downloaded."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import error_lines, objects, slmpack, versions
from hub_server import HubServer, Repository
from hub_user import HubUser, running_hub_user
from mlflow_database import write_empty_database

from slmpack.checkpoint.licence import MOST_CHARACTERS, licence_of, stated_in_file
from slmpack.errors import LicenceError
from slmpack.records import ModelSource, SourceKind
from slmpack.reports import LicencePolicy, UnknownLicence
from slmpack.source.licences import check_licence, check_source

APACHE = "Apache License\nVersion 2.0, January 2004"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def user(tmp_path: Path) -> Iterator[HubUser]:
    """A user of a Hub whose repositories have weights that nobody may need."""
    with running_hub_user(tmp_path) as user:
        yield user


@pytest.fixture
def hub(user: HubUser, tmp_path: Path) -> HubServer:
    config = json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base"})
    base = write(tmp_path / "base", config__json="{}", model__safetensors="weights")
    adapter = write(tmp_path / "adapter", adapter_config__json=config, adapter_model__safetensors="weights")
    silent = write(tmp_path / "silent", config__json="{}", model__safetensors="weights", LICENSE=APACHE)
    user.hub.begin({
        "org/adapter": Repository(adapter, card={"license": "apache-2.0"}),
        "org/base": Repository(base, card={"license": "other", "license_name": "Gemma"}),
        "org/silent": Repository(silent),
        "org/nothing": Repository(shutil.copytree(base, tmp_path / "nothing")),
        "org/two": Repository(base, card={"license": ["mit", "gpl-3.0"]}),
    })  # fmt: skip
    return user.hub


@pytest.mark.slow
def test_a_refused_licence_ends_a_run_before_the_download(user: HubUser, hub: HubServer, tmp_path: Path) -> None:
    write_empty_database(tmp_path / "mlflow.db")
    done = slmpack(
        "package", "hf://org/adapter", "--refuse-licence", "GEMMA", "--json", "--workspace", str(tmp_path / "w"),
        cwd=tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(user.home), PREFECT_HOME=str(tmp_path / "prefect"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert error_lines(done) == [
        "slmpack: hf://org/adapter has the licence apache-2.0 and Gemma, of which Gemma is refused; any but GEMMA; "
        "take another model, or change --allow-licence or --refuse-licence (options.licences)"
    ]
    (outcome,) = objects(done)
    assert outcome["status"] == "refused"
    assert versions(tmp_path) == []
    assert hub.downloaded_files() == {"adapter_config.json", "config.json"}
    assert not (tmp_path / "w" / "snapshots").exists()


def resolved(user: HubUser, text: str, **settings: str) -> ModelSource:
    told: dict[str, Any] = user.resolve(text, **settings)
    return ModelSource.model_validate(told["source"])


def test_a_hub_repository_states_its_licence_in_its_card_or_in_a_licence_file(user: HubUser, hub: HubServer) -> None:
    assert resolved(user, "hf://org/two").licence == "mit and gpl-3.0"
    assert resolved(user, "hf://org/silent").licence == "apache-2.0"
    assert resolved(user, "hf://org/nothing").licence is None
    assert "model.safetensors" not in hub.downloaded_files()


def test_an_unknown_licence_of_the_hub_is_refused_before_the_download_where_the_policy_says_so(
    user: HubUser, hub: HubServer
) -> None:
    strict, lenient = LicencePolicy(unknown=UnknownLicence.REFUSE), LicencePolicy(allow=("mit",))
    nothing = resolved(user, "hf://org/nothing")
    with pytest.raises(LicenceError, match="the licence of hf://org/nothing is unknown; one that is known; have"):
        check_source(nothing, strict)
    check_source(nothing, lenient)
    check_source(resolved(user, "hf://org/adapter"), strict)


def test_what_only_the_files_tell_is_judged_when_they_are_here() -> None:
    wheel = ModelSource(text="pypi://a==1/a.gguf", kind=SourceKind.WHEEL, location="a==1", revision="1", name="a")
    strict = LicencePolicy(unknown=UnknownLicence.REFUSE)
    check_source(wheel, strict)
    with pytest.raises(LicenceError, match="is unknown"):
        check_licence(wheel.text, None, strict)


def test_an_unknown_licence_is_a_warning_unless_the_policy_allows_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_licence("./model", "unknown and mit", LicencePolicy(unknown=UnknownLicence.ALLOW))
        assert caplog.messages == []
        check_licence("./model", "unknown and mit", LicencePolicy())
    assert caplog.messages == [
        "the licence of ./model is unknown and mit; look it up before others use what is made of it"
    ]


def test_a_logged_checkpoint_keeps_the_licence_that_its_source_stated(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text(stated_in_file("gemma and mit"))
    assert licence_of(tmp_path) == "gemma and mit"


def test_a_licence_hidden_behind_a_long_text_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {'mit and ' * 40}gpl-3.0\n---\n")
    text = licence_of(tmp_path)
    assert text is not None
    assert len(text) == MOST_CHARACTERS
    with pytest.raises(LicenceError, match="the licence of a model is mit and mit"):
        check_licence("a model", text, LicencePolicy(unknown=UnknownLicence.REFUSE))
