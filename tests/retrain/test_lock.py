"""Two retrainings of one name never run at once: whoever comes second is told so, and nothing waits for the dead."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import environment, slmpack
from invented_town import chats, write_chats

from slmpack.errors import WorkspaceError
from slmpack.retrain.lock import retrain_alone

HOLD = """
import sys, time
from pathlib import Path
from slmpack.retrain.lock import retrain_alone
with retrain_alone(sys.argv[1], Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""
TOLD = (
    r"another retraining of town runs here, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; one at a time; "
    r"wait for it or stop it"
)


@contextmanager
def held_by_another_process(name: str, workspace: Path, registry: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Yield a process that retrains, as far as anybody can see."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, name, str(workspace)], stdout=subprocess.PIPE,
        env=environment(MLFLOW_TRACKING_URI=registry),
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def registry(mlflow_store: Path) -> str:
    """The address of an MLflow store, ours and that of the processes that we start."""
    return f"sqlite:///{mlflow_store / 'mlflow.db'}"


@pytest.mark.slow
def test_a_second_retraining_of_a_name_is_refused_at_once_while_the_first_lives(registry: str, tmp_path: Path) -> None:
    with held_by_another_process("town", tmp_path, registry) as first:
        for _ in range(2):  # and asking does not forget since when it is held
            with pytest.raises(WorkspaceError, match=TOLD), retrain_alone("town", tmp_path):
                pass
        first.kill()
        first.wait()
        with retrain_alone("town", tmp_path):
            pass


def test_other_names_and_the_next_of_the_same_are_free(registry: str, tmp_path: Path) -> None:
    with retrain_alone("town", tmp_path), retrain_alone("city", tmp_path):
        pass
    with pytest.raises(KeyError), retrain_alone("town", tmp_path):
        raise KeyError  # however it ends
    with retrain_alone("town", tmp_path):
        pass


def test_the_same_name_in_another_registry_is_another_model(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    with retrain_alone("town", tmp_path):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
        mlflow.set_tracking_uri("sqlite:///other.db")
        with retrain_alone("town", tmp_path):
            pass


@pytest.mark.slow
def test_the_command_fetches_nothing_while_another_retrains_the_name(
    registry: str, tiny_phi3: Path, tmp_path: Path, prefect_api: str
) -> None:
    data, workspace = write_chats(tmp_path / "town.jsonl", chats()), tmp_path / "workspace"
    with held_by_another_process("town", workspace, registry):
        done = slmpack(
            "retrain", str(tiny_phi3), "--data", str(data), "--name", "town", "--workspace", str(workspace),
            cwd=tmp_path, PREFECT_API_URL=prefect_api, MLFLOW_TRACKING_URI=registry,
        )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(f"slmpack: {TOLD}", done.stderr.splitlines()[-1])
    assert {each.name for each in workspace.iterdir()} <= {"locks", "stamps"}
