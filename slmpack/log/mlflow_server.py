"""Reaching MLflow: whether it is there, which of its errors are final, and which names it takes."""

import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from slmpack.errors import PublishError, UsageError
from slmpack.log.lifetime import sqlite_file, temporary_folder
from slmpack.machine.surroundings import may_write
from slmpack.redaction import redacted
from slmpack.source.mlflow_errors import one_line
from slmpack.source.names import is_of_a_word, logged_name

PROBE_SECONDS = 5
DEFAULT_STORES = ("mlflow.db", "mlruns")  # Source: mlflow.tracking._tracking_service.utils._get_default_tracking_uri
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
PUNCTUATION = " .+-_"
NAME_CHARACTERS = 200  # MLflow's databases have room for 256, and for 250 in a run's name, which the target ends
PROBES = ("/api/2.0/mlflow/registered-models/search", "/api/2.0/mlflow/experiments/search")


def check_name(name: str) -> None:
    """Refuse a registered model's name before any work.

    Raises:
        UsageError: MLflow would not take the name, or could not find it again.
    """
    check_characters(name)
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_logged_model_name, _validate_model_name

    try:
        _validate_model_name(name)
        _validate_logged_model_name(logged_name(name))
    except MlflowException as error:
        raise UsageError(f"the model name {name!r}: {one_line(error)}", "", "name another with --name") from error


def check_characters(name: str) -> None:
    """Refuse a registered model's name by our own rules, which cost no import of MLflow's.

    Raises:
        UsageError: MLflow would not take the name, or could not find it again.
    """
    is_legal = all(each in PUNCTUATION or is_of_a_word(each) for each in name) and len(name) <= NAME_CHARACTERS
    if not is_legal or name != name.strip() or name.startswith("m-"):
        # quotes end a search, `m-` is how MLflow knows the id of a logged model
        expected = f"letters, digits, space and . _ + -, at most {NAME_CHARACTERS}, not starting with m-"
        raise UsageError(f"the model name {name!r}", expected, "name another with --name")


def check_alias(alias: str) -> None:
    """Refuse an alias before any work.

    Raises:
        UsageError: MLflow would not take it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

    try:
        _validate_model_alias_name(alias)  # type: ignore[no-untyped-call]
        _validate_model_alias_name_reserved(alias)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        raise UsageError(f"the alias {alias!r}: {one_line(error)}") from error


def is_without_a_store() -> bool:
    """Say whether MLflow would begin a new store in the working folder, in which nothing can have been published."""
    settings = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    return not any(map(os.environ.get, settings)) and not any(map(os.path.exists, DEFAULT_STORES))


def require_registry(shared: bool = False, writes: bool = True) -> None:
    """Ask the tracking server and the registry one cheap question, once; MLflow's own calls try for minutes.

    Args:
        shared: refuse a database in the working folder, MLflow's own default too: a worker's is deleted with its run.
        writes: refuse a database that is a file which may only be read.

    Raises:
        PublishError: one of them does not answer, or not as MLflow does.
        UsageError: it is a store that MLflow no longer takes, or one that would be lost with this run.
    """
    import mlflow
    from mlflow.tracking import is_tracking_uri_set

    if shared and not is_tracking_uri_set():  # type: ignore[no-untyped-call]
        raise UsageError(
            "MLFLOW_TRACKING_URI is not set for this worker",
            "the address of the MLflow server",
            "set it in the worker's environment or in the work pool's job variables (env)",
        )
    for uri in dict.fromkeys((mlflow.get_tracking_uri(), mlflow.get_registry_uri())):
        _require_database_client(uri)
        _require_lasting_database(uri, shared)
        if urlsplit(uri).scheme in {"http", "https"}:
            _probe_server(uri)
        else:
            _probe_store(uri, writes)


def _require_database_client(uri: str) -> None:
    """Refuse a database where there is only what reaches a server: mlflow-skinny alone, as where models are served."""
    kind = urlsplit(uri).scheme.partition("+")[0]
    if kind in {"sqlite", *DATABASE_PORTS} and find_spec("sqlalchemy") is None:
        raise UsageError(
            f"MLflow is the database {shown(uri)}, and this installation has no client of databases",
            "the address of an MLflow server",
            "set MLFLOW_TRACKING_URI to it, or install mlflow",
        )


def _require_lasting_database(uri: str, shared: bool) -> None:
    """Refuse a SQLite database that is gone when this process has ended, or with the working folder of its run."""
    file = sqlite_file(uri)
    if file == Path():
        raise UsageError(
            f"MLflow is a database in memory ({uri})",
            "one that outlives this process",
            "set MLFLOW_TRACKING_URI to sqlite:///mlflow.db",
        )
    if file is None or not shared:
        return
    working = Path.cwd().resolve()
    is_in_run = temporary_folder(working) is not None and (working / file).resolve().is_relative_to(working)
    if not file.is_absolute() or is_in_run:
        raise UsageError(
            f"MLflow's database is {uri} on this worker, in the working folder of the run",
            "a server, or an absolute path that outlives the run, as in sqlite:////FOLDER/mlflow.db",
            "set MLFLOW_TRACKING_URI in the worker's environment or in the work pool's job variables (env)",
        )


def shown(uri: str) -> str:
    """Return `uri` without the password it may have."""
    return redacted(uri)


def without_password(uri: str) -> str:
    """Return `uri` as a link for others: without the name and the password that it may have."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _unreachable(uri: str, found: str, advice: str = "start it or set MLFLOW_TRACKING_URI") -> PublishError:
    return PublishError(
        f"the MLflow server at {shown(uri)} cannot be reached ({found})",
        "a running MLflow tracking server with a model registry",
        advice,
    )


def _probe_server(uri: str) -> None:
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    for endpoint in PROBES:
        try:
            credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
            answer = http_request(  # type: ignore[no-untyped-call]
                credentials,
                endpoint,
                "GET",
                params={"max_results": 1},
                max_retries=0,
                timeout=PROBE_SECONDS,
                raise_on_status=False,
            )
        except (MlflowException, requests.RequestException) as error:
            raise _unreachable(uri, _cause_of(error)) from error
        if answer.status_code in {401, 403}:
            raise _unreachable(
                uri,
                f"it answers {answer.status_code} {answer.reason}",
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            )
        if answer.status_code != 200:
            raise _unreachable(uri, f"it answers {answer.status_code} {answer.reason}")
        try:
            answer.json()
        except ValueError as error:
            raise _unreachable(uri, "what answers there is not MLflow") from error


def _cause_of(error: BaseException) -> str:
    text = str(error)
    for pattern, cause in (
        ("Connection refused", "connection refused"),
        ("resolve", "its name cannot be resolved"),
        ("timed out", f"no answer in {PROBE_SECONDS} s"),
    ):
        if pattern in text:
            return cause
    return type(error.__cause__ or error).__name__


def _probe_store(uri: str, writes: bool) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    _probe_database(uri, writes)
    try:
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models(max_results=1)
    except MlflowException as error:
        if urlsplit(uri).scheme in {"", "file"}:
            found = f"MLflow refuses the file store {uri}: {one_line(error).partition('. ')[0]}"
            raise UsageError(
                found, "a database or a server", "set MLFLOW_TRACKING_URI to sqlite:///mlflow.db"
            ) from error
        raise _unreachable(uri, one_line(error)) from error


def _probe_database(uri: str, writes: bool) -> None:
    """Look at a database's file or port: MLflow tries ten times, with pauses that double, before it gives up."""
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind == "sqlite":
        file = sqlite_file(uri) or Path()
        if file.is_file() and not _is_sqlite(file):
            raise _unreachable(uri, f"{file} is not a SQLite database")
        if file.is_dir():
            raise _unreachable(uri, f"{file} is a folder")
        if (writes or not file.exists()) and (place := _read_only(file.absolute())):
            raise _unreachable(
                uri, f"{place} cannot be written", "start it in another folder or set MLFLOW_TRACKING_URI"
            )
    elif kind in DATABASE_PORTS and parts.hostname:
        try:
            socket.create_connection((parts.hostname, parts.port or DATABASE_PORTS[kind]), PROBE_SECONDS).close()
        except OSError as error:
            raise _unreachable(uri, str(error)) from error
        _connect(uri)


def _connect(uri: str) -> None:
    """Log in to a database once: with a wrong password or name MLflow would try for three minutes."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        create_engine(uri, poolclass=NullPool).connect().close()
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError):  # MLflow says of those at once what is wrong
        return
    except DBAPIError as error:
        raise _unreachable(
            uri, " ".join(str(error.orig).split())[:300], "correct MLFLOW_TRACKING_URI: user, password, database"
        ) from error


def _read_only(file: Path) -> Path | None:
    """Return what keeps a database from being written or made: the file itself, or its folder; None: nothing."""
    if file.exists() and not may_write(file):
        return file
    folder = next(each for each in file.parents if each.exists())  # SQLite has its journal there
    return None if may_write(folder) else folder


def _is_sqlite(file: Path) -> bool:
    """Say whether a file is an SQLite database, as an empty file is.

    Source: the SQLite file format, "The Database Header".
    """
    with file.open("rb") as opened:
        return opened.read(16) in (b"", b"SQLite format 3\x00")
