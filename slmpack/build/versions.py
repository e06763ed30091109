"""Versions of what builds, which are part of a package's digest, and bytes that a weight takes."""

from slmpack.machine.runtimes import release_of
from slmpack.records import Target

BUILD_STEPS = 6  # counts up when what is done to the builder's output changes, so that packages are built again
_BUILDER = ("onnxruntime-genai", "onnxruntime", "onnx-ir", "transformers")


# What the bytes of a build depend on.
BUILDERS: dict[Target, tuple[str, ...]] = {
    target: ("transformers",) if target is Target.TRANSFORMERS else _BUILDER for target in Target
}


# An upper bound for the space check: tied embeddings may be stored twice, once in float32.
BYTES_PER_PARAMETER = {
    Target.CPU_INT4: 2.0,
    Target.CPU_INT8: 2.5,
    Target.CUDA_INT4: 2.0,
    Target.CUDA_FP16: 2.5,
    Target.TRANSFORMERS: 0.0,
}


def builder_versions(target: Target) -> dict[str, str]:
    """Return the installed versions of what builds `target`."""
    return {name: release_of(name) for name in BUILDERS[target]}
