"""Hardware: a target that this machine cannot prove is refused before any work."""

from pathlib import Path

import pytest
from command_line import objects, slmpack

from slmpack.errors import HardwareError
from slmpack.hardware import pool_of, require_hardware
from slmpack.records import Target


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize("target", [Target.CPU_INT4, Target.CPU_INT8, Target.TRANSFORMERS])
def test_a_target_for_cpus_needs_nothing(target: Target, driver: Path) -> None:
    require_hardware(target)
    assert pool_of(target) == "cpu"


@pytest.mark.parametrize("target", [Target.CUDA_INT4, Target.CUDA_FP16])
def test_a_machine_without_a_driver_is_told_which_pool_has_one(target: Target, driver: Path) -> None:
    with pytest.raises(HardwareError, match=r"no usable GPU \(there is no nvidia-smi.*; an NVIDIA GPU; .*pool cuda"):
        require_hardware(target)


def test_what_the_driver_says_is_told(driver: Path) -> None:
    install(driver, "echo 'Driver/library version mismatch' >&2; exit 18")
    with pytest.raises(HardwareError, match="Driver/library version mismatch"):
        require_hardware(Target.CUDA_INT4)


def test_a_gpu_does_not_make_this_release_build_for_it(driver: Path) -> None:
    install(driver, "echo 'NVIDIA H100'")
    with pytest.raises(HardwareError, match="builds nothing for CUDA yet"):
        require_hardware(Target.CUDA_FP16)


@pytest.mark.slow
def test_the_command_says_why_and_leaves_nothing(tmp_path: Path, prefect_api: str) -> None:
    done = slmpack("package", "--target", "cuda-int4", "--json", cwd=tmp_path, PREFECT_API_URL=prefect_api)
    (outcome,) = objects(done)
    assert (done.returncode, outcome["status"], outcome["seconds"]) == (1, "failed", {})
    assert outcome["reason"].startswith("target cuda-int4, but this machine has no usable GPU")
    assert list(tmp_path.iterdir()) == []
