"""Memory of a training: predicted from headers and chats, refused before a weight is loaded, and kept to."""

import json
import struct
from pathlib import Path

import pytest
import torch
from checkpoints import copy_tokenizer, write_random
from invented_town import ask, write_chats

from slmpack.checkpoint.sizes import ModelSizes, sizes_of
from slmpack.errors import TrainError
from slmpack.machine.child import run_in_child
from slmpack.records import Snapshot
from slmpack.retrain.training.checkpoints import needed_bytes
from slmpack.retrain.training.memory import (
    FLOAT_BYTES,
    MARGIN,
    PART_BYTES,
    Plan,
    chats_at_a_time,
    choose_plan,
    predicted_bytes,
    trained_parameters,
)
from slmpack.retrain.training.settings import TrainSettings
from slmpack.retrain.training.train import read_training, train_adapter
from slmpack.retrain.training.trainer import PRECISION, TrainRequest, dtypes_for, run_training
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

DEFAULTS = TrainSettings()
DTYPES = ("float32", "bfloat16")  # of the base under an adapter on a CPU
FREE_OF_24_GB = 19_000_000_000  # what a system and the flow leave
TOY = ModelSizes(
    parameters=1000, stored_bytes=4000, matrices={"a": (10, 20), "b": (20, 10)}, layers=2, hidden=10, vocabulary=500
)
HIDDEN, INNER = 3072, 8192  # Phi-3-mini's
PHI3_LAYER = {
    "self_attn.qkv_proj": (3 * HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_up_proj": (2 * INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def write_phi3_headers(folder: Path, vocabulary: int = 32064, layers: int = 32) -> Path:
    """Write a checkpoint of Phi-3-mini's shape with all of its header and a hole for its weights."""
    shapes = {f"model.{name}.weight": (vocabulary, HIDDEN) for name in ("embed_tokens", "lm_head")}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in PHI3_LAYER.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps({"hidden_size": HIDDEN, "vocab_size": vocabulary}))
    return folder


def needed(sizes: ModelSizes, rank: int, chats: int, longest: int, plan: Plan) -> int:
    kept = 1 if plan.recomputes else sizes.layers
    return predicted_bytes(sizes, rank, chats * longest, FLOAT_BYTES[plan.dtype], kept)


def planned(sizes: ModelSizes, rank: int) -> tuple[Plan, int]:
    """Return the plan of the default batch on a machine of 24 GB, and what it is predicted to take."""
    chats = chats_at_a_time(sizes, DEFAULTS.batch_size, DEFAULTS.max_length)
    plan = choose_plan(sizes, rank, chats, DEFAULTS.max_length, DTYPES, FREE_OF_24_GB)
    return plan, needed(sizes, rank, chats, DEFAULTS.max_length, plan)


def test_memory_is_predicted_from_what_is_trained_and_from_what_is_read_at_a_time() -> None:
    assert trained_parameters(TOY, 4) == 4 * 60
    assert trained_parameters(TOY, 0) == 1000
    short, long = (predicted_bytes(TOY, 4, tokens, 4, kept_layers=1) for tokens in (10**4, 10**6))
    assert long - short > 12 * 500 * (10**6 - 10**4)
    assert predicted_bytes(TOY, 4, 10**6, 4, kept_layers=2) > long


def test_a_batch_is_read_in_equal_parts_that_are_small() -> None:
    token_bytes = (predicted_bytes(TOY, 4, 10**6, 4, 1) - predicted_bytes(TOY, 4, 0, 4, 1)) / (MARGIN * 10**6)
    fit = int(PART_BYTES / token_bytes)  # tokens
    assert chats_at_a_time(TOY, 8, fit // 8) == 8
    assert chats_at_a_time(TOY, 8, fit // 7) == 4
    assert chats_at_a_time(TOY, 7, fit // 6) == 1
    assert chats_at_a_time(TOY, 8, 10 * fit) == 1


def test_all_weights_of_smollm2_are_trained_at_the_default_batch_within_24_gb(smollm2: Snapshot) -> None:
    plan, size = planned(sizes_of(smollm2.path), rank=0)
    assert plan == Plan(dtype="float32", recomputes=False)
    assert 4e9 < size < FREE_OF_24_GB / 2


def test_an_adapter_of_phi3_is_trained_at_the_default_batch_within_24_gb(tmp_path: Path) -> None:
    sizes = sizes_of(write_phi3_headers(tmp_path / "phi3"))
    assert sizes.parameters == pytest.approx(3.82e9, rel=0.01)
    plan, size = planned(sizes, rank=16)
    assert plan == Plan(dtype="bfloat16", recomputes=True)
    assert 8e9 < size < FREE_OF_24_GB


def test_memory_is_saved_only_where_there_is_little(tmp_path: Path) -> None:
    sizes = sizes_of(write_phi3_headers(tmp_path / "phi3"))
    ways = [Plan(dtype="float32", recomputes=False), *(Plan(dtype=dtype, recomputes=True) for dtype in DTYPES)]
    takes = [needed(sizes, 16, 1, 512, way) for way in ways]
    found = [choose_plan(sizes, 16, 1, 512, DTYPES, int(free)) for free in (2 * takes[0], takes[1] / 0.7, takes[2])]
    assert found == ways


@pytest.mark.parametrize(
    ("rank", "chats", "longest", "advice"),
    [
        (16, 8, 512, r"lower batch_size to \d, or use a machine"),
        (16, 1, 8192, r"lower max_length to \d+, or use a machine"),
        (0, 1, 512, r"train an adapter \(rank above 0\), or use a machine"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_setting_to_lower(
    rank: int, chats: int, longest: int, advice: str, tmp_path: Path
) -> None:
    sizes = sizes_of(write_phi3_headers(tmp_path / "phi3"))
    with pytest.raises(TrainError, match=rf"^training \({chats} x .* GB of memory; .* are free here; {advice}"):
        choose_plan(sizes, rank, chats, longest, DTYPES if rank else ("float32",), 12_500_000_000)


def test_what_is_advised_fits(tmp_path: Path) -> None:
    sizes = sizes_of(write_phi3_headers(tmp_path / "phi3"))
    with pytest.raises(TrainError) as refused:
        choose_plan(sizes, 16, 1, 8192, ("bfloat16",), 12_500_000_000)
    advised = int(str(refused.value).split("max_length to ")[1].split(",")[0])
    choose_plan(sizes, 16, 1, advised, ("bfloat16",), 12_500_000_000)
    with pytest.raises(TrainError):
        choose_plan(sizes, 16, 1, advised + 2, ("bfloat16",), 12_500_000_000)


def test_disk_is_wanted_for_three_checkpoints_and_for_what_comes_of_it() -> None:
    assert needed_bytes(500, 10, whole_model=False) == 3 * 3 * 4 * 10 + 500
    assert needed_bytes(500, 10, whole_model=True) == 3 * 3 * 4 * 10 + 2 * 500


@pytest.mark.slow
def test_a_training_that_does_not_fit_is_refused_before_a_weight_is_loaded(
    tiny_snapshot: Snapshot, tmp_path: Path
) -> None:
    folder = write_phi3_headers(tmp_path / "huge", vocabulary=100_000_000, layers=1)
    for path in tiny_snapshot.path.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    data = write_chats(tmp_path / "chats.jsonl", [{"messages": [*ask("How far?"), *said("Very far.")]}])
    with pytest.raises(TrainError, match=r"^training \(1 x \d+ tokens at a time\) needs about 1,\d+\.\d GB of mem"):
        run_in_child(
            run_training,
            TrainRequest(
                checkpoint=folder, dtype="bfloat16", base_name="huge", base_revision="0", chats=data, settings=DEFAULTS,
                max_length=64, folder=tmp_path, resume=None, save_seconds=60.0,
            ),
            log=tmp_path / "log", limit_seconds=900, failure=TrainError, doing="training",
        )  # fmt: skip
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.fixture
def narrow(smollm2: Snapshot, tmp_path: Path) -> Snapshot:
    """A third of SmolLM2's width, with its vocabulary: logits as large as a real model's, and little arithmetic."""
    sizes = {"vocab_size": 49152, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 1024}
    write_random(tmp_path / "narrow", "Llama", sizes | heads | {"tie_word_embeddings": True, "eos_token_id": 2})
    copy_tokenizer(smollm2.path, tmp_path / "narrow")
    return fetch_snapshot(resolve_source(str(tmp_path / "narrow")), tmp_path / "workspace")


@pytest.mark.slow
def test_a_real_training_stays_below_its_prediction_and_reads_its_batches_in_parts(
    narrow: Snapshot, tmp_path: Path
) -> None:
    chats = [{"messages": [*ask("How far?"), *said("very " * length + "far")]} for length in (430, 429) * 8]
    data = write_chats(tmp_path / "chats.jsonl", chats)
    tuned = train_adapter(narrow, data, DEFAULTS.model_copy(update={"epochs": 1.0}), tmp_path / "workspace")
    training, sizes = read_training(tuned.path), sizes_of(narrow.path)
    assert tuned.steps == 2
    at_a_time = chats_at_a_time(sizes, DEFAULTS.batch_size, training.longest)
    assert at_a_time == 4
    plan = Plan(dtype=training.dtype, recomputes=training.recomputes)
    predicted = needed(sizes, DEFAULTS.rank, at_a_time, training.longest, plan)
    assert 0.6 * predicted < training.peak_private_bytes < predicted


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def test_a_run_that_goes_on_has_the_base_in_the_precision_it_began_with(tmp_path: Path) -> None:
    def asked(resume: Path | None) -> TrainRequest:
        return TrainRequest(
            checkpoint=tmp_path, dtype="bfloat16", base_name="base", base_revision="1", chats=tmp_path / "chats.jsonl",
            settings=DEFAULTS, max_length=64, folder=tmp_path, resume=resume, save_seconds=1.0,
        )  # fmt: skip

    begun = tmp_path / "checkpoint-4"
    assert dtypes_for(asked(begun)) == dtypes_for(asked(None))  # of a run by an earlier release nothing is known
    (tmp_path / PRECISION).write_text("bfloat16")
    assert dtypes_for(asked(begun)) == ["bfloat16"]
    assert dtypes_for(asked(None))[0] == ("bfloat16" if torch.cuda.is_available() else "float32")
