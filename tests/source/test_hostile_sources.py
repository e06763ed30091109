"""Hostile sources: each is one line within seconds, and none takes the memory or what lies outside its folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_sources
import pytest

MOST_MEGABYTES = 150  # beyond what the imports take; transformers' table of models has 70


@pytest.fixture(scope="module")
def outcomes(tiny_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each, in processes of their own: one that fills the memory fills theirs."""
    work = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, hostile_sources.__file__, str(tiny_phi3), str(work / "sources"), "600"]
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(command, env=here, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {outcome["kind"]: outcome for outcome in map(json.loads, told.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("kind", hostile_sources.KINDS)
def test_costs_little_and_is_refused_in_one_line(outcomes: dict[str, dict[str, Any]], kind: str) -> None:
    outcome = outcomes[kind]
    is_harmless = kind in hostile_sources.HARMLESS
    assert outcome["told"].startswith("resolved, licence None" if is_harmless else "SourceError: "), outcome
    assert "\n" not in outcome["told"]
    assert outcome["megabytes"] < MOST_MEGABYTES
