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
        raise HardwareError(f"both {both} are installed, which own the same import name", "one of them",
                            "make a new environment with either slmpack[cpu] or slmpack[cuda]")  # fmt: skip
    asked: Provider = "cuda" if found["cuda"] else "cpu"
    if missing := [name for name in SETS[asked] if name not in found[asked]]:
        raise HardwareError(f"{missing[0]} is not installed", "ONNX Runtime and ONNX Runtime GenAI",
                            f"type: pip install 'slmpack[{asked}]'")  # fmt: skip
    return asked
