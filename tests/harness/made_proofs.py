"""Reports as the proving stages write them, about models that nobody asked: quick, and the same every time."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient

from slmpack import progress
from slmpack.log.log import log_model
from slmpack.publish.page.attempt import Attempt
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.publish import publish_version
from slmpack.records import Interface, LoggedModel, Package
from slmpack.reports import (
    Check,
    PublishedVersion,
    Quality,
    QualityPolicy,
    QualityReport,
    SmokeReport,
    Speed,
    ValidationReport,
)

ALIAS = "cpu-int4"
SPEED = Speed(decode_tokens_per_second=12.5, ttft_ms=34.0, load_seconds=0.5, peak_rss_bytes=123_456_789)
QUALITY = Quality(
    perplexity=12.6, source_perplexity=12.0, perplexity_ratio=1.05, mean_kl=0.04, p99_kl=0.4, top1_agreement=0.875,
    tokens=2047, new_loops=0, seconds_per_1000_tokens=4.0,
)  # fmt: skip
ATTEMPTS = (
    Attempt(
        recipe="small", size_bytes=10**8, quality=QUALITY, speed=SPEED, status="refused", reason="1.20; at most 1.10"
    ),
    Attempt(recipe="balanced", size_bytes=2 * 10**8, quality=QUALITY, speed=SPEED, status="published"),
)


def proofs_of(
    model: LoggedModel,
    *,
    quality: Quality | None = QUALITY,
    waiver: str | None = None,
    attempts: tuple[Attempt, ...] = (),
) -> Proofs:
    checks = (Check(name="one question", found="Paris"),)
    return Proofs(
        validation=ValidationReport(model=model, checks=checks),
        quality=QualityReport(model=model, quality=quality, policy=QualityPolicy(), checks=checks, waiver=waiver),
        smoke=SmokeReport(model=model, checks=checks, speed=SPEED),
        attempts=attempts,
    )


def publish(model: LoggedModel, *, fingerprint: str = "", force: bool = False) -> PublishedVersion:
    return publish_version(
        model, proofs_of(model), fingerprint=fingerprint, force=force, trace={"prefect_run": "run-1"}
    )


def log_variant(package: Package, variant: str, name: str, workspace: Path) -> LoggedModel:
    """Log the package; a `variant` stands for other content, hence another digest."""
    changed = package.model_copy(update={"digest": package.digest + variant})
    return log_model(changed, Interface.CHAT, name, workspace, {})


def versions_of(name: str) -> list[int]:
    return sorted(int(version.version) for version in MlflowClient().search_model_versions(f"name = '{name}'"))


def holder_of(name: str) -> int:
    return int(MlflowClient().get_model_version_by_alias(name, ALIAS).version)


def files_of(model_id: str) -> Path:
    """Return the folder of a logged model's files, in an artifact store that is a folder of this machine."""
    return Path(MlflowClient().get_logged_model(model_id).artifact_location.removeprefix("file://"))


def flip_a_bit(model: LoggedModel, name: str = "artifacts/package/model.onnx.data") -> None:
    """Change a file in the artifact store; the package that it is a link to stays as it is."""
    path = files_of(model.model_id) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@contextmanager
def while_reading_back(act: Callable[[], object]) -> Iterator[None]:
    """Do something, once, as soon as the next publisher has read its first file back."""

    acted = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # one thread at a time
            if record.progress.stage == "read back" and not acted.is_set():  # type: ignore[attr-defined]
                acted.set()
                act()

    listener = Listener()
    progress.logger.addHandler(listener)
    try:
        yield
    finally:
        progress.logger.removeHandler(listener)
