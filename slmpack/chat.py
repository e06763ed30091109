"""Chat: load a model by its URI, as any consumer would, and stream its answer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from slmpack.errors import SlmpackError, SourceError
from slmpack.expected import expected_error
from slmpack.registry import require_registry
from slmpack.staging import WRAPPER
from slmpack.trust import require_trusted_folder, source_only


def stream_answer(uri: str, prompt: str, *, trust_code: bool = False) -> Iterator[str]:
    """Yield the pieces of the answer to one question as they come.

    Args:
        uri: the model; its files are looked at before any code in it runs, and those very files are loaded.
        prompt: the question.
        trust_code: run the model's code whosever it is.

    Raises:
        SourceError: there is no such model, it refuses the question, or its code ends the process.
        TrustError: its code is not slmpack's, and is not trusted.
        PublishError: MLflow cannot be reached.
    """
    if uri.startswith(("models:", "runs:")):
        require_registry(writes=False)  # MLflow's own calls try for minutes
    import mlflow

    with _told(f"{uri} cannot be loaded", "a published model such as models:/NAME@cpu-int4",
               "look in the MLflow UI for its name"):  # fmt: skip
        folder = mlflow.artifacts.download_artifacts(uri)  # in place where the store is on this machine
        with nullcontext() if trust_code else _looked_at(uri, Path(folder)):
            model = mlflow.pyfunc.load_model(folder)
    pieces = _pieces(model, prompt)
    while (piece := _next(pieces, uri)) is not None:
        yield piece


def _next(pieces: Iterator[str], uri: str) -> str | None:
    with _told(f"{uri} does not answer", "a model that slmpack published"):
        return next(pieces, None)


@contextmanager
def _told(found: str, expected: str, advice: str = "") -> Iterator[None]:
    """Raise whatever a model's code raises as an error of ours: also what would end the process as if all were well."""
    try:
        yield
    except (SlmpackError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise SourceError(f"{found}: its code ends the process (exit code {error.code!r})", expected, advice) from error
    except BaseException as error:
        if ours := expected_error(error):
            raise ours from error
        raise SourceError(f"{found}: {str(error) or type(error).__name__}", expected, advice) from error


def _looked_at(uri: str, folder: Path) -> AbstractContextManager[None]:
    """Return what to load a model in, once its code is known to be ours.

    Raises:
        TrustError: it is not.
    """
    require_trusted_folder(uri, folder)
    if not (folder / WRAPPER.name).exists():
        return nullcontext()
    import slmpack.chat_model  # noqa: F401 - all that it imports, or `source_only` would have Python compile that

    return source_only()


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
