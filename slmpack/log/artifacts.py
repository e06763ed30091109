"""Artifacts: the files of a logged model in an artifact store, used where they lie if that is on this machine.

location --local--> its folder, in place
--else---> downloaded, a file or a folder at a time
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slmpack.records import LoggedModel


def is_local(location: str) -> bool:
    """Tell whether artifacts can be read where they lie."""
    from mlflow.utils.uri import is_local_uri

    return bool(is_local_uri(location, is_tracking_or_registry_uri=False))  # type: ignore[no-untyped-call]


def local_path(location: str) -> Path:
    """Return the folder that a local location names, as it is written there."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(location))  # type: ignore[no-untyped-call]


class Artifacts:
    """The files at one location, by their path in it.

    Attributes:
        location: a path, a URI of an artifact store, or a model's URI.
        folder: the location's folder on this machine; None where it is elsewhere.
    """

    def __init__(self, location: str) -> None:
        """Find the client for `location`; no file is looked at.

        Raises:
            MlflowException: MLflow has no client for it, or no server.
            ImportError: a package that the client needs is missing.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.location = location
        self.folder = local_path(location) if is_local(location) else None
        self._repository: Any = get_artifact_repository(location)

    def sizes(self) -> dict[str, int | None]:
        """Return the path and the size in bytes of every file; not every artifact store knows sizes."""
        return dict(self._sizes_in(None))

    def _sizes_in(self, folder: str | None) -> Iterator[tuple[str, int | None]]:
        for entry in self._repository.list_artifacts(folder):
            if entry.is_dir:
                yield from self._sizes_in(entry.path)
            else:
                yield entry.path, entry.file_size

    def top_names(self) -> frozenset[str]:
        """Return the names of the files and folders right at the location, for one request."""
        return frozenset(entry.path for entry in self._repository.list_artifacts())

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Yield the path of a file: in place, or downloaded and removed afterwards."""
        if self.folder is not None:
            yield self._in_place(name)
            return
        with TemporaryDirectory(prefix="slmpack-") as folder:
            yield self.copy(name, Path(folder))

    def path_of(self, name: str, into: Path) -> Path:
        """Return the path of a file or a folder, "" being all: in place, or downloaded into the folder `into`."""
        return self._in_place(name) if self.folder is not None else self.copy(name, into)

    def copy(self, name: str, into: Path) -> Path:
        """Return the path in the folder `into`, made if need be, of a copy of a file or a folder."""
        into.mkdir(exist_ok=True)
        return Path(self._repository.download_artifacts(name, str(into)))

    def _in_place(self, name: str) -> Path:
        return Path(self._repository.download_artifacts(name)).absolute()  # it raises where there is no such file

    def delete(self) -> None:
        """Delete every file."""
        self._repository.delete_artifacts()


def artifacts_of(model: LoggedModel) -> Artifacts:
    """Return the files of `model`, at the location that the tracking store has."""
    from mlflow import MlflowClient

    return Artifacts(str(MlflowClient().get_logged_model(model.model_id).artifact_location))
