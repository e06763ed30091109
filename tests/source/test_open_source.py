"""A source whose chat template depends on what a message says is refused, and before its weights are fetched."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hidden_links import HIDDEN_LINKS
from hub_server import HubServer, Repository
from hub_user import HubUser, running_hub_user

from slmpack.errors import SourceError
from slmpack.records import ModelSource, SourceKind
from slmpack.source.open_source import fetch_open_snapshot

pytestmark = pytest.mark.slow
HIDDEN = HIDDEN_LINKS["a test"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUser]:
    with running_hub_user(tmp_path_factory.mktemp("hub-user")) as user:
        yield user


@pytest.fixture
def hub(user: HubUser, small_phi3: Path, tmp_path: Path) -> HubServer:
    """A Hub with a model that has a hidden link."""
    hidden = shutil.copytree(small_phi3, tmp_path / "hidden")
    (hidden / "chat_template.jinja").write_text(HIDDEN)
    user.begin(tmp_path / "workspace")
    user.hub.begin({"org/hidden": Repository(hidden)})
    return user.hub


def test_a_hub_model_with_a_hidden_link_is_refused_before_its_weights_are_fetched(
    user: HubUser, hub: HubServer
) -> None:
    kind, line = user.fetch_judged("hf://org/hidden")["ours"]
    assert kind == "SourceError"
    assert line.startswith("line 1 of the chat template of hf://org/hidden: {% if 'python' in m.content %}, which")
    small = {"chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"}
    assert {"chat_template.jinja"} <= hub.downloaded_files() <= small
    assert not (user.workspace / "snapshots").exists()


def test_a_folder_is_refused_before_anything_is_made_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "model-1b"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(HIDDEN)
    source = ModelSource(
        text="model-1b", kind=SourceKind.FOLDER, location=str(folder), revision="0" * 64, name="model-1b"
    )
    with pytest.raises(SourceError, match=r"^line 1 of the chat template of model-1b: .*--waive-template REASON$"):
        fetch_open_snapshot(source, tmp_path / "workspace", None)
    assert not (tmp_path / "workspace").exists()
