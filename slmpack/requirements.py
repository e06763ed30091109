"""What a logged model needs where it is loaded: exact pins of what it was proved with.

A model that is loaded elsewhere meets the versions that answered here, and nothing that only the build needed.
"""

from importlib.metadata import version

from slmpack.records import Target

_ONNX = ("mlflow-skinny", "onnxruntime-genai", "onnxruntime", "numpy", "pandas")

# What MLflow's transformers flavour imports to load and to answer. It renders chat templates with jinja2, which
# transformers itself does not ask for; accelerate, scipy and the rest of `mlflow` stay untouched.
# Source: tried in an environment that has nothing but these and what they require (mlflow 3.17.2, transformers 5.22.2).
_TRANSFORMERS = ("mlflow-skinny", "transformers", "tokenizers", "safetensors", "torch", "jinja2", "numpy", "pandas")

PACKAGES: dict[Target, tuple[str, ...]] = {
    target: _TRANSFORMERS if target is Target.TRANSFORMERS else _ONNX for target in Target
}


def runtime_versions(target: Target) -> dict[str, str]:
    """Return the installed versions of what `target` needs at run time, without local labels such as `+cpu`.

    A local label names a build of the same release, and no package index serves it under that name.
    """
    return {name: version(name).partition("+")[0] for name in PACKAGES[target]}


def requirements_for(target: Target) -> tuple[str, ...]:
    """Return the exact pins, `name==version`, that a model of `target` is logged with."""
    return tuple(f"{name}=={found}" for name, found in runtime_versions(target).items())
