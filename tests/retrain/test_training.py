"""Training: transformers' Trainer and peft do it; here is that it is repeatable, goes on, stops, and is found again."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest
from checkpoints import write_random
from command_line import children_with
from families import PLAIN, TOKENIZERS
from invented_town import chats, write_chats
from live_folder import seen
from pydantic import ValidationError

from slmpack.checkpoint.headers import read_weights
from slmpack.checkpoint.inspect import inspect_checkpoint
from slmpack.errors import TrainError, WorkspaceError
from slmpack.records import Snapshot
from slmpack.retrain.training.checkpoints import last_whole, mark_whole, no_room
from slmpack.retrain.training.losses import TrainingPoint, following, read_points, write_points
from slmpack.retrain.training.settings import TrainSettings
from slmpack.retrain.training.train import Tuned, read_training, train_adapter
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

QUICK = TrainSettings(epochs=2, rank=8, learning_rate=2e-2, batch_size=4, max_length=256)
SAME_BYTES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
PROPOSED = {
    "Llama": ("qwen", {**PLAIN, "tie_word_embeddings": True}),
    "Phi3": ("phi3", {**PLAIN, "num_key_value_heads": 4, "pad_token_id": 2, "original_max_position_embeddings": 256}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace for the module's small models."""
    return tmp_path_factory.mktemp("train") / "workspace"


def small_snapshot(family: str, place: Path) -> Snapshot:
    """Write and fetch a model of 2 layers in bfloat16 with its family's chat template."""
    tokenizer, config = PROPOSED[family]
    folder = place.parent / family.lower()
    if not folder.exists():
        TOKENIZERS[tokenizer](folder)
        kept = (folder / "generation_config.json").read_bytes()
        write_random(folder, family, config)
        # As Llama 2 was published: what transformers loads with a warning and refuses to save.
        settings = json.loads(kept) | {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
        (folder / "generation_config.json").write_text(json.dumps(settings))
        (folder / "LICENSE").write_text("MIT License\n")
    return fetch_snapshot(resolve_source(str(folder)), place)


@pytest.fixture(scope="module")
def llama(place: Path) -> Snapshot:
    return small_snapshot("Llama", place)


@pytest.fixture(scope="module")
def town(place: Path) -> Path:
    """40 chats about the town."""
    return write_chats(place.parent / "town.jsonl", chats()[:40])


def points_of(tuned: Tuned) -> list[float]:
    return [point.loss for point in read_training(tuned.path).curve]


def weights_of(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


# ---------------------------------------------------------------------------------------------- small things


def test_settings_have_bounds_and_a_description_for_a_form() -> None:
    with pytest.raises(ValidationError, match="learning_rate"):
        TrainSettings(learning_rate=0)
    with pytest.raises(ValidationError, match="rank"):
        TrainSettings(rank=-1)
    assert all("description" in field for field in TrainSettings.model_json_schema()["properties"].values())


def test_how_often_a_checkpoint_is_written_changes_nothing_that_is_learnt() -> None:
    often, other = QUICK.model_copy(update={"save_minutes": 0.0}), QUICK.model_copy(update={"seed": 1})
    assert often != QUICK
    assert often.learnt_by() == QUICK.learnt_by() != other.learnt_by()
    with pytest.raises(ValidationError, match="save_minutes"):
        TrainSettings(save_minutes=-1)


def point(step: int) -> TrainingPoint:
    return TrainingPoint(step=step, steps=9, loss=1 / step, learning_rate=1e-3, tokens=step, seconds=step,
                         tokens_per_second=1.0, seconds_left=9 - step)  # fmt: skip


def test_every_point_is_told_also_those_that_were_there_before(tmp_path: Path) -> None:
    file, on_point = tmp_path / "losses.jsonl", list[int]()
    write_points(file, [point(1), point(2)])
    with following(file, lambda each: on_point.append(each.step)), file.open("a") as more:
        more.write(point(3).model_dump_json() + "\n")
        more.write('{"step": 4, "st')  # killed while it wrote
    assert on_point == [1, 2, 3]
    assert [each.step for each in read_points(file)] == [1, 2, 3]


def test_a_listener_that_fails_is_not_asked_again_and_training_goes_on(tmp_path: Path) -> None:
    file, on_point = tmp_path / "losses.jsonl", list[int]()
    write_points(file, [point(1), point(2)])

    def tell(each: TrainingPoint) -> None:
        on_point.append(each.step)
        raise OSError("the server is gone")

    with following(file, tell):
        pass
    assert on_point == [1]


def test_a_half_written_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    for step in (5, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
    (tmp_path / "checkpoint-20" / "training_args.bin").touch()
    for step in (5, 20):
        mark_whole(tmp_path / f"checkpoint-{step}")
    assert last_whole(tmp_path) == (20, tmp_path / "checkpoint-20")
    assert not (tmp_path / "checkpoint-100").exists()
    assert not (tmp_path / "checkpoint-20" / "training_args.bin").exists()
    assert last_whole(tmp_path / "nothing") is None


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)
    assert isinstance(no_room(full.value, tmp_path), WorkspaceError)
    assert no_room(OSError(errno.EACCES, "denied"), tmp_path) is None
    assert no_room(RuntimeError("shapes do not match"), tmp_path) is None


# ---------------------------------------------------------------------------------------------- small models


@pytest.mark.slow
@pytest.mark.parametrize("family", PROPOSED)
def test_training_makes_a_whole_checkpoint_with_the_bases_own_files(family: str, place: Path, town: Path) -> None:
    snapshot, on_point = small_snapshot(family, place), list[TrainingPoint]()
    tuned = train_adapter(snapshot, town, QUICK, place, on_point=on_point.append)
    assert tuned.steps == 20
    assert [each.step for each in on_point] == list(range(1, 21))
    assert tuned.last_loss < 0.8 * tuned.first_loss
    for name in (*SAME_BYTES, "LICENSE"):
        assert (tuned.path / name).read_bytes() == (snapshot.path / name).read_bytes()
    facts = inspect_checkpoint(tuned.path)
    assert (facts.architecture, facts.dtype) == (snapshot.architecture, snapshot.dtype)
    assert read_weights(tuned.path).keys() == read_weights(snapshot.path).keys()
    adapter = (tuned.path / "adapter" / "adapter_config.json").read_text()
    assert str(place.parent) not in adapter
    assert json.loads(adapter)["base_model_name_or_path"] == snapshot.source.shown
    assert "license: " in (tuned.path / "README.md").read_text()
    assert not (place / "training" / tuned.key).exists()


@pytest.mark.slow
def test_the_same_training_is_run_once(llama: Snapshot, town: Path, place: Path) -> None:
    first = train_adapter(llama, town, QUICK, place)
    on_point: list[TrainingPoint] = []
    assert train_adapter(llama, town, QUICK, place, on_point=on_point.append) == first
    assert on_point == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_one_others(llama: Snapshot, town: Path, place: Path) -> None:
    first = train_adapter(llama, town, QUICK, place)
    again = train_adapter(llama, town, QUICK, place.parent / "again")
    other = train_adapter(llama, town, QUICK.model_copy(update={"seed": 1}), place)
    assert weights_of(again.path) == weights_of(first.path)
    assert points_of(again) == points_of(first)
    assert weights_of(other.path) != weights_of(first.path)


def kill_at_a_checkpoint(folder: Path) -> None:
    """Kill the training's process as soon as one of its checkpoints is whole."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if seen(folder, "*/checkpoint-*/whole") and (processes := children_with("run_training")):
            processes[0].kill()
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_that_was_killed_half_way_goes_on_and_ends_the_same(llama: Snapshot, town: Path, place: Path) -> None:
    settings, elsewhere = QUICK.model_copy(update={"epochs": 6.5}), place.parent / "killed"
    straight = train_adapter(llama, town, settings, place)
    killer = threading.Thread(target=kill_at_a_checkpoint, args=(elsewhere / "training",))
    killer.start()
    with pytest.raises(TrainError, match="killed by signal 9"):
        train_adapter(llama, town, settings.model_copy(update={"save_minutes": 0.002}), elsewhere)
    killer.join()
    on_point: list[TrainingPoint] = []
    tuned = train_adapter(llama, town, settings, elsewhere, on_point=on_point.append)
    resumed_at = read_training(tuned.path).resumed_at
    assert resumed_at is not None
    assert 0 < resumed_at < 65
    assert [each.step for each in on_point] == list(range(1, 66))
    assert weights_of(tuned.path) == weights_of(straight.path)
    assert points_of(tuned) == points_of(straight)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_training_with_its_step(llama: Snapshot, town: Path, place: Path) -> None:
    wild = QUICK.model_copy(update={"learning_rate": 1e30, "save_minutes": 0.0})
    with pytest.raises(TrainError, match=r"the (loss|gradient) is (nan|inf) at step \d of 20; .*lower the learning"):
        train_adapter(llama, town, wild, place)
    assert not list(place.glob("training/*/checkpoint-*"))
    assert not list(place.glob("scratch/tunings-*"))


@pytest.mark.slow
def test_a_batch_that_is_read_in_parts_is_learnt_as_one(llama: Snapshot, town: Path, place: Path) -> None:
    whole = train_adapter(llama, town, QUICK, place)
    parts = train_adapter(llama, town, QUICK.model_copy(update={"batch_size": 2, "batches_per_step": 2}), place)
    assert points_of(parts) == pytest.approx(points_of(whole), rel=1e-3)


@pytest.mark.slow
def test_rank_0_trains_all_weights(llama: Snapshot, town: Path, place: Path) -> None:
    tuned = train_adapter(llama, town, QUICK.model_copy(update={"rank": 0, "batches_per_step": 2}), place)
    assert tuned.steps == 10
    assert tuned.last_loss < tuned.first_loss
    assert not (tuned.path / "adapter").exists()
    assert read_training(tuned.path).trained_parameters == llama.parameters
    assert inspect_checkpoint(tuned.path).dtype == llama.dtype
