"""Remember: a child finds something out about a snapshot once, and its folder says what that cost."""

import logging
import os
from pathlib import Path

import pytest
from child_functions import Number, Sum, add_up, hold_memory
from places import HARNESS

from slmpack.errors import BuildError, SourceError
from slmpack.machine.remember import ChildWork, remembered, run_work
from slmpack.machine.store import Facts, Manifest, store_folder
from slmpack.records import FileDigest, ModelSource, Snapshot, SourceKind

KEY = "0123456789abcdef"
SUMMING = ChildWork(add_up, "sum", 600.0, BuildError, "the sum")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HARNESS), prepend=os.pathsep)


def snapshot_of(numbers: str, workspace: Path) -> Snapshot:
    """Return a snapshot whose one file has these numbers; it is a link, as a checkpoint's weights are."""
    given = workspace / "numbers.txt"
    given.write_text(numbers)

    def link(into: Path) -> Facts:
        (into / "numbers.txt").symlink_to(given)
        return {}

    path = store_folder(workspace, "snapshots", "numbers", link)
    source = ModelSource(text="./numbers", kind=SourceKind.FOLDER, location=str(given), revision="1", name="numbers")
    return Snapshot(
        source=source, path=path, files=Manifest.read(path).files, architecture="LlamaForCausalLM", dtype="F32",
        parameters=3, layers=1, context_length=512, licence=None,
    )  # fmt: skip


def sum_of(snapshot: Snapshot, workspace: Path, requested: list[Path]) -> Path:
    """Return the folder of the sum; `requested` has a folder for each time that a child is to work it out."""

    def request(into: Path) -> Sum:
        requested.append(into)
        (into / "what.txt").write_text("a sum")
        return Sum(numbers=snapshot.path / "numbers.txt", into=into)

    return remembered("sums", KEY, snapshot, workspace, SUMMING, request, lambda total: {"total": total.value})


def test_a_child_works_once_and_its_folder_is_found_by_its_key(tmp_path: Path) -> None:
    snapshot, requested = snapshot_of("1 2 39", tmp_path), list[Path]()
    folder = sum_of(snapshot, tmp_path, requested)
    assert folder == tmp_path / "sums" / KEY
    assert (folder / "sum.txt").read_text() == "42"
    assert (folder / "what.txt").read_text() == "a sum"
    assert sum_of(snapshot, tmp_path, requested) == folder
    assert len(requested) == 1


def test_the_manifest_has_the_result_and_what_it_cost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = snapshot_of("1 2 39", tmp_path)
    holding = ChildWork(hold_memory, "hold", 600.0, BuildError, "the holding")  # for a second, in which it is measured
    with caplog.at_level(logging.INFO, "slmpack.machine.remember"):
        folder = remembered(
            "sums", KEY, snapshot, tmp_path, holding, lambda _: Number(value=40), lambda held: {"held": held.value}
        )
    facts = Manifest.read(folder).facts
    peak, seconds = facts.pop("peak_private_bytes"), facts.pop("seconds")
    assert isinstance(peak, int)
    assert isinstance(seconds, int)
    assert peak > 40 << 20
    assert seconds >= 1
    assert facts == {"snapshot": snapshot.digest, "held": 40 << 20}
    messages = [record.getMessage() for record in caplog.records if record.name == "slmpack.machine.remember"]
    assert [message[:10] for message in messages] == ["that took "]


def test_a_failure_is_of_the_works_class_names_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    snapshot = snapshot_of("1 two 39", tmp_path)
    with pytest.raises(BuildError, match=r"the sum failed with ValueError.*the log is .*/logs/sum-0123456789ab\.log"):
        sum_of(snapshot, tmp_path, [])
    assert "Traceback" in (tmp_path / "logs" / "sum-0123456789ab.log").read_text()
    assert not (tmp_path / "sums").exists()
    assert not list((tmp_path / "scratch").iterdir())


def test_what_was_found_out_about_a_snapshot_that_changed_meanwhile_is_not_stored(tmp_path: Path) -> None:
    snapshot = snapshot_of("1 2 39", tmp_path)

    def request(into: Path) -> Sum:
        (tmp_path / "numbers.txt").write_text("1 2 40")
        return Sum(numbers=snapshot.path / "numbers.txt", into=into)

    with pytest.raises(SourceError, match=r"numbers\.txt of \./numbers changed while it was read"):
        remembered("sums", KEY, snapshot, tmp_path, SUMMING, request, lambda _: {})
    assert not (tmp_path / "sums").exists()


def test_a_larger_snapshot_gives_the_work_more_time(tmp_path: Path) -> None:
    small = snapshot_of("1", tmp_path)
    large = small.model_copy(update={"files": (FileDigest(name="w", sha256="0", size_bytes=600_000 * 4 * 10**9),)})
    work = ChildWork(hold_memory, "hold", 0.001, BuildError, "the work")
    with pytest.raises(BuildError, match="the work"):
        run_work(work, Number(value=2), KEY, small, tmp_path)
    assert run_work(work, Number(value=2), KEY, large, tmp_path)[0] == Number(value=2 << 20)
