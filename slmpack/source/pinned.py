"""Pinned: whether a folder holds what its source was pinned to, and complaints that name the source."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmpack.errors import SourceError
from slmpack.records import FileDigest, ModelSource, SourceKind, digest_of_files


def unfaithful(source: ModelSource, path: Path, files: tuple[FileDigest, ...]) -> SourceError | None:
    """Return the error for a folder that does not hold what its source was pinned to."""
    if source.kind is SourceKind.FOLDER and digest_of_files(files) != source.revision:
        return SourceError(f"{source.location} changed while it was read", "files at rest", "start again")
    if source.kind is SourceKind.HUB:
        for file in files:
            blob = (path / file.name).resolve()
            # The Hub client names a large file's blob by its sha256. Source: its guide, "Understand caching", blobs.
            if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != file.sha256:
                return SourceError(
                    f"{file.name} of {source.location} is damaged in the Hub client's cache",
                    f"sha256 {blob.name}",
                    f"delete {blob} and start again",
                )
    return None


@contextmanager
def naming(source: ModelSource, folder: Path) -> Iterator[None]:
    """Let a complaint name the source, not a scratch folder that nobody knows."""
    try:
        yield
    except SourceError as error:
        raise SourceError(str(error).replace(str(folder), source.text)) from error
