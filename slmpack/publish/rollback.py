"""Rollback: an alias goes back to the version that had it before, if that one still is whole and still answers.

    holder <-- superseded it, say the tags of -- candidates, newest first, each with those before it
    candidate: read back -> smoke test; one that fails is reported, and the one before it is next
    the holder is tagged with where the alias goes -> alias moves -> `slmpack.rolled_back`

A version that the alias was taken from by a rollback is never gone back to, so that two rollbacks go two versions back
and none goes forward. It keeps `slmpack.published`: packaging it again ends as `unchanged`, and moves nothing.

Every step may be done twice. A version with `slmpack.rolled_back_to` and without `slmpack.rolled_back` was left by a
rollback that was killed: where the alias had moved already, the next one completes it and goes no further.
"""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.errors import CheckError, PublishError, SmokeError, SourceError
from slmpack.log.mlflow_server import check_name
from slmpack.log.provenance import model_of
from slmpack.log.read_back import logged_digests, read_back
from slmpack.log.restore import find_logged
from slmpack.log.signed import require_signed
from slmpack.log.tags import (
    FACTS,
    HELD_ALIAS,
    HELD_SINCE,
    HELD_UNTIL,
    PUBLISHED,
    SUPERSEDED_BY,
    clear_version_tag,
    with_more,
)
from slmpack.log.trust import require_trusted_artifacts
from slmpack.log.versions import versions_with
from slmpack.machine.hardware import require_hardware, require_runtime
from slmpack.publish.find import PublishedLookup, alias_of, holder_of, lookup_of
from slmpack.publish.outcome import StageTimer, unchanged_outcome
from slmpack.records import Interface, LoggedModel, Record, Target
from slmpack.reports import Outcome, SmokeReport
from slmpack.source.absence import missing_alias, missing_model
from slmpack.source.mlflow_errors import final_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

ROLLED_BACK, ROLLED_BACK_TO = "slmpack.rolled_back", "slmpack.rolled_back_to"
RESTORED, RESTORED_FROM = "slmpack.restored", "slmpack.restored_from"
UNUSABLE = (CheckError, SmokeError, SourceError)  # of a candidate: the one before it is next


class RollbackPlan(Record):
    """Where an alias can go.

    Attributes:
        holder: the number of the version that has it.
        candidates: the numbers of those that had it before, the last one first.
        interrupted: a rollback to `holder` was killed after the alias had moved; nothing is left but to say so.
    """

    name: str
    alias: str
    holder: int
    candidates: tuple[int, ...]
    interrupted: bool = False


def check_rollback(name: str, target: Target) -> None:
    """Refuse what cannot be rolled back here, before the first request.

    Raises:
        UsageError: MLflow would refuse the name.
        HardwareError: this machine cannot run what is for that target.
    """
    check_name(name)
    require_runtime(target)
    require_hardware(target)


def plan_rollback(name: str, target: Target, interface: Interface) -> RollbackPlan:
    """Find who has the target's alias, and who had it before.

    Raises:
        UsageError: MLflow would refuse the name.
        PublishError: nobody has the alias, or nobody had it before.
    """
    check_name(name)
    alias = alias_of(target, interface)
    with final_errors(PublishError, f"to show the versions of {name}"):
        holder = holder_of(name, alias)
        if holder is None:
            absence = missing_model(name) or missing_alias(name, alias)
            raise PublishError(
                f"no version of {name} has the alias {alias}: {absence.found}",
                absence.known,
                f"{absence.advice}; check --target and --interface",
            )
        if _unfinished(holder):
            return RollbackPlan(name=name, alias=alias, holder=int(holder.version), candidates=(), interrupted=True)
        seen = {str(holder.version)}
        found = [*_before(holder, alias, seen), *_cut_off(holder, alias, seen)]
    if not found:
        raise PublishError(
            f"no version of {name} had the alias {alias} before version {holder.version}",
            "one to go back to",
            f"package another: slmpack package SOURCE --name {name}",
        )
    candidates = tuple(int(version.version) for version in found)
    return RollbackPlan(name=name, alias=alias, holder=int(holder.version), candidates=candidates)


def _before(version: "ModelVersion", alias: str, seen: set[str]) -> Iterator["ModelVersion"]:
    """Yield those that the version took the alias from, newest first, each followed by those before it."""
    for other in reversed(versions_with(version.name, SUPERSEDED_BY, str(version.version))):
        if other.tags.get(HELD_ALIAS) == alias and str(other.version) not in seen:
            yield from _with_those_before(other, alias, seen)


def _with_those_before(version: "ModelVersion", alias: str, seen: set[str]) -> Iterator["ModelVersion"]:
    seen.add(str(version.version))
    if version.tags.get(PUBLISHED) == alias and ROLLED_BACK_TO not in version.tags:
        yield version
    yield from _before(version, alias, seen)


def _cut_off(holder: "ModelVersion", alias: str, seen: set[str]) -> Iterator["ModelVersion"]:
    """Yield those whose successor was deleted, and those before them: of what lost the alias before `holder` got it."""
    published = versions_with(holder.name, PUBLISHED, alias)
    numbers = {str(version.version) for version in published}
    got = holder.tags.get(HELD_SINCE, "")
    held = [version for version in published if version.tags.get(HELD_ALIAS) == alias]
    for version in sorted(held, key=lambda version: version.tags.get(HELD_UNTIL, ""), reverse=True):
        is_cut_off = version.tags.get(SUPERSEDED_BY) not in numbers and version.tags.get(HELD_UNTIL, "") <= got
        if is_cut_off and str(version.version) not in seen:
            yield from _with_those_before(version, alias, seen)


def _unfinished(holder: "ModelVersion") -> "list[ModelVersion]":
    """Return the versions from which a rollback to `holder` began and was not completed."""
    started = versions_with(holder.name, ROLLED_BACK_TO, str(holder.version))
    return [version for version in started if not version.tags.get(ROLLED_BACK)]


def read_version(name: str, version: int, *, trust_code: bool = False) -> LoggedModel:
    """Return the record of a version of which every file is as it was built; its source need not be there.

    Raises:
        SourceError: MLflow has no such version.
        CheckError: slmpack did not log it, or a file is not the one that was logged.
        TrustError: its code is not slmpack's, or the trust policy does not accept who signed it.
    """
    found = find_logged(f"models:/{name}/{version}")
    nowhere = Path()  # the files are looked at through the registry, and nothing is compared with the source
    model = model_of(found.provenance, found.model_id, found.run_id, package=nowhere, snapshot=nowhere)
    for check in read_back(model):
        logger.info("version %d: %s: %s", version, check.name, check.found)
    if not trust_code:
        require_trusted_artifacts(found.uri, found.location)
    require_signed(found.uri, name, found.location, logged_digests(model))
    return model


def move_alias_back(plan: RollbackPlan, version: int, trace: dict[str, str] | None = None) -> PublishedLookup:
    """Move the alias from its holder to the version; the same call again changes nothing more.

    Args:
        version: one of the candidates, or the holder itself to complete what was interrupted.
        trace: where this comes from, such as the id of a Prefect run; becomes facts of the version that loses it.

    Returns:
        The version that has the alias now.

    Raises:
        PublishError: somebody else moved the alias meanwhile, or the registry refuses.
    """
    from mlflow import MlflowClient

    with final_errors(PublishError, f"to give {plan.name}@{plan.alias} back"):
        holder = holder_of(plan.name, plan.alias)
        found = None if holder is None else int(holder.version)
        if holder is None or found not in {plan.holder, version}:
            raise PublishError(
                f"{plan.name}@{plan.alias} went to version {found} meanwhile",
                f"version {plan.holder}",
                "look at it and roll back again",
            )
        if found != version:
            _take_from(holder, version, trace or {})
            MlflowClient().set_registered_model_alias(plan.name, plan.alias, str(version))
        restored = MlflowClient().get_model_version(plan.name, str(version))
        _complete(restored)
    return lookup_of(restored, plan.alias)


def _take_from(holder: "ModelVersion", version: int, trace: dict[str, str]) -> None:
    """Tell the holder where its alias goes, before it does."""
    from mlflow import MlflowClient

    client = MlflowClient()
    if holder.tags.get(ROLLED_BACK):  # somebody gave it the alias again
        clear_version_tag(holder, ROLLED_BACK)
    facts = with_more(holder.tags, {f"rollback_{key}": value for key, value in trace.items()})
    tags = {FACTS: facts, ROLLED_BACK_TO: str(version)} if trace else {ROLLED_BACK_TO: str(version)}
    for key, value in tags.items():
        client.set_model_version_tag(holder.name, holder.version, key, value)


def _complete(restored: "ModelVersion") -> None:
    """Tell both sides that the alias has moved."""
    from mlflow import MlflowClient

    client, now = MlflowClient(), datetime.now(UTC).isoformat(timespec="seconds")
    for left in _unfinished(restored):
        for key, value in {RESTORED: now, RESTORED_FROM: str(left.version)}.items():
            client.set_model_version_tag(restored.name, restored.version, key, value)
        client.set_model_version_tag(left.name, left.version, ROLLED_BACK, now)
        logger.info("the alias went back from version %s to version %s", left.version, restored.version)


def failed_candidates(plan: RollbackPlan, reasons: dict[int, str]) -> PublishError:
    """Return the error of an alias that stays where it is: why each of those that had it before cannot have it."""
    shown = ", ".join(f"version {version}: {reason.replace('; ', ', ')}" for version, reason in reasons.items())
    return PublishError(
        f"no version of {plan.name} before {plan.holder} can be used ({shown})",
        "one to go back to",
        f"the alias {plan.alias} stays at version {plan.holder}",
    )


def rolled_back_outcome(found: PublishedLookup, smoke: SmokeReport | None, stages: StageTimer) -> Outcome:
    """Describe the version that has the alias now, with the speed of now and the quality of when it was published."""
    outcome = unchanged_outcome(found, stages).model_copy(update={"status": "published"})
    return outcome if smoke is None else outcome.model_copy(update={"speed": smoke.speed})
