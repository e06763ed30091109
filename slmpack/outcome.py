"""What a run of one target says at its end, and how long each stage took."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from slmpack.errors import CheckError, QualityError, SmokeError
from slmpack.publish import PublishedLookup
from slmpack.records import Outcome, PublishedVersion, Recipe, SmokeReport, Status, Target

logger = logging.getLogger(__name__)

REFUSALS = (CheckError, QualityError, SmokeError)


class Stages:
    """Wall time of each stage, in the order in which they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        logger.info("%s ...", stage)
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 3)
        logger.info("%s took %.1f s", stage, self.seconds[stage])


def published_outcome(version: PublishedVersion, smoke: SmokeReport, stages: Stages) -> Outcome:
    """Describe a version that was published just now."""
    package = version.model.package
    return Outcome(
        status="published",
        target=package.target,
        recipe=package.recipe,
        name=version.name,
        version=version.version,
        alias=version.alias,
        model_uri=f"models:/{version.name}/{version.version}",
        digest=version.digest,
        size_bytes=package.size_bytes,
        speed=smoke.speed,
        seconds=stages.seconds,
    )


def unchanged_outcome(found: PublishedLookup, stages: Stages) -> Outcome:
    """Describe a version that was published before, with the figures of that time."""
    return Outcome(
        status="unchanged",
        target=found.target,
        recipe=Recipe(found.recipe) if found.recipe else None,
        name=found.name,
        version=found.version,
        alias=found.alias,
        model_uri=f"models:/{found.name}/{found.version}",
        digest=found.digest,
        size_bytes=found.size_bytes,
        seconds=stages.seconds,
    )


def failed_outcome(target: Target, error: BaseException) -> Outcome:
    """Describe a target of which nothing was published."""
    status: Status = "refused" if isinstance(error, REFUSALS) else "failed"
    reason = " ".join(str(error).split()) or type(error).__name__
    return Outcome(status=status, target=target, reason=reason)


def summary_of(outcomes: list[Outcome]) -> str:
    """Say how many targets are published, and why the others are not: "2 of 3 published; cpu-int8: ..."."""
    good = [outcome for outcome in outcomes if outcome.reason is None]
    bad = [f"{outcome.target}: {outcome.reason}" for outcome in outcomes if outcome.reason is not None]
    return "; ".join([f"{len(good)} of {len(outcomes)} published", *bad])
