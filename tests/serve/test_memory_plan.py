"""The plan of memory: what a cgroup leaves is what slots may hold, and what does not fit is refused with what would."""

from pathlib import Path

import pytest

from slmpack.errors import HardwareError, UsageError
from slmpack.machine.memory import available_bytes
from slmpack.serve.memory_plan import plan_context, weight_bytes

GIB = 1 << 30
SMOLLM2 = {"window": 8192, "bytes_per_token": 46_080, "weights": 78 << 20}  # 30 layers, 3 heads of 64 for keys


def in_a_cgroup(folder: Path, limit: int) -> int:
    """Return the memory that a cgroup of that limit leaves to a new process."""
    for name, text in (("memory.max", f"{limit}"), ("memory.current", "0"), ("memory.stat", "active_file 0")):
        (folder / name).write_text(f"{text}\n")
    (folder / "membership").write_text("0::/\n")
    return available_bytes(folder / "membership", folder)


def test_slots_that_a_containers_limit_cannot_hold_are_refused_with_what_would_fit(tmp_path: Path) -> None:
    available = in_a_cgroup(tmp_path, 2 * GIB)
    found = r"64 slots of 8192 tokens take 24.2 GB \(46,080 bytes a token\), and the model itself 0.3"
    with pytest.raises(HardwareError, match=rf"{found}; 2.1 GB are free here; use --slots 4 or --context 623"):
        plan_context(wanted=8192, slots=64, available=available, **SMOLLM2)
    assert plan_context(wanted=8192, slots=4, available=available, **SMOLLM2) == 8192
    assert plan_context(wanted=623, slots=64, available=available, **SMOLLM2) == 623


def test_what_is_advised_fits_and_more_does_not(tmp_path: Path) -> None:
    available = in_a_cgroup(tmp_path, GIB)
    with pytest.raises(HardwareError, match=r"use --slots 2 or --context 259$"):
        plan_context(wanted=8192, slots=64, available=available, **SMOLLM2)
    for slots, context in ((2, 8192), (64, 259)):
        assert plan_context(wanted=context, slots=slots, available=available, **SMOLLM2) == context
    for slots, context in ((3, 8192), (64, 260)):
        with pytest.raises(HardwareError):
            plan_context(wanted=context, slots=slots, available=available, **SMOLLM2)


def test_without_a_wish_the_models_window_is_taken_where_it_fits_and_less_where_it_does_not() -> None:
    assert plan_context(wanted=None, slots=8, available=64 * GIB, **SMOLLM2) == 8192
    less = plan_context(wanted=None, slots=8, available=2 * GIB, **SMOLLM2)
    assert 8 * less * SMOLLM2["bytes_per_token"] < 2 * GIB / 2


def test_several_models_share_what_is_there() -> None:
    alone = plan_context(wanted=None, slots=8, available=4 * GIB, **SMOLLM2)
    of_three = plan_context(wanted=None, slots=8, available=4 * GIB, models=3, **SMOLLM2)
    assert 3 * of_three < alone
    with pytest.raises(HardwareError, match=r"4.3 GB are free here, of which 3 models get 1.4 each"):
        plan_context(wanted=8192, slots=8, available=4 * GIB, models=3, **SMOLLM2)


def test_weights_that_fill_the_memory_leave_no_room_for_slots() -> None:
    large = {"window": 4096, "bytes_per_token": 786_432, "weights": 3 * GIB}
    with pytest.raises(HardwareError, match="serve it on a machine with more memory"):
        plan_context(wanted=None, slots=1, available=3 * GIB, **large)


def test_more_than_the_window_is_a_mistake_however_much_memory_there_is() -> None:
    with pytest.raises(UsageError, match="--context 8193; at most 8192, the model's window; ask for less"):
        plan_context(wanted=8193, slots=1, available=1, **SMOLLM2)


def test_the_weights_beside_a_graph_count(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"1234")
    (tmp_path / "model.onnx.data").write_bytes(b"12345678")
    (tmp_path / "tokenizer.json").write_bytes(b"1")
    assert weight_bytes(tmp_path / "model.onnx") == 12
