"""Chat: load a model by its URI, as any consumer would, and stream its answer."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from slmpack.errors import SlmpackError, SourceError, UsageError
from slmpack.log.mlflow_server import require_registry
from slmpack.log.staging import WRAPPER
from slmpack.log.trust import require_trusted_folder, source_only
from slmpack.machine.expected import expected_error
from slmpack.machine.surroundings import typed_path
from slmpack.records import Record
from slmpack.source.absence import absence_of

_FORMS = "a model is models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or a folder"
_REGISTRY_FORM = re.compile(r"models:/(?:m-[0-9a-f]{32}|[^/@]+[/@][\w-]+)")


class Question(Record):
    """One question.

    Attributes:
        system: what the model is to be; None for what its template says by itself.
        max_tokens: new tokens at most; None for the model's own limit.
        temperature: 0 or None is greedy.
    """

    prompt: str
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None

    @property
    def limits(self) -> dict[str, Any]:
        """What a request says beside its text."""
        return self.model_dump(include={"max_tokens", "temperature"}, exclude_none=True)


def check_model(uri: str) -> None:
    """Refuse what can never name a model, before anything slow is imported.

    Raises:
        UsageError: it is none of MLflow's URIs, and no folder.
    """
    if uri.startswith("models:"):
        if not _REGISTRY_FORM.fullmatch(uri):
            raise UsageError(f"{uri!r} names no single model", _FORMS, "write one of those")
    elif ":" not in uri and not Path(typed_path(uri)).exists():
        is_name = re.fullmatch(r"\w[\w.-]*", uri)
        advice = f"did you mean models:/{uri}@cpu-int4?" if is_name else "check the spelling"
        raise UsageError(f"{uri!r} names no model", _FORMS, advice)


def stream_answer(uri: str, question: Question, *, trust_code: bool = False) -> Iterator[str]:
    """Yield the pieces of the answer to one question as they come.

    Args:
        uri: the model; its files are looked at before any code in it runs, and those very files are loaded.
        question: the question.
        trust_code: run the model's code whosever it is.

    Raises:
        SourceError: there is no such model, it refuses the question, its code ends the process, or its template has no
            place for `system`.
        TrustError: its code is not slmpack's, and is not trusted.
        PublishError: MLflow cannot be reached.
    """
    if uri.startswith(("models:", "runs:")):
        require_registry(writes=False)  # MLflow's own calls try for minutes
    import mlflow

    with _named(lambda found: _not_loaded(uri, found)):
        folder = mlflow.artifacts.download_artifacts(uri)  # in place where the store is on this machine
        with nullcontext() if trust_code else _looked_at(uri, Path(folder)):
            model = mlflow.pyfunc.load_model(folder)
    pieces = _pieces(model, question)
    while (piece := _next(pieces, uri)) is not None:
        yield piece


def _next(pieces: Iterator[str], uri: str) -> str | None:
    with _named(lambda found: SourceError(f"{uri} does not answer: {found}", "a model that slmpack published")):
        return next(pieces, None)


@contextmanager
def _named(error_of: Callable[[str], SourceError]) -> Iterator[None]:
    """Translate every exception of a model's code into an error of ours, an exit with code 0 included."""
    try:
        yield
    except (SlmpackError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise error_of(f"its code ends the process (exit code {error.code!r})") from error
    except BaseException as error:
        if ours := expected_error(error):
            raise ours from error
        raise error_of(str(error) or type(error).__name__) from error


def _looked_at(uri: str, folder: Path) -> AbstractContextManager[None]:
    """Return what to load a model in, once its code is known to be ours.

    Raises:
        TrustError: it is not.
    """
    require_trusted_folder(uri, folder)
    if not (folder / WRAPPER.name).exists():
        return nullcontext()
    import slmpack.log.chat_model  # noqa: F401 - all that it imports, or `source_only` would have Python compile that

    return source_only()


def _not_loaded(uri: str, found: str) -> SourceError:
    absence = absence_of(uri)
    if absence is not None:
        return SourceError(f"{uri} cannot be loaded: {absence.found}", absence.known, absence.advice)
    return SourceError(
        f"{uri} cannot be loaded: {found}",
        "a published model such as models:/NAME@cpu-int4",
        "look in the MLflow UI for its name",
    )


def _pieces(model: Any, question: Question) -> Iterator[str]:
    if "prompt" in model.metadata.get_input_schema().input_names():
        yield from _prompt_pieces(model, question)
        return
    request = question.limits | {"messages": _messages(question.system, question.prompt)}
    if question.system is not None:
        _require_system_role(model, question.system, question.prompt)
    if "transformers" in model.metadata.flavors:  # MLflow's flavour does not stream
        yield model.predict(request)[0]["choices"][0]["message"]["content"]
        return
    for chunk in model.predict_stream(request):
        yield chunk["choices"][0]["delta"].get("content") or ""


def _prompt_pieces(model: Any, question: Question) -> Iterator[str]:
    """Ask a model of the prompt interface, whose stream takes the prompt only."""
    if question.system is not None:
        raise SourceError(
            "the model has the prompt interface, which knows no system message",
            "the chat interface",
            "leave --system out, or put the text into the prompt",
        )
    if not question.limits:
        yield from model.predict_stream({"prompt": question.prompt})
        return
    answer = model.predict(question.limits | {"prompt": question.prompt})
    yield answer[0] if isinstance(answer, list) else answer


def _messages(system: str | None, prompt: str) -> list[dict[str, str]]:
    request = [{"role": "user", "content": prompt}]
    return request if system is None else [{"role": "system", "content": system}, *request]


def _require_system_role(model: Any, system: str, prompt: str) -> None:
    """Refuse a chat template that leaves the system message out: a longer one makes no longer prompt then.

    Raises:
        SourceError: it does, or it refuses the role.
    """
    from mlflow.exceptions import MlflowException

    lacks = "the model's chat template has no place for a system message", "", "leave --system out"
    try:
        once, twice = (_prompt_tokens(model, _messages(text, prompt)) for text in (system, f"{system}\n{system}"))
    except (MlflowException, ValueError) as error:
        if "chat template refuses" not in str(error):
            raise
        raise SourceError(f"{lacks[0]} ({error})", *lacks[1:]) from error
    if twice <= once:
        raise SourceError(*lacks)


def _prompt_tokens(model: Any, messages: list[dict[str, str]]) -> int:
    answer = model.predict({"messages": messages, "max_tokens": 1})
    return int((answer[0] if isinstance(answer, list) else answer)["usage"]["prompt_tokens"])
