"""Offers: what each target is, and whether this machine can build it and prove it."""

from slmpack.errors import HardwareError
from slmpack.machine.hardware import device_of, require_runtime, unprovable_error
from slmpack.records import Device, Provider, Record, Target

ABOUT = {
    Target.TRANSFORMERS: "the checkpoint itself, by MLflow's transformers flavour; nothing is exported",
    Target.CPU_INT4: "ONNX for CPUs, weights of 4 bits",
    Target.CPU_INT8: "ONNX for CPUs, weights of 8 bits",
    Target.CUDA_INT4: "ONNX for NVIDIA GPUs, weights of 4 bits, the rest float16",
    Target.CUDA_FP16: "ONNX for NVIDIA GPUs, float16",
}


class TargetSupport(Record):
    """A target on this machine.

    Attributes:
        pool: whose workers can prove it.
        device: what it would be proved on; None where it cannot be.
        reason: why it cannot be built, or not be proved; None if both can be.
    """

    target: Target
    about: str
    pool: Provider
    builds: bool
    proves: bool
    device: Device | None
    reason: str | None


def all_support() -> tuple[TargetSupport, ...]:
    """Return what this machine can do for each target."""
    return tuple(_support_of(target) for target in Target)


def _support_of(target: Target) -> TargetSupport:
    builds = _unbuildable_error(target)
    proves = builds or unprovable_error(target)
    reason = builds or proves
    return TargetSupport(
        target=target,
        about=ABOUT[target],
        pool=target.provider,
        builds=builds is None,
        proves=proves is None,
        device=None if proves else device_of(target.provider),
        reason=None if reason is None else str(reason),
    )


def _unbuildable_error(target: Target) -> HardwareError | None:
    try:
        require_runtime(target)
    except HardwareError as error:
        return error
    return None


def describe_support(support: TargetSupport) -> str:
    """Say it in a line."""
    state = "builds and proves" if support.proves else "builds, does not prove" if support.builds else "does not build"
    where = f" on {support.device.name}" if support.device and support.device.name else ""
    reason = f": {support.reason}" if support.reason else ""
    return f"{support.target:<13} {state}{where}{reason}\n{'':<13} {support.about}"
