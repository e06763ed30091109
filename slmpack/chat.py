"""Chat: load a model by its URI, as any consumer would, and stream its answer."""

import sys
from collections.abc import Iterator
from typing import Any

from slmpack.errors import SourceError
from slmpack.registry import require_registry


def stream_answer(uri: str, prompt: str) -> Iterator[str]:
    """Yield the pieces of the answer to one question as they come.

    Raises:
        SourceError: there is no such model, or it refuses the question.
        PublishError: MLflow cannot be reached.
    """
    if uri.startswith(("models:", "runs:")):
        require_registry(writes=False)  # MLflow's own calls try for minutes
    import mlflow
    from mlflow.exceptions import MlflowException

    sys.dont_write_bytecode = True  # beside a wrapper that is loaded in place
    try:
        model = mlflow.pyfunc.load_model(uri)
    except (MlflowException, OSError, RuntimeError) as error:
        raise SourceError(
            f"{uri} cannot be loaded: {error}", "a published model such as models:/NAME@cpu-int4",
            "look in the MLflow UI for its name",
        ) from error  # fmt: skip
    try:
        yield from _pieces(model, prompt)
    except (MlflowException, ValueError, RuntimeError) as error:
        raise SourceError(f"{uri} does not answer: {error}", "a model that slmpack published") from error


def _pieces(model: Any, prompt: str) -> Iterator[str]:
    if "prompt" in model.metadata.get_input_schema().input_names():
        yield from model.predict_stream({"prompt": prompt})
        return
    question = {"messages": [{"role": "user", "content": prompt}]}
    if "transformers" in model.metadata.flavors:  # MLflow's flavour does not stream
        yield model.predict(question)[0]["choices"][0]["message"]["content"]
        return
    for chunk in model.predict_stream(question):
        yield chunk["choices"][0]["delta"].get("content") or ""
