"""Runs inside the clean environment: loads a logged model there and asks it its own input example.

    python -I consumer.py request.json      writes the file that the request names as "result"

It is run as a file, by an interpreter that has the model's requirements and nothing else, so it imports the standard
library and MLflow only. What it writes is the answer and what that took, or what went wrong. What it and its
libraries print is the log.
"""

import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

Result = dict[str, Any]


class NetworkError(RuntimeError):
    """The model asked the network for something when it was loaded or answered."""


def main(request: dict[str, Any]) -> Result:
    """Load and ask; return the answer, or the step that failed and why."""
    step = "looking around"
    try:
        _refuse_strangers(request["forbidden"])
        step = "loading the model"
        started = time.perf_counter()
        model = _load(request)
        loaded = time.perf_counter()
        step = "asking the model its input example"
        answer = model.predict(model.input_example)
        answered = time.perf_counter()
        return {"answer": answer, "load_seconds": loaded - started, "answer_seconds": answered - loaded}
    except Exception as error:
        traceback.print_exc()
        return {"step": step, "kind": type(error).__name__, "message": " ".join(str(error).split())}


def _refuse_strangers(names: list[str]) -> None:
    """A module that the model must do without would hide that a requirement is missing."""
    for name in names:
        if importlib.util.find_spec(name):
            raise ImportError(f"{name} can be imported here")


def _load(request: dict[str, Any]) -> Any:
    """Load with nothing but the model's own files: they are fetched first, and then the network is closed."""
    import mlflow.pyfunc
    from mlflow.artifacts import download_artifacts

    folder = download_artifacts(request["source"])
    sys.addaudithook(_refuse_network)
    return mlflow.pyfunc.load_model(folder, model_config=request["model_config"])


def _refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse what goes through Python's sockets. Source: CPython's table of audit events."""
    if event in {"socket.connect", "socket.getaddrinfo"}:
        raise NetworkError(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[0]!r}")


def _leave_with_parent() -> None:
    """End when the parent is gone: the kernel then closes our standard input."""

    def wait() -> NoReturn:
        os.read(0, 1)  # not sys.stdin, whose lock a thread may not hold while the interpreter ends
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    _leave_with_parent()
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(asked["result"]).write_text(json.dumps(main(asked)))
