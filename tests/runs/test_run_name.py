"""Run names: those that Prefect made up are replaced, those that a person gave stay."""

import re
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.client.orchestration import get_client
from prefect.utilities.names import generate_slug

from flows.package_model import package_model
from slmpack.errors import SourceError
from tasks.run_name import is_generated

DASHBOARDS = Path(prefect.__file__).parent / "server"


def lists_in(folder: str, pattern: str) -> list[list[str]]:
    """Return the word lists of a dashboard's scripts that the pattern's groups match."""
    for script in sorted((DASHBOARDS / folder / "assets").glob("*.js")):
        if found := re.search(pattern, script.read_text(encoding="utf-8")):
            return [re.findall(r"[^.`,]+", group) for group in found.groups()]
    raise AssertionError(f"no script of {folder} has the lists")


def test_names_that_the_server_makes_up_are_known() -> None:
    assert [name for name in (generate_slug(2) for _ in range(2000)) if not is_generated(name)] == []


def test_names_that_the_form_makes_up_are_known() -> None:
    places, letters, suffixes = lists_in("ui", r"=`(andromedae\.[^`]*)`.{1,20}=`(alpha\.[^`]*)`.{1,20}=`(a\.b\.[^`]*)`")
    firsts = [letter.replace("RANDOM", "417") for letter in letters]
    names = [f"{first}-{places[0]}" for first in firsts] + [f"xi6-{place}" for place in places]
    names += [f"xi-{places[0]}-{suffix}" for suffix in suffixes]
    assert len(names) > 1500
    assert [name for name in names if not is_generated(name)] == []


def test_names_that_the_second_form_makes_up_are_known() -> None:
    animals, adjectives = lists_in("ui-v2", r"=`(Aardvark\.[^`]*)`.*=\[(`Awesome`[^\]]*)\]")
    short = [animal for animal in animals if len(animal) <= 6]
    names = [f"{adjectives[0]}-{animal}" for animal in short] + [f"{each}-{short[0]}" for each in adjectives]
    assert len(names) > 300
    assert [name for name in names if not is_generated(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "nightly",
        "phi3-mini",
        "pi4-cpu",
        "beta2-release",
        "alpha-test",
        "brave-otter-2",
        "Small-Phi3",
        "brave-new",
        "a b",
    ],
)
def test_names_that_a_person_gives_are_taken_for_given(name: str) -> None:
    assert not is_generated(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"), [("my own name", "my own name"), ("brave-otter", "nowhere for cpu-int4")]
)
def test_a_run_keeps_the_name_that_it_was_given(
    given: str, expected: str, mlflow_store: Path, prefect_api: str
) -> None:
    asked = {"source": str(mlflow_store / "nowhere")}
    with get_client(sync_client=True) as client:
        run: Any = client.create_flow_run(package_model, name=given, parameters=asked)
        with pytest.raises(SourceError):
            run_flow_of(run)
        assert client.read_flow_run(run.id).name == expected


def run_flow_of(run: Any) -> None:
    """Run a flow run that is there already, as a worker does."""
    from prefect.flow_engine import run_flow

    run_flow(package_model, flow_run=run, parameters=run.parameters)
