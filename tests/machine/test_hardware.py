"""Hardware: what this machine lacks is told with what mends it, before any work."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from command_line import objects, slmpack

from slmpack.errors import HardwareError
from slmpack.log.requirements import requirements_for
from slmpack.machine.hardware import (
    LIBRARIES,
    provider_here,
    read_gpu,
    require_hardware,
    require_libraries,
    require_recent,
    require_runtime,
    unprovable_error,
)
from slmpack.machine.runtimes import CUDA_LIBRARIES, installed_runtime, release_of
from slmpack.machine.target_support import all_support
from slmpack.records import Device, Target

CUDA = [Target.CUDA_INT4, Target.CUDA_FP16]
H100 = "echo 'NVIDIA H100 80GB HBM3, 580.95.05, 9.0'"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def install_package(folder: Path, name: str, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what pip leaves of a package, where Python looks first."""
    left = folder / f"{name.replace('-', '_')}-{release}.dist-info"
    left.mkdir()
    (left / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("target", [Target.CPU_INT4, Target.CPU_INT8, Target.TRANSFORMERS])
def test_a_target_for_cpus_needs_nothing(target: Target, driver: Path) -> None:
    require_hardware(target)
    assert provider_here(target) == target.provider == "cpu"


@pytest.mark.parametrize("target", CUDA)
def test_a_machine_without_a_driver_is_told_which_pool_has_one(target: Target, driver: Path) -> None:
    with pytest.raises(HardwareError, match=r"no usable GPU \(there is no nvidia-smi.*; an NVIDIA GPU .*pool cuda"):
        require_hardware(target)
    assert provider_here(target) == "cpu"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'Driver/library version mismatch' >&2; exit 18", "Driver/library version mismatch"),
        ("exit 0", "nvidia-smi names none"),
        ("echo 'NVIDIA H100'", "nvidia-smi says 'NVIDIA H100', not name,driver_version,compute_cap"),
        ("echo 'Tesla T4, 535.1, 7.5'", "driver 535.1 of this machine; 580 or later, for CUDA 13; update the driver"),
        ("echo 'Tesla V100, 580.1, 7.0'", "Tesla V100 with compute capability 7.0; 7.5 or later; use a newer GPU"),
        (H100, "onnxruntime-genai is installed, which knows no GPU; onnxruntime-genai-cuda; make a new environment"),
    ],
)
def test_what_keeps_a_gpu_from_being_used_is_told(driver: Path, script: str, told: str) -> None:
    install(driver, script)
    assert told in str(unprovable_error(Target.CUDA_INT4))


def test_a_gpu_is_known_by_what_its_driver_says() -> None:
    gpu = read_gpu("NVIDIA H100 80GB HBM3, 580.95.05, 9.0")
    assert gpu == Device(
        provider="cuda", name="NVIDIA H100 80GB HBM3", driver="580.95.05", compute_capability="9.0"
    )  # fmt: skip
    require_recent(gpu)
    require_recent(gpu.model_copy(update={"compute_capability": "[N/A]"}))  # of a virtual one


def test_a_cuda_library_that_is_missing_is_told_with_its_package() -> None:
    try:
        version("nvidia-cuda-runtime")
    except PackageNotFoundError:
        with pytest.raises(HardwareError, match=r"there is no lib.*; the package nvidia-.*==1.*pip install 'slmpack\["):
            require_libraries()
    else:
        pytest.skip("this Python has NVIDIA's packages")


def test_every_library_comes_with_a_package_that_is_required() -> None:
    assert set(LIBRARIES.values()) <= set(CUDA_LIBRARIES)


def test_both_sets_of_packages_in_one_environment_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_runtime() == "cpu"
    install_package(tmp_path, "onnxruntime-gpu", "1.31.1", monkeypatch)
    with pytest.raises(HardwareError, match="both onnxruntime-genai and onnxruntime-gpu are installed, which own"):
        require_runtime(Target.CPU_INT4)
    require_runtime(Target.TRANSFORMERS)
    assert {(offer.target, offer.builds) for offer in all_support()} == {
        (target, target is Target.TRANSFORMERS) for target in Target
    }


@pytest.mark.parametrize("target", CUDA)
def test_a_package_for_gpus_requires_the_runtime_for_cuda_and_nothing_of_the_other(target: Target) -> None:
    names = {line.partition("==")[0] for line in requirements_for(target)}
    assert {"onnxruntime-genai-cuda", "onnxruntime-gpu", "nvidia-cublas", "nvidia-cuda-runtime"} <= names
    assert not {"onnxruntime-genai", "onnxruntime", "torch", "transformers"} & names
    assert f"onnxruntime-genai-cuda=={release_of('onnxruntime-genai')}" in requirements_for(target)


def test_the_command_says_what_this_machine_can_do(tmp_path: Path) -> None:
    done = slmpack("targets", "--json", cwd=tmp_path, PATH=str(tmp_path))
    found = {each["target"]: each for each in objects(done)}
    assert done.returncode == 0
    assert list(found) == [target.value for target in Target]
    assert all(each["builds"] for each in found.values())
    assert {target for target, each in found.items() if each["proves"]} == {"transformers", "cpu-int4", "cpu-int8"}
    assert found["cuda-int4"]["pool"] == "cuda"
    assert "there is no nvidia-smi" in found["cuda-int4"]["reason"]
    told = slmpack("targets", cwd=tmp_path, PATH=str(tmp_path)).stdout
    assert "cuda-fp16     builds, does not prove: this machine has no usable GPU" in told
    assert "cpu-int4      builds and proves\n" in told
