"""A retraining's data: looked at and divided, each as they were found."""

from pathlib import Path

import pytest
from chat_lines import lines, written

from slmpack.chats.dataset import DataPolicy
from slmpack.errors import DataError
from slmpack.log.datasets import FoundData, find_data
from slmpack.records import Snapshot
from slmpack.retrain.data import divide_data, look_at_data

HALF = DataPolicy(held_out_share=0.5)


@pytest.mark.slow
def test_data_that_changed_since_they_were_looked_at_are_refused(tiny_snapshot: Snapshot, tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    written(folder / "monday.jsonl", lines(40))
    found = find_data(str(folder))
    looked_at = look_at_data(found, HALF, tmp_path)
    divided, parts = divide_data(found, looked_at, tiny_snapshot, tmp_path)
    assert (divided, parts.training.read_text().count("\n")) == (looked_at, looked_at.training)

    written(folder / "tuesday.jsonl", lines(40, start=40))

    with pytest.raises(DataError, match="chats changed while it was read; the same files; start again"):
        divide_data(found, looked_at, tiny_snapshot, tmp_path)


@pytest.mark.slow
def test_data_have_the_name_that_mlflow_has_for_them(tiny_snapshot: Snapshot, tmp_path: Path) -> None:
    found = FoundData(text=str(written(tmp_path / "chats.jsonl", lines(40))), name="help desk", digest="1")
    looked_at = look_at_data(found, HALF, tmp_path)
    divided, _ = divide_data(found, looked_at, tiny_snapshot, tmp_path)
    assert (looked_at.name, divided.name) == ("help desk", "help desk")
