"""What a run of one target says at its end, and how long each stage took."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from slmpack.errors import CheckError, LicenceError, QualityError, SmokeError
from slmpack.machine.expected import translated
from slmpack.plain_text import tag_text
from slmpack.publish.attempts import NoRecipePassedError, last_refused
from slmpack.publish.find import PublishedLookup
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.summary import figures_line, headline_of
from slmpack.records import Recipe, Target
from slmpack.reports import Outcome, PublishedVersion, Quality, QualityFigures, Status, UnprovedModel

logger = logging.getLogger(__name__)

REFUSALS = (CheckError, LicenceError, QualityError, SmokeError)


class StageEvent(NamedTuple):
    """What a log line tells of a stage, as `record.stage`; `seconds` and `held` are None while it runs."""

    name: str
    seconds: float | None = None
    held: bool | None = None


class StageTimer:
    """Wall time of each stage, in the order in which they ran; one that runs again adds to its time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage, and say in the log when it begins and how it ends."""
        logger.info("%s ...", stage, extra={"stage": StageEvent(stage)})
        started, before = time.monotonic(), self.seconds.get(stage, 0.0)
        try:
            with self.silently(stage):
                yield
        except BaseException:
            seconds = time.monotonic() - started
            logger.info("%s ended after %.1f s", stage, seconds, extra={"stage": StageEvent(stage, seconds, False)})
            raise
        seconds = self.seconds[stage] - before
        logger.info("%s took %.1f s", stage, seconds, extra={"stage": StageEvent(stage, seconds, True)})

    @contextmanager
    def silently(self, stage: str) -> Iterator[None]:
        """Time a stage that ends well."""
        started = time.monotonic()
        with translated():
            yield
        seconds = round(time.monotonic() - started, 3)
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 3)


def published_outcome(version: PublishedVersion, proofs: Proofs, stages: StageTimer) -> Outcome:
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
        quality=_figures(proofs.quality.quality),
        speed=proofs.smoke.speed,
        seconds=stages.seconds,
        unhealthy=version.unhealthy,
    )


def verified_before(version: PublishedVersion, proofs: Proofs, stages: StageTimer) -> Outcome:
    """Describe a version that was proved again, and whose alias stays where it is."""
    return published_outcome(version, proofs, stages).model_copy(update={"status": "unchanged"})


def unchanged_outcome(found: PublishedLookup, stages: StageTimer) -> Outcome:
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
        quality=found.quality,
        speed=found.speed,
        seconds=stages.seconds,
    )


def unproved_outcome(found: UnprovedModel, stages: StageTimer) -> Outcome:
    """Describe a model that waits for its hardware."""
    return Outcome(
        status="unproved",
        target=found.target,
        recipe=Recipe(found.recipe) if found.recipe else None,
        name=found.name,
        model_uri=found.uri,
        digest=found.digest,
        size_bytes=found.size_bytes,
        quality=found.quality,
        seconds=stages.seconds,
        reason=found.reason,
    )


def describe_outcome(outcome: Outcome) -> str:
    """Say in one line what became of a target."""
    if outcome.reason is not None:
        return f"{outcome.target}: {outcome.status}"
    return "; ".join(filter(None, (headline_of(outcome), figures_line(outcome))))


def failed_outcome(target: Target, error: BaseException) -> Outcome:
    """Describe a target of which nothing was published; a refusal by the policy has the last measured figures."""
    status: Status = "refused" if isinstance(error, REFUSALS) else "failed"
    reason = tag_text(str(error)) or type(error).__name__
    last = last_refused(error.attempts) if isinstance(error, NoRecipePassedError) else None
    if last is None:
        return Outcome(status=status, target=target, reason=reason)
    return Outcome(
        status=status,
        target=target,
        recipe=Recipe(last.recipe),
        size_bytes=last.size_bytes,
        quality=_figures(last.quality),
        speed=last.speed,
        reason=reason,
    )


def verified_outcome(unproved: Outcome, verified: Outcome) -> Outcome:
    """Join what became of a target with what became of its verification elsewhere.

    Where that came to no end, the logged model still waits: it stays unproved, for the reason that is known now.
    """
    if verified.status == "failed":
        return unproved.model_copy(update={"reason": f"{unproved.reason}; verifying it failed: {verified.reason}"})
    return verified


def lost_outcome(target: Target, found: str) -> Outcome:
    """Describe a target whose run came to no end of its own: it crashed or was cancelled."""
    return Outcome(
        status="failed", target=target, reason=f"{found}; an outcome; see that run's log, then retry this one"
    )


def _figures(quality: Quality | None) -> QualityFigures | None:
    if quality is None:
        return None
    return QualityFigures(
        perplexity_ratio=quality.perplexity_ratio,
        mean_kl=quality.mean_kl,
        top1_agreement=quality.top1_agreement,
        chat_perplexity_ratio=quality.chats and quality.chats.perplexity_ratio,
    )


def previous_outcome(found: PublishedLookup | UnprovedModel, stages: StageTimer) -> Outcome:
    """Describe what the same request ended with before."""
    return unproved_outcome(found, stages) if isinstance(found, UnprovedModel) else unchanged_outcome(found, stages)


def needs_other_hardware(outcome: Outcome) -> bool:
    """Say whether the target's model waits to be verified where its hardware is."""
    return outcome.status == "unproved"


def is_published(outcomes: list[Outcome]) -> bool:
    """Say whether every target is published or unchanged."""
    return all(outcome.reason is None for outcome in outcomes)


def summary_of(outcomes: list[Outcome]) -> str:
    """Say how many targets are published, and why the others are not: "2 of 3 published; cpu-int8: ..."."""
    good = [outcome for outcome in outcomes if outcome.reason is None]
    bad = [f"{outcome.target}: {outcome.reason}" for outcome in outcomes if outcome.reason is not None]
    return "; ".join([f"{len(good)} of {len(outcomes)} published", *bad])
