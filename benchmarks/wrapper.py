"""Two wrappers over one package, in turn: seconds to load, to read a prompt, to the first token, and tokens a second.

    python benchmarks/wrapper.py PACKAGE OTHER_CHAT_MODEL.py

The second wrapper is a file, such as `git show COMMIT:slmpack/log/chat_model.py > FILE` gives.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mlflow.pyfunc.model import PythonModelContext

ROUNDS = 7
NEW_TOKENS = 96
STORY = {"role": "user", "content": "Tell me a long story about a lighthouse and the sea."}
LONG = {"role": "user", "content": "The sea was calm that day, and nobody spoke of it again. " * 100}
FIGURES = ("load, s", "ids of a prompt of 1,400 tokens, ms", "first token, ms", "decode, tokens a second")


def main(package: Path, wrappers: list[Path]) -> Iterator[str]:
    """Yield the table's lines."""
    modules = [_module(path, f"wrapper_{index}") for index, path in enumerate(wrappers)]
    measured: list[list[tuple[float, ...]]] = [[] for _ in modules]
    for _ in range(ROUNDS + 1):
        for module, rows in zip(modules, measured, strict=True):
            rows.append(_measure(module, package))
    medians = [[statistics.median(column) for column in zip(*rows[1:], strict=True)] for rows in measured]
    for name, ours, other in zip(FIGURES, *medians, strict=True):
        yield f"{name:40} {ours:10.3f} {other:10.3f}   ratio {ours / other:.2f}"


def _module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _measure(module: ModuleType, package: Path) -> tuple[float, ...]:
    model: Any = module.ChatModel()
    started = time.perf_counter()
    model.load_context(PythonModelContext({"package": str(package)}, {}))  # type: ignore[no-untyped-call]
    loaded = time.perf_counter()
    model.runtime.encode_prompt(model.runtime.render_chat([LONG]))
    read = time.perf_counter()
    chunks = model.predict_stream(None, {"messages": [STORY], "max_tokens": NEW_TOKENS})
    times = [time.perf_counter() for chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    rate = (len(times) - 1) / (times[-1] - times[0])
    return loaded - started, (read - loaded) * 1000, (times[0] - read) * 1000, rate


if __name__ == "__main__":
    own = Path(__file__).parents[1] / "slmpack" / "log" / "chat_model.py"
    sys.stdout.writelines(f"{line}\n" for line in main(Path(sys.argv[1]), [own, Path(sys.argv[2])]))
