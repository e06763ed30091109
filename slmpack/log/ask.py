"""Ask: load a model by its URI, as any consumer would, and stream its answers."""

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.errors import SlmpackError, SourceError, UsageError
from slmpack.log.conversation import Message
from slmpack.log.mlflow_server import require_registry
from slmpack.log.signed import check_folder
from slmpack.log.staging import WRAPPER
from slmpack.log.trust import require_trusted_folder, source_only
from slmpack.machine.expected import expected_error
from slmpack.machine.surroundings import typed_path
from slmpack.signing.policy import FILE, VARIABLE, TrustPolicy, find_policy
from slmpack.source.absence import absence_of
from slmpack.source.model_uris import names_one_model

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

_FORMS = "a model is models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or a folder"


def check_model(uri: str) -> None:
    """Refuse what can never name a model, before anything slow is imported.

    Raises:
        UsageError: it is none of MLflow's URIs, and no folder.
    """
    if uri.startswith("models:"):
        if not names_one_model(uri):
            raise UsageError(f"{uri!r} names no single model", _FORMS, "write one of those")
    elif ":" not in uri and not Path(typed_path(uri)).exists():
        is_name = re.fullmatch(r"\w[\w.-]*", uri)
        advice = f"did you mean models:/{uri}@cpu-int4?" if is_name else "check the spelling"
        raise UsageError(f"{uri!r} names no model", _FORMS, advice)


class LoadedModel:
    """A model that was loaded into this process; `AnsweringModel` says what its methods do."""

    def __init__(self, uri: str, model: Any) -> None:
        self._uri, self._model = uri, model
        self.has_turns = "prompt" not in model.metadata.get_input_schema().input_names()

    def stream(self, messages: list[Message], limits: Mapping[str, Any]) -> Generator[str]:
        """Yield the pieces of the answer; a model of the prompt interface gets the last message alone."""
        pieces = self._pieces(messages, limits) if self.has_turns else self._prompt_pieces(messages[-1], limits)
        try:
            while (piece := self._next(pieces)) is not None:
                yield piece
        finally:
            with self._errors():
                pieces.close()

    def count_prompt_tokens(self, messages: list[Message]) -> int:
        """Return the tokens of the rendered chat, of which a short answer tells."""
        with self._errors():
            answer = self._model.predict({"messages": messages, "max_tokens": 1})
            return int((answer[0] if isinstance(answer, list) else answer)["usage"]["prompt_tokens"])

    def _next(self, pieces: Iterator[str]) -> str | None:
        with self._errors():
            return next(pieces, None)

    def _errors(self) -> AbstractContextManager[None]:
        return _named(
            lambda found: SourceError(f"{self._uri} does not answer: {found}", "a model that slmpack published")
        )

    def _pieces(self, messages: list[Message], limits: Mapping[str, Any]) -> Generator[str]:
        request = {"messages": messages, **limits}
        if "transformers" in self._model.metadata.flavors:  # MLflow's flavour does not stream
            yield self._model.predict(request)[0]["choices"][0]["message"]["content"]
            return
        for chunk in self._model.predict_stream(request):
            yield chunk["choices"][0]["delta"].get("content") or ""

    def _prompt_pieces(self, question: Message, limits: Mapping[str, Any]) -> Generator[str]:
        """Ask a model of the prompt interface, whose stream takes the prompt only."""
        request = {"prompt": question["content"], **limits}
        if not limits:
            yield from self._model.predict_stream(request)
            return
        answer = self._model.predict(request)
        yield answer[0] if isinstance(answer, list) else answer


def load_model(uri: str, *, trust_code: bool = False) -> LoadedModel:
    """Load a model; its files are looked at before any code in it runs, and those very files are loaded.

    Args:
        uri: the model.
        trust_code: run the model's code whosever it is.

    Raises:
        SourceError: there is no such model, or its code ends the process.
        TrustError: its code is not slmpack's and is not trusted, or the trust policy does not accept who signed it.
        UsageError: the trust policy cannot be read.
        PublishError: MLflow cannot be reached.
    """
    return LoadedModel(uri, _load(uri, find_policy(), trust_code=trust_code))


def load(uri: str, *, trust: str | Path | None = None, trust_code: bool = False) -> "PyFuncModel":
    """Load a signed model as `mlflow.pyfunc.load_model` does, once its signature and its code are checked.

    Args:
        uri: such as models:/NAME@cpu-int4.
        trust: the file of the trust policy; None: where `slmpack.signing.policy` looks for it.
        trust_code: run the model's code whosever it is; its signature is checked all the same.

    Raises:
        UsageError: there is no policy, or it cannot be read; or `uri` can never name a single model.
        TrustError: nobody who may signed the model, not its files, or its code is not slmpack's.
        SourceError: there is no such model, or its code ends the process.
        PublishError: MLflow cannot be reached.
    """
    check_model(uri)
    policy = find_policy(None if trust is None else Path(trust))
    if policy is None:
        raise UsageError(
            f"no trust policy to check {uri} by",
            f"one in trust=FILE, {VARIABLE} or {FILE}",
            "mlflow.pyfunc.load_model loads a model without checking who made it",
        )
    return _load(uri, policy, trust_code=trust_code)


def _load(uri: str, policy: TrustPolicy | None, *, trust_code: bool) -> "PyFuncModel":
    with _named(lambda found: _not_loaded(uri, found)):
        folder = model_folder(uri)
        if policy is not None:
            check_folder(uri, folder, policy)
        with nullcontext() if trust_code else _looked_at(uri, folder):
            return _loaded(uri, folder)


def _loaded(uri: str, folder: Path) -> "PyFuncModel":
    """Load what was looked at.

    Raises:
        SourceError: the wrapper finds that a file of it is not as a build writes it.
    """
    import mlflow

    try:
        model: PyFuncModel = mlflow.pyfunc.load_model(str(folder))
    except RuntimeError as error:
        if type(error).__name__ != "IntegrityError":  # the class is that of the model's own wrapper
            raise
        raise SourceError(f"{uri} is damaged: {error}") from error
    return model


def model_folder(uri: str) -> Path:
    """Return the folder of a model: in place where it is on this machine, else downloaded.

    Raises:
        PublishError: MLflow cannot be reached.
        MlflowException: there is no such model.
    """
    if uri.startswith(("models:", "runs:")):
        require_registry(writes=False)  # MLflow's own calls try for minutes
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(uri))


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
