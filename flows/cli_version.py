"""`slmpack --version`: the release alone on the first line, then what a report of a defect needs.

Only the metadata of what is installed are read: MLflow and torch take seconds to import.
"""

import argparse
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

# What a package's figures and faults depend on. A server may have mlflow-skinny alone; a machine has one runtime.
PACKAGES = (
    "mlflow", "mlflow-skinny", "prefect", "onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime",
    "onnxruntime-gpu", "transformers", "torch",
)  # fmt: skip


class VersionAction(argparse.Action):
    """Writes the versions to stdout and ends the command."""

    def __init__(self, option_strings: list[str], dest: str, **named: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **named)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        sys.stdout.write("\n".join(version_lines()) + "\n")
        sys.stdout.flush()
        parser.exit()


def version_lines() -> list[str]:
    """Return the release of slmpack, the interpreter with its system, and the packages that matter, a line each."""
    installed = ((name, _installed(name)) for name in PACKAGES)
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return [
        f"slmpack {_installed('slmpack')}",
        f"Python {platform.python_version()}, {system}",
        ", ".join(f"{name} {found}" for name, found in installed if found is not None),
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
