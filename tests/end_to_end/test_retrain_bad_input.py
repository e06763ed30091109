"""Retrainings that cannot be: each ends with one line that says why, and leaves nothing behind."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_line import objects, slmpack
from hidden_links import HIDDEN_LINKS
from invented_town import Chat, chats, write_chats
from live_folder import seen
from mlflow import MlflowClient

from flows.retrain_model import retrain_model
from slmpack.errors import DataError, SlmpackError, SourceError, TrainError, WorkspaceError
from slmpack.records import Target
from slmpack.retrain.evaluate import RetrainOutcome, RetrainPolicy
from slmpack.retrain.training.settings import TrainSettings
from slmpack.retrain.training.train import read_training

pytestmark = pytest.mark.slow

FAST = TrainSettings(epochs=1, rank=8, learning_rate=5e-3, batch_size=16, max_length=128)
EASY = RetrainPolicy(min_gain=0.0, max_forgetting=100.0)


class Town(NamedTuple):
    """What a test retrains: a registered model of its own from a workspace where nothing is yet."""

    name: str
    workspace: Path

    def retrain(self, data: Path, base: Path, **asked: Any) -> RetrainOutcome | Exception:
        settings = {"training": FAST, "retrain_policy": EASY, "targets": [Target.TRANSFORMERS]} | asked
        state: Any = retrain_model(
            str(data), str(base), self.name, workspace=self.workspace, **settings, return_state=True
        )
        found: RetrainOutcome | Exception = state.result(raise_on_failure=False)
        return found

    def runs(self) -> list[str]:
        """Return the states of its MLflow runs."""
        client = MlflowClient()
        experiment = client.get_experiment_by_name("slmpack")
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return [run.info.status for run in found if run.info.run_name == f"retrain {self.name}"]

    def registered(self) -> list[str]:
        """Return what has its name: registered models, without which there is no version, and logged ones."""
        client = MlflowClient()
        experiment = client.get_experiment_by_name("slmpack")
        logged = client.search_logged_models([experiment.experiment_id]) if experiment else []
        names = [*(model.name for model in client.search_registered_models()), *(model.name for model in logged)]
        return [name for name in names if name == self.name]

    def halves(self) -> list[str]:
        """Return the kinds of what is in the making, a kind each."""
        return [kind for kind in ("scratch", "training", "tunings") for _ in self.workspace.glob(f"{kind}/*")]


@pytest.fixture
def town(name: str, store: Path, prefect_api: str, tmp_path: Path) -> Town:
    return Town(name, tmp_path / "workspace")


def refusal(kind: type[SlmpackError], town: Town, data: Path, base: Path, **asked: Any) -> str:
    """Return the one line of a retraining that fails: what was found; what was expected; what to do."""
    error = town.retrain(data, base, **asked)
    assert isinstance(error, kind), error
    assert "\n" not in str(error)
    assert len(str(error).split("; ")) >= 3, error
    return str(error)


def lines_of(rows: list[Chat]) -> list[str]:
    return [json.dumps(row) for row in rows]


def unanswered(row: Chat) -> Chat:
    return {"messages": [turn for turn in row["messages"] if turn["role"] != "assistant"]}


BAD_DATA: dict[str, tuple[Callable[[], list[str]], str]] = {
    "empty": (list, "bad.jsonl is empty; 8 chats at least, one JSON object a line; see what should have written it"),
    "blank": (lambda: ["", "  "], "bad.jsonl is empty"),
    "wrong JSON": (
        lambda: [*lines_of(chats()[:4]), '{"messages": [', *lines_of(chats()[4:12])],
        "1 of 13 lines of bad.jsonl are bad (7.7%): bad.jsonl line 5: it is not JSON "
        "(Expecting value at character 16); at most 2.0%; correct them or take them out",
    ),
    "no answer": (
        lambda: lines_of([*chats()[:12], unanswered(chats()[12])]),
        "bad.jsonl line 13: it has no answer of the assistant",
    ),
    "one line again and again": (
        lambda: lines_of([*chats()[:12], *chats()[:1] * 30]),
        "one chat is 31 of 42 lines of bad.jsonl (74%); half of them at most; see what repeats it",
    ),
    "a list": (lambda: [json.dumps(chats())], "bad.jsonl is one JSON list; UTF-8 text, one JSON object a line"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_end_with_the_line_that_is_bad_and_begin_nothing(
    case: str, town: Town, town_phi3: Path, tmp_path: Path
) -> None:
    made, told = BAD_DATA[case]
    data = tmp_path / "bad.jsonl"
    data.write_text("".join(f"{line}\n" for line in made()))
    assert told in refusal(DataError, town, data, town_phi3)
    assert (town.runs(), town.registered(), town.halves()) == ([], [], [])
    assert not (town.workspace / "snapshots").exists()  # before anything is fetched


def test_the_command_tells_bad_data_in_one_line_and_ends_with_1(
    town: Town, store: Path, prefect_api: str, town_phi3: Path, tmp_path: Path
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text("\n".join([*lines_of(chats()[:12]), "{'messages': []}"]))
    done = slmpack(
        "retrain", str(town_phi3), "--data", str(data), "--name", town.name, "--workspace", str(town.workspace),
        "--json", cwd=tmp_path, PREFECT_API_URL=prefect_api, MLFLOW_TRACKING_URI=f"sqlite:///{store / 'mlflow.db'}",
    )  # fmt: skip
    (outcome,) = objects(done)
    assert (done.returncode, outcome["status"], outcome["version"]) == (1, "failed", None)
    assert done.stderr.splitlines()[-1] == f"slmpack: {outcome['reason']}"
    assert done.stderr.count("bad.jsonl line 13") == 1
    assert "at least 8 different chats, 4 of them held out" in done.stderr.splitlines()[0]
    assert "bad.jsonl line 13: it is not JSON" in outcome["reason"]
    assert "Traceback" not in done.stderr
    assert (town.runs(), town.registered(), town.halves()) == ([], [], [])


def test_a_base_without_a_chat_template_is_refused_before_a_run_begins(
    town: Town, town_phi3: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(town_phi3, plain, ignore=shutil.ignore_patterns("chat_template*"))
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    data = write_chats(tmp_path / "town.jsonl", chats())
    told = refusal(SourceError, town, data, plain)
    assert f"{plain} has no chat template; one in chat_template.jinja" in told
    assert (town.runs(), town.registered(), town.halves()) == ([], [], [])


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(town: Town, town_phi3: Path, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "town.jsonl", chats())
    wild = FAST.model_copy(update={"learning_rate": 1e30, "save_minutes": 0.0})
    told = refusal(TrainError, town, data, town_phi3, training=wild)
    assert re.match(r"the (loss|gradient) is (nan|inf) at step [1-4] of 13; a finite number; lower the learning", told)
    assert (town.runs(), town.registered()) == (["FAILED"], [])
    assert set(town.halves()) <= {"training"}  # its curve
    assert not list(town.workspace.glob("training/*/checkpoint-*"))


# ---------------------------------------------------------------------------------------------- a small disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount file systems of so many bytes; skip where that is not allowed."""
    mounted: list[Path] = []

    def mount(size_bytes: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,size={size_bytes}", "tmpfs", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


Disk = Callable[[int], Path]


def test_too_small_a_disk_is_refused_before_training(
    town: Town, small_disk: Disk, town_phi3: Path, tmp_path: Path
) -> None:
    town = Town(town.name, small_disk(3 << 19) / "workspace")
    data = write_chats(tmp_path / "town.jsonl", chats())
    told = refusal(WorkspaceError, town, data, town_phi3)
    assert "training needs" in told
    assert "free some space or name another --workspace" in told
    assert (town.runs(), town.registered()) == (["FAILED"], [])
    assert set(town.halves()) <= {"training"}  # its curve


@contextmanager
def others_filling(workspace: Path, after: str) -> Iterator[None]:
    """Fill the disk of a workspace as soon as the pattern is there, and keep it full until the block ends."""
    done, others = threading.Event(), workspace.parent / "others"

    def fill() -> None:
        while not done.wait(0.005):
            if seen(workspace, after):
                with suppress(OSError), others.open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(min(1 << 20, max(1, shutil.disk_usage(workspace).free))))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        others.unlink(missing_ok=True)


def test_a_disk_that_fills_up_ends_the_training_and_with_room_again_it_goes_on(
    town: Town, small_disk: Disk, town_phi3: Path, tmp_path: Path
) -> None:
    town = Town(town.name, small_disk(64 << 20) / "workspace")
    data = write_chats(tmp_path / "town.jsonl", chats())
    settings = FAST.model_copy(update={"epochs": 4, "save_minutes": 0.0})
    with others_filling(town.workspace, "training/*/checkpoint-*/whole"):
        told = refusal(WorkspaceError, town, data, town_phi3, training=settings)
    assert "no room for a checkpoint in" in told
    assert (town.runs(), town.registered()) == (["FAILED"], [])
    assert set(town.halves()) == {"training"}

    refused = town.retrain(data, town_phi3, training=settings, retrain_policy=RetrainPolicy(min_gain=0.99))
    assert isinstance(refused, RetrainOutcome), refused
    assert refused.status == "refused"
    (tuned,) = town.workspace.glob("tunings/*")
    assert read_training(tuned).resumed_at in range(1, 52)
    assert "training" not in town.halves()


def test_a_base_whose_template_decides_by_what_a_message_says_is_not_trained(
    town: Town, town_phi3: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(town_phi3, tmp_path / "base")
    (base / "chat_template.jinja").write_text(HIDDEN_LINKS["a test"])
    data = write_chats(tmp_path / "town.jsonl", chats())
    line = refusal(SourceError, town, data, base)
    assert re.search(r"line 1 of the chat template of \S+: {% if 'python' in m\.content %}, which depends on", line)
    assert (town.runs(), town.registered(), town.halves()) == ([], [], [])
