"""Links: to MLflow's own pages where a server shows them, and to nowhere where none does."""

from pathlib import Path

import pytest

from slmpack.log.links import linked, page_address, version_address, version_link


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server as the settings have it; nobody answers there, since nothing is sent."""
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "https://ada:secret@mlflow.example.org/ml/")
    return "https://mlflow.example.org/ml"


def test_a_version_is_linked_to_where_mlflow_shows_it_without_the_password(server: str) -> None:
    assert version_address("tiny phi+é", 7) == f"{server}/#/models/tiny%20phi%2B%C3%A9/versions/7"
    assert version_link("tiny", 7) == f"[tiny version 7]({server}/#/models/tiny/versions/7)"


def test_the_first_place_that_names_the_version_is_its_link(server: str) -> None:
    told = "published: tiny version 1, alias cpu-int4, in place of tiny version 1"
    link = f"[tiny version 1]({server}/#/models/tiny/versions/1)"
    assert linked(told, "tiny", 1) == f"published: {link}, alias cpu-int4, in place of tiny version 1"
    assert linked("cpu-int4: failed", None, None) == "cpu-int4: failed"


def test_a_store_without_a_server_has_no_address(mlflow_store: Path) -> None:
    assert (version_address("tiny", 1), page_address(f"runs:/{'0' * 32}/proof/version.html")) == (None, None)
    assert (version_link("tiny", 1), linked("tiny version 1", "tiny", 1)) == ("tiny version 1", "tiny version 1")
