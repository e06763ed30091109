"""Open source: a snapshot whose chat templates do not depend on what a message says, or were waived.

A template is a small file. It is looked at before gigabytes are fetched, where it can be had alone, and again in the
snapshot, which is what is packaged.
"""

from pathlib import Path

from slmpack.checkpoint.open_templates import judge_templates
from slmpack.records import ModelSource, Snapshot, SourceKind
from slmpack.source import hub
from slmpack.source.fetch import fetch_snapshot, snapshot_key
from slmpack.source.pinned import naming


def fetch_open_snapshot(source: ModelSource, workspace: Path, waive_template: str | None) -> Snapshot:
    """Return the snapshot of `source` as `fetch_snapshot`, unless one of its chat templates is refused.

    Args:
        waive_template: the reason for a template that depends on what a message says; None refuses it.

    Raises:
        SourceError: as `fetch_snapshot`, or a template is refused.
        WorkspaceError: there is no room for it.
    """
    if waive_template is None and not (workspace / "snapshots" / snapshot_key(source)).is_dir():
        folder = _small_files(source)
        if folder is not None:
            _judge(source, folder, None)
    snapshot = fetch_snapshot(source, workspace)
    _judge(source, snapshot.path, waive_template, snapshot.base_template)
    return snapshot


def _judge(source: ModelSource, folder: Path, waive_template: str | None, base_template: str | None = None) -> None:
    with naming(source, folder):
        judge_templates(folder, source.text, waive_template, base_template)


def _small_files(source: ModelSource) -> Path | None:
    """Return a folder with the source's templates, if that is cheaper than all of it."""
    if source.kind is SourceKind.FOLDER:
        return Path(source.location)
    return hub.template_folder(source) if source.kind is SourceKind.HUB else None
