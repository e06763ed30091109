"""Runtimes: which of ONNX Runtime's two sets of packages is installed here, the one for CPUs or the one for CUDA.

Both sets have the same import names, so pip installs one over the other without a word, and which of the two is
imported then depends on the order. Exactly one of them has to be there.
"""

from importlib.metadata import PackageNotFoundError, version

from slmpack.errors import HardwareError
from slmpack.records import Provider

SETS: dict[Provider, tuple[str, str]] = {
    "cpu": ("onnxruntime-genai", "onnxruntime"),
    "cuda": ("onnxruntime-genai-cuda", "onnxruntime-gpu"),
}
_TWINS = dict(zip(SETS["cuda"] + SETS["cpu"], SETS["cpu"] + SETS["cuda"], strict=True))


def installed_version(name: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def release_of(name: str) -> str:
    """Return the version of a package, or of its twin for the other hardware: they are released together.

    Raises:
        PackageNotFoundError: neither is installed.
    """
    twin = _TWINS.get(name)
    return version(name if twin is None or installed_version(name) else twin)


def installed_runtime() -> Provider:
    """Return which set is installed.

    Raises:
        HardwareError: packages of both are, of each set one, or none is.
    """
    found = {provider: [name for name in names if installed_version(name)] for provider, names in SETS.items()}
    if found["cpu"] and found["cuda"]:
        both = " and ".join((found["cpu"][0], found["cuda"][0]))
        raise HardwareError(
            f"both {both} are installed, which own the same import name",
            "one of them",
            "make a new environment with either slmpack[cpu] or slmpack[cuda]",
        )
    provider: Provider = "cuda" if found["cuda"] else "cpu"
    if missing := [name for name in SETS[provider] if name not in found[provider]]:
        raise HardwareError(
            f"{missing[0]} is not installed",
            "ONNX Runtime and ONNX Runtime GenAI",
            f"type: pip install 'slmpack[{provider}]'",
        )
    return provider


# The CUDA 13 libraries that onnxruntime-gpu 1.31 and onnxruntime-genai-cuda 0.18 link to, and cuDNN, which the former
# opens when it is asked for. They need no GPU to be named: what is not installed here is pinned to what was resolved
# together on 2026-11-25. Source: the wheels' METADATA (extras cuda, cudnn) and their shared objects' NEEDED entries.
CUDA_LIBRARIES = {
    "nvidia-cublas": "13.10.0.20",
    "nvidia-cuda-nvrtc": "13.5.37",
    "nvidia-cuda-runtime": "13.5.37",
    "nvidia-cudnn-cu13": "9.28.1.4",
    "nvidia-cufft": "12.5.0.14",
    "nvidia-curand": "10.4.5.25",
    "nvidia-nvjitlink": "13.5.37",
}
