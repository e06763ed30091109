"""llama.cpp, from the source package of llama-cpp-python: built once for this processor, in an environment of its own.

    folder/
        environment/    Python with numpy, the package's bindings and CMake
        source/         the source package
        source/vendor/llama.cpp/build/bin/    llama-quantize, llama-imatrix, llama-server, libllama.so

Nothing of it is a dependency of slmpack. The wheels on the index are built for an old processor; this one uses all that
the processor has, as somebody who wants speed would. It takes a quarter of an hour on two cores.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGE = "llama-cpp-python==0.3.36"
# What the bindings import, and what compiles.
NEEDED = ("numpy", "typing-extensions", "diskcache", "jinja2", "cmake", "ninja", "scikit-build-core")
TARGETS = ("llama-quantize", "llama-imatrix", "llama-server")
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF", "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
)  # fmt: skip


class LlamaCpp(NamedTuple):
    """Where it is.

    Attributes:
        python: of its environment.
        source: of the source package.
    """

    python: Path
    source: Path

    @property
    def sources(self) -> Path:
        return self.source / "vendor/llama.cpp"

    @property
    def programs(self) -> Path:
        return self.sources / "build/bin"

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of its programs; what it says is shown if it fails."""
        run([self.programs / program, *arguments], self.sources)

    def bindings(self) -> dict[str, str]:
        """Return the environment in which its Python imports llama_cpp."""
        return os.environ | {"PYTHONPATH": str(self.source), "LLAMA_CPP_LIB_PATH": str(self.programs)}


def build_llama(folder: Path) -> LlamaCpp:
    """Return llama.cpp in a folder, built there if it is not there yet."""
    llama = LlamaCpp(folder / "environment/bin/python", folder / "source")
    if not llama.python.exists():
        run([sys.executable, "-m", "venv", folder / "environment"], folder.parent)
        run([llama.python, "-m", "pip", "install", "-q", *NEEDED], folder)
    if not llama.source.exists():
        _unpack(llama, folder)
    if not all((llama.programs / name).exists() for name in TARGETS):
        sys.stderr.write("building llama.cpp for this processor\n")
        tools = {"PATH": f"{llama.python.parent}{os.pathsep}{os.environ['PATH']}"}
        run(["cmake", "-B", "build", "-G", "Ninja", *(f"-D{option}" for option in OPTIONS)], llama.sources, tools)
        run(["cmake", "--build", "build", "--target", *TARGETS], llama.sources, tools)
    return llama


def _unpack(llama: LlamaCpp, folder: Path) -> None:
    pip: list[str | Path] = [llama.python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
    run([*pip, "--no-binary", "llama-cpp-python", "--dest", folder, PACKAGE], folder)
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    shutil.move(folder / archive.name.removesuffix(".tar.gz"), llama.source)
    archive.unlink()


def run(command: Sequence[str | Path], folder: Path, environment: dict[str, str] | None = None) -> None:
    """Run a command; end with its last lines if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(each) for each in command], cwd=folder, env=os.environ | (environment or {}), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:3]))} ended with {done.returncode}: {done.stdout[-2000:]}")
