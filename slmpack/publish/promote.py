"""Promote: an alias that people give, such as `production`, moves to a proved version, with a person's name on it.

    the version behind an alias or a number -> published, whole, without a waiver unless that is accepted
        -> every file compared, code and signature checked -> its tag says who approved -> the alias moves

Aliases of targets move when a version is proved, and this moves none of those. Every step may be done twice.
"""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from slmpack.errors import PublishError, UsageError
from slmpack.log.health import damage_known
from slmpack.log.mlflow_server import check_alias, check_name
from slmpack.log.tags import APPROVED, PUBLISHED, SIGNED_BY, facts_in
from slmpack.log.versions import version_of
from slmpack.plain_text import tag_text
from slmpack.publish.find import alias_of, holder_of, lookup_of
from slmpack.publish.rollback import read_version
from slmpack.records import Interface, Record, Target
from slmpack.reports import QualityFigures
from slmpack.source.absence import Absence, missing_alias, missing_model
from slmpack.source.mlflow_errors import final_errors, is_absent

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

TUNED = "tuned"  # moves when a retraining is better
APPROVER_CHARACTERS = 200


class Promotion(Record):
    """Which version an alias is to move to, or moved to.

    Attributes:
        status: `promoted`, `unchanged` where the version had the alias before, or `planned`.
        source: the alias or the number that was named.
        before: the number of the version that has the alias until then.
        signed_by: as the version's tag says.
        waiver: the reasons for which it was published below the quality policy, or with a chat template that decides by
            what a message says.
        approver: who approved; None as long as nobody did.
    """

    status: Literal["planned", "promoted", "unchanged"] = "planned"
    name: str
    version: int
    source: str
    alias: str
    before: int | None
    target: Target
    quality: QualityFigures | None
    signed_by: str | None
    waiver: str | None
    page: str | None
    approver: str | None = None


def check_promotion(name: str, source: str, alias: str) -> None:
    """Refuse what can never be promoted, before the first request.

    Raises:
        UsageError: MLflow would refuse the name or the alias, or the alias is one that slmpack moves by itself.
    """
    check_name(name)
    check_alias(alias)
    own = {alias_of(target, interface) for target in Target for interface in Interface} | {TUNED}
    if alias in own:
        raise UsageError(
            f"the alias {alias}, which moves when a version is proved",
            "one of your own, such as production",
            "to take a version back: slmpack rollback NAME --target T",
        )
    if not source.isdecimal():
        check_alias(source)


def plan_promotion(name: str, source: str, alias: str, *, accept_waiver: bool = False) -> Promotion:
    """Find the version, and look at what the registry says of it; no file is read.

    Args:
        source: an alias of the model, or the number of a version.
        accept_waiver: take a version that was published with a waiver.

    Raises:
        UsageError: as `check_promotion`.
        PublishError: there is no such version, or it was not proved, is damaged, or lost too much of its source.
    """
    check_promotion(name, source, alias)
    with final_errors(PublishError, f"to show the versions of {name}"):
        version = _version(name, source)
        holder = holder_of(name, alias)
    plan = _promotion(version, source, alias, None if holder is None else int(holder.version))
    if plan.waiver is not None and not accept_waiver:
        raise PublishError(
            f"{name} version {plan.version} was published with a waiver: {plan.waiver}",
            "one that needed none",
            "give --accept-waiver if that is meant",
        )
    return plan


def _version(name: str, source: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    number, alias = (source, None) if source.isdecimal() else (None, source)
    try:
        return version_of(name, number, alias)
    except MlflowException as error:
        if not is_absent(error):
            raise
        absence = missing_model(name) or (missing_alias(name, alias) if alias else None)
        if absence is None:
            absence = Absence(f"there is no version {source}", "an alias, or the number of a version", "look in MLflow")
        raise PublishError(
            f"{name} has no {source} to promote: {absence.found}", absence.known, absence.advice
        ) from error


def _promotion(version: "ModelVersion", source: str, alias: str, before: int | None) -> Promotion:
    shown = f"{version.name} version {version.version}"
    if PUBLISHED not in version.tags:
        raise PublishError(f"{shown} was not published", "a proved version", f"slmpack verify models:/{version.name}/N")
    if damage := damage_known(version.tags):
        raise PublishError(f"{shown} cannot be used: {damage}", "a version of which every file is as it was proved")
    found, facts = lookup_of(version, version.tags[PUBLISHED]), facts_in(version.tags)
    return Promotion(
        name=version.name,
        version=found.version,
        source=source,
        alias=alias,
        before=before,
        target=found.target,
        quality=found.quality,
        signed_by=version.tags.get(SIGNED_BY),
        waiver="; ".join(facts[name] for name in ("waiver", "template_waiver") if name in facts) or None,
        page=facts.get("page"),
    )


def promote(plan: Promotion, approver: str, *, trust_code: bool = False) -> Promotion:
    """Move the alias to the planned version; the same call again changes nothing more.

    Args:
        approver: the name of who approved.

    Raises:
        UsageError: the approver has no name, or the trust policy cannot be read.
        CheckError: a file of the version is not the one that was logged.
        TrustError: its code is not slmpack's, or the trust policy does not accept who signed it.
        PublishError: another version got the alias meanwhile, or the registry refuses.
    """
    from mlflow import MlflowClient

    name = tag_text(approver).strip()[:APPROVER_CHARACTERS]
    if not name:
        raise UsageError("an approval without a name", "who approves", "give --approver NAME")
    read_version(plan.name, plan.version, trust_code=trust_code)
    with final_errors(PublishError, f"to give {plan.name}@{plan.alias} to version {plan.version}"):
        holder = holder_of(plan.name, plan.alias)
        now = None if holder is None else int(holder.version)
        if now == plan.version:
            return plan.model_copy(update={"status": "unchanged", "before": now, "approver": name})
        if now != plan.before:
            raise PublishError(
                f"{plan.name}@{plan.alias} went to version {now} meanwhile",
                f"version {plan.before}, as when this was approved",
                "look at it, and promote again",
            )
        client, time = MlflowClient(), datetime.now(UTC).isoformat(timespec="seconds")
        client.set_model_version_tag(plan.name, str(plan.version), f"{APPROVED}{plan.alias}", f"{time} {name}")
        client.set_registered_model_alias(plan.name, plan.alias, str(plan.version))
    logger.info("%s@%s is version %d now, approved by %s", plan.name, plan.alias, plan.version, name)
    return plan.model_copy(update={"status": "promoted", "approver": name})


def describe_promotion(promotion: Promotion) -> str:
    """Return one line for a person."""
    before = "" if promotion.before in {None, promotion.version} else f", before it version {promotion.before}"
    approved = f", approved by {promotion.approver}" if promotion.approver else ""
    what = f"{promotion.name}@{promotion.alias} is version {promotion.version} ({promotion.source})"
    return f"{promotion.status}: {what}{before}{approved}"


def what_is_approved(promotion: Promotion) -> str:
    """Return what an approver has to know, as Markdown."""
    quality = promotion.quality
    ratio = "not measured" if quality is None else f"{quality.perplexity_ratio:.3f}"
    signed = "not signed" if promotion.signed_by is None else f"signed by {promotion.signed_by[:12]}"
    lines = [
        f"**{promotion.name} version {promotion.version}** is to get the alias `{promotion.alias}`"
        + ("." if promotion.before is None else f", which version {promotion.before} has."),
        f"- for {promotion.target}; perplexity {ratio} times the source's",
        f"- {signed}",
        *([f"- published with a waiver: {promotion.waiver}"] if promotion.waiver else []),
        *([f"- its page: `{promotion.page}`"] if promotion.page else []),
    ]
    return "\n".join(lines)
