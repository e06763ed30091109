"""Hardware: what a target runs on, and whether this machine has it. Asked before anything is fetched or built."""

import subprocess

from slmpack.errors import HardwareError
from slmpack.records import Target

CUDA = (Target.CUDA_INT4, Target.CUDA_FP16)
ASK_SECONDS = 30.0


def pool_of(target: Target) -> str:
    """Return the work pool whose workers have the target's hardware: `cpu` or `cuda`."""
    return "cuda" if target in CUDA else "cpu"


def require_hardware(target: Target) -> None:
    """Refuse a target that this machine cannot prove.

    Raises:
        HardwareError: it has no NVIDIA GPU with a driver, or this release builds nothing for one.
    """
    if target not in CUDA:
        return
    if (obstacle := _gpu_obstacle()) is not None:
        raise HardwareError(f"target {target}, but this machine has no usable GPU ({obstacle})", "an NVIDIA GPU",
                            f"run it on a worker of the pool {pool_of(target)}, on a machine that has one")  # fmt: skip
    raise HardwareError(f"target {target}", "a target for CPUs", "this release builds nothing for CUDA yet")


def _gpu_obstacle() -> str | None:
    """Ask the driver's own tool, in a process of its own; return what it lacks in words."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    except FileNotFoundError:
        return "there is no nvidia-smi, which comes with the driver"
    except subprocess.TimeoutExpired:
        return f"nvidia-smi does not answer in {ASK_SECONDS:.0f} s"
    if done.returncode != 0 or not done.stdout.strip():
        return " ".join((done.stderr or done.stdout or "nvidia-smi names none").split())[:200]
    return None
