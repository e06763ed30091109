"""What a logged model needs where it is loaded: exact pins of what it was proved with.

A model that is loaded elsewhere meets the versions that answered here, and nothing that only the build needed.
"""

import re

from slmpack.errors import CheckError
from slmpack.machine.runtimes import CUDA_LIBRARIES, SETS, release_of
from slmpack.records import Target

# What MLflow's transformers flavour imports to load and to answer. It renders chat templates with jinja2, which
# transformers itself does not ask for; accelerate, scipy and the rest of `mlflow` stay untouched.
# Source: tried in an environment that has nothing but these and what they require (mlflow 3.17.2, transformers 5.22.2).
_TRANSFORMERS = ("mlflow-skinny", "transformers", "tokenizers", "safetensors", "torch", "jinja2", "numpy", "pandas")

# What the wrapper reads text and renders chats by; MLflow's smaller half brings neither.
_WRAPPER = ("tokenizers", "jinja2")


_LOG_AGAIN = "log the model again with such requirements"
LARGEST_REQUIREMENTS = 1 << 16  # bytes
PIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[0-9][A-Za-z0-9.!+_-]*")
_COMMENT = re.compile(r"(^|[ \t])#.*")


def plain_pins(content: bytes) -> tuple[str, ...]:
    """Return the requirements of a logged model, each `name==version`, from the content of its requirements.txt.

    An installer takes more than that from such a file: options, other files, addresses, paths, another index. What
    names one of those decides what is downloaded and from where, so it is refused before an installer reads it.

    Raises:
        CheckError: a line is anything else, or the file is too long.
    """
    if len(content) > LARGEST_REQUIREMENTS:
        raise CheckError("requirements.txt is too long", f"at most {LARGEST_REQUIREMENTS:,} bytes", _LOG_AGAIN)
    lines = (_COMMENT.sub("", line).strip(" \t\r") for line in content.decode(errors="replace").split("\n"))
    pins = tuple(line for line in lines if line)
    for pin in pins:
        if not PIN.fullmatch(pin):
            raise CheckError(f"the requirement {pin[:200]!r}", "a package and its version, as in name==1.0", _LOG_AGAIN)
    return pins


def _packages(target: Target) -> tuple[str, ...]:
    if target is Target.TRANSFORMERS:
        return _TRANSFORMERS
    provider = target.provider
    libraries = CUDA_LIBRARIES if provider == "cuda" else ()
    return ("mlflow-skinny", *SETS[provider], *_WRAPPER, "numpy", "pandas", *libraries)


PACKAGES: dict[Target, tuple[str, ...]] = {target: _packages(target) for target in Target}


def runtime_versions(target: Target) -> dict[str, str]:
    """Return the versions of what `target` needs at run time, without local labels such as `+cpu`: the installed ones.

    A local label names a build of the same release, and no package index serves it under that name. ONNX Runtime for
    CUDA is the same release as the one for CPUs, where that is installed.
    """
    return {name: CUDA_LIBRARIES.get(name) or release_of(name).partition("+")[0] for name in PACKAGES[target]}


def requirements_for(target: Target) -> tuple[str, ...]:
    """Return the exact pins, `name==version`, that a model of `target` is logged with."""
    return tuple(f"{name}=={found}" for name, found in runtime_versions(target).items())
