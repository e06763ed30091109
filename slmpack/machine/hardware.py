"""Hardware: what a target runs on, and whether this machine has it. Asked before anything is fetched or built.

Every target can be built anywhere. A target for GPUs is proved where there is one; elsewhere its packages are run by
the provider for CPUs, which proves all but the GPU's own arithmetic and speed.
"""

import subprocess
from ctypes.util import find_library

from slmpack.errors import HardwareError
from slmpack.machine.runtimes import CUDA_LIBRARIES, SETS, installed_runtime, installed_version
from slmpack.records import CPU, Device, Provider, Target

ASK_SECONDS = 30.0
QUERY = "name,driver_version,compute_cap"
# Source: NVIDIA's CUDA 13 release notes: the driver that all of CUDA 13 runs on, and the oldest GPUs it has code for.
OLDEST_DRIVER = 580
OLDEST_CAPABILITY = (7, 5)
# What ONNX Runtime links to, and the package that has it. Source: NEEDED entries of the wheels' shared objects.
LIBRARIES = {
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcublas.so.13": "nvidia-cublas",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcufft.so.12": "nvidia-cufft",
    "libcurand.so.10": "nvidia-curand",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
}
INSTALL = "type: pip install 'slmpack[cuda]'"


def require_runtime(target: Target) -> None:
    """Refuse a machine whose ONNX Runtime is ambiguous, before any work.

    Raises:
        HardwareError: the packages for both kinds of hardware are installed, or none are.
    """
    if target is not Target.TRANSFORMERS:
        installed_runtime()


def require_hardware(target: Target) -> None:
    """Refuse a target that this machine cannot prove.

    Raises:
        HardwareError: what it lacks, and how to get it.
    """
    if (error := unprovable_error(target)) is not None:
        raise HardwareError(f"target {target} cannot be proved here: {error}")


def provider_here(target: Target) -> Provider:
    """Return what the target's packages are run by on this machine: its own provider, else the one for CPUs."""
    return "cpu" if unprovable_error(target) else target.provider


def device_of(provider: Provider) -> Device:
    """Return what `provider` runs on here; of several GPUs the first, which the runtime takes too.

    Raises:
        HardwareError: there is no usable GPU.
    """
    return CPU if provider == "cpu" else _first_gpu()


def unprovable_error(target: Target) -> HardwareError | None:
    """Return why this machine cannot prove the target, None if it can."""
    if target.provider == "cpu":
        return None
    try:
        require_recent(_first_gpu())
        _require_cuda_runtime()
        require_libraries()
    except HardwareError as error:
        return error
    return None


def _first_gpu() -> Device:
    """Ask the driver's own tool, in a process of its own.

    Raises:
        HardwareError: it is not there, does not answer, or names no GPU.
    """
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    except FileNotFoundError:
        raise _no_gpu("there is no nvidia-smi, which comes with the driver") from None
    except subprocess.TimeoutExpired:
        raise _no_gpu(f"nvidia-smi does not answer in {ASK_SECONDS:.0f} s") from None
    if done.returncode != 0 or not done.stdout.strip():
        raise _no_gpu(" ".join((done.stderr or done.stdout or "nvidia-smi names none").split())[:200])
    return read_gpu(done.stdout.splitlines()[0])


def read_gpu(line: str) -> Device:
    """Read a line of what nvidia-smi prints for `QUERY`.

    Raises:
        HardwareError: it is another one.
    """
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != QUERY.count(",") + 1:
        raise _no_gpu(f"nvidia-smi says {line.strip()[:100]!r}, not {QUERY}")
    name, driver, capability = fields
    return Device(provider="cuda", name=name, driver=driver, compute_capability=capability)


def _no_gpu(found: str) -> HardwareError:
    return HardwareError(
        f"this machine has no usable GPU ({found})", "an NVIDIA GPU with its driver", "use a machine of the pool cuda"
    )


def require_recent(gpu: Device) -> None:
    """Refuse a GPU or a driver that is too old for CUDA 13; what cannot be read as a number is let pass.

    Raises:
        HardwareError: which of them is.
    """
    driver, capability = _numbers(gpu.driver), _numbers(gpu.compute_capability)
    if driver and driver[0] < OLDEST_DRIVER:
        raise HardwareError(
            f"the NVIDIA driver {gpu.driver} of this machine",
            f"{OLDEST_DRIVER} or later, for CUDA 13",
            "update the driver",
        )
    if capability and capability < OLDEST_CAPABILITY:
        least = ".".join(map(str, OLDEST_CAPABILITY))
        raise HardwareError(
            f"{gpu.name} with compute capability {gpu.compute_capability}", f"{least} or later", "use a newer GPU"
        )


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()


def _require_cuda_runtime() -> None:
    """Refuse ONNX Runtime for CPUs.

    `is_cuda_available` of the one for CUDA is no help: it says yes on a machine without a GPU.

    Raises:
        HardwareError: it is installed.
    """
    if installed_runtime() != "cuda":
        raise HardwareError(
            f"{SETS['cpu'][0]} is installed, which knows no GPU",
            SETS["cuda"][0],
            "make a new environment with slmpack[cuda]",
        )


def require_libraries() -> None:
    """Refuse a machine without a CUDA library that ONNX Runtime links to.

    Raises:
        HardwareError: it is neither a package of this Python nor known to the system's loader.
    """
    for library, package in LIBRARIES.items():
        if installed_version(package) is None and find_library(library[3:].partition(".so")[0]) != library:
            requirement = f"{package}=={CUDA_LIBRARIES[package]}"
            raise HardwareError(
                f"there is no {library}", f"the package {requirement}, or CUDA 13 on this system", INSTALL
            )
