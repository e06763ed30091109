"""Publish: a proved model becomes a version of a registered model, and its alias moves last.

MLflow is all that publishers on several machines share, and it has no compare-and-swap. So:

    create a version that carries the digest -> search the digest -> the lowest number wins -> losers delete their own
    winner: read back -> page, bill of materials -> signature -> the holder is tagged with its successor ->
        alias moves -> `slmpack.published`

Every step may be done twice. A version without `slmpack.published` was left by a publisher that was killed: the next
one with the same digest completes it. One with it is never moved again, so that a rollback stays, unless what has the
alias has lost its files. `claim` has the first line, `find` what is looked for.
"""

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from slmpack.errors import CheckError, PublishError
from slmpack.log.mlflow_server import check_name
from slmpack.log.read_back import read_back
from slmpack.log.requirements import runtime_versions
from slmpack.log.tags import (
    HELD_ALIAS,
    HELD_SINCE,
    HELD_UNTIL,
    MODEL_ID,
    PUBLISHED,
    REFUSED,
    REQUEST_KEY,
    RUN_ADDRESS,
    SUPERSEDED_BY,
    UNPROVED,
    VERSION_OF_LOGGED,
    clear_logged_tag,
    facts_in,
    version_tags,
)
from slmpack.plain_text import tag_text
from slmpack.publish.bom.log_bom import log_bom
from slmpack.publish.claim import claim_version, delete_version
from slmpack.publish.find import (
    FINGERPRINTS_TAG,
    alias_of,
    fingerprints_in,
    holder_before,
    holder_of,
    is_lost,
    remember_key,
    unhealthy_before,
    with_fingerprint,
)
from slmpack.publish.page.log_page import Proofs, log_page, page_facts, page_uri
from slmpack.publish.sign import sign_version
from slmpack.records import LoggedModel
from slmpack.reports import PublishedVersion, Quality, Speed
from slmpack.signing.keys import SigningKey
from slmpack.source.mlflow_errors import final_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

DESCRIPTION_CHARACTERS = 5000  # Source: MLflow 3.17.2, store/model_registry/dbmodels/models.py


def publish_version(
    model: LoggedModel,
    proofs: Proofs,
    *,
    fingerprint: str = "",
    request_key: str | None = None,
    force: bool = False,
    trace: dict[str, str] | None = None,
    key: SigningKey | None = None,
) -> PublishedVersion:
    """Register the proved model and move its alias to it; the same call again changes nothing more.

    Args:
        fingerprint: what `published_before` finds an `auto` by.
        request_key: what it finds the version by before the source is fetched.
        force: make a version of this very model even if one of the same digest is published.
        trace: where this comes from, such as the id of a Prefect run; becomes facts of the version.
        key: signs the version before its alias moves.

    Returns:
        The version that has the alias; of another logged model where one of the same digest came first.

    Raises:
        PublishError: a report is about another model, or the registry refuses.
        CheckError: the registry does not serve what was built; the version is taken away again.
        UsageError: the registry would refuse the name.
    """
    for report in (proofs.validation, proofs.quality, proofs.smoke):
        if report.model != model:
            raise PublishError(f"a report about {report.model.uri}", f"reports about {model.uri}", "prove this model")
        if report.device.provider != model.package.target.provider:
            raise PublishError(
                f"a proof of {model.uri} on {report.device.provider}",
                f"proofs on {model.package.target.provider}, for which it is",
                f"verify it on a machine of the pool {model.package.target.provider}",
            )
    check_name(model.name)
    with final_errors(PublishError, f"to publish {model.name}"):
        figures = figures_of(proofs.smoke.speed, proofs.quality.quality)
        log_figures(model, figures)
        facts = _facts_of(model, proofs, force) | figures | (trace or {})
        version = claim_version(model, version_tags(facts) | {FINGERPRINTS_TAG: fingerprint}, force)
        try:
            published = _complete(model, proofs, version, key)
        except CheckError as refusal:
            if version.tags[MODEL_ID] != model.model_id:
                logger.warning("version %s has the digest but not the bytes of %s", version.version, model.uri)
                return publish_version(
                    model, proofs, fingerprint=fingerprint, request_key=request_key, force=True, trace=trace, key=key
                )
            _refuse(model, proofs, version, refusal)
            raise
        _remember(model, version, published, fingerprint, request_key)
        _close_run(model, published.version)
    logger.info("published %s version %s as %s", model.name, published.version, published.alias)
    unhealthy = unhealthy_before(model.name, published.version, published.alias, model.digest)
    return published.model_copy(update={"unhealthy": unhealthy})


def _complete(model: LoggedModel, proofs: Proofs, version: "ModelVersion", key: SigningKey | None) -> PublishedVersion:
    """Do what is not done yet of: compare what is served with what was built, write the page, sign, move the alias.

    Raises:
        CheckError: the registry does not serve what was built.
    """
    from mlflow import MlflowClient

    alias = alias_of(model.package.target, model.interface)
    if not _is_complete(version, alias):
        integrity = read_back(_published(model, version, alias).model)
        # that took minutes, and others with the same digest may have been faster, or even been superseded
        version = MlflowClient().get_model_version(version.name, version.version)
        if not _is_complete(version, alias):
            previous = holder_before(version, alias)
            facts = page_facts(proofs, integrity, int(version.version), alias, previous)
            summary = log_page(facts, facts_in(version.tags)["mlflow_run"]) + _made_by(version)
            summary = summary[:DESCRIPTION_CHARACTERS]
            log_bom(_published(model, version, alias).model, proofs, version)
            version = MlflowClient().update_model_version(version.name, version.version, summary)
            if key is not None:
                sign_version(_published(model, version, alias).model, version, key)
            _move_alias(version, alias, previous)
    return _published(model, version, alias)


def _made_by(version: "ModelVersion") -> str:
    """Return a line that links the run that made the version, if the run has an address."""
    address = facts_in(version.tags).get(RUN_ADDRESS)
    return f"\n\nMade by [this Prefect run]({address})." if address else ""


def _is_complete(version: "ModelVersion", alias: str) -> bool:
    """Tell whether nothing is left to do: it was published, and what has the alias now, it or another, can be used."""
    holder = holder_of(version.name, alias)
    return (
        PUBLISHED in version.tags and holder is not None and (holder.version == version.version or not is_lost(holder))
    )


def _move_alias(version: "ModelVersion", alias: str, holder: "ModelVersion | None") -> None:
    """Move the alias from its holder to the version; the tag that says so comes last."""
    from mlflow import MlflowClient

    client = MlflowClient()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if holder is not None and holder.tags.get(SUPERSEDED_BY) != str(version.version):
        values = {HELD_UNTIL: now, HELD_ALIAS: alias, SUPERSEDED_BY: str(version.version)}
        for key, value in values.items():
            client.set_model_version_tag(holder.name, holder.version, key, value)
    client.set_model_version_tag(version.name, version.version, HELD_SINCE, now)
    client.set_registered_model_alias(version.name, alias, version.version)
    client.set_model_version_tag(version.name, version.version, PUBLISHED, alias)


def _refuse(model: LoggedModel, proofs: Proofs, version: "ModelVersion", refusal: CheckError) -> None:
    """Take the version of a model that is not served as it was built away again; one that was published stays."""
    if PUBLISHED not in version.tags:
        delete_version(version)
        mark_refused(model, str(refusal), proofs.smoke.own_speed, proofs.quality.quality)


def mark_refused(
    model: LoggedModel, reason: str, speed: Speed | None = None, quality: Quality | None = None, status: str = "FAILED"
) -> None:
    """Leave on the run and the logged model why they were not published, and what was measured until then."""
    from mlflow import MlflowClient

    with final_errors(PublishError, f"to mark {model.uri} as refused"):
        client = MlflowClient()
        log_figures(model, figures_of(speed, quality))
        text = tag_text(reason)[:1000]
        client.set_logged_model_tags(model.model_id, {REFUSED: text})
        client.set_tag(model.run_id, REFUSED, text)
        client.set_terminated(model.run_id, status)


def _facts_of(model: LoggedModel, proofs: Proofs, force: bool) -> dict[str, object]:
    """Return what the version says of itself, all of it from its first moment on."""
    package = model.package
    source = package.snapshot.source
    facts: dict[str, object] = {
        "source": source.shown,
        "revision": source.revision,
        "licence": package.snapshot.licence or "unknown",
        "target": package.target,
        "recipe": package.recipe or "none",
        "exporter": package.exporter,
        "interface": model.interface,
        "digest": model.digest,
        "size_bytes": package.size_bytes,
        "model_id": model.model_id,
        "mlflow_run": model.run_id,
        "page": page_uri(model.run_id),
        "forced": str(force).lower(),
    }
    if source.base is not None:
        facts |= {"base": source.base.shown, "base_revision": source.base.revision}
    if proofs.quality.waiver is not None:
        facts["waiver"] = proofs.quality.waiver
    if (waiver := proofs.validation.template.waiver) is not None:
        facts["template_waiver"] = waiver
    if repairs := (*package.snapshot.repairs, *package.repairs):
        facts["repairs"] = " ".join(repairs)
    if (device := proofs.smoke.device).name:
        facts |= {"device": device.name, "driver": device.driver, "compute_capability": device.compute_capability}
    versions = package.versions | runtime_versions(package.target)
    return facts | {f"version.{name}": found for name, found in versions.items()}


def figures_of(speed: Speed | None, quality: Quality | None) -> dict[str, float]:
    """Return what was measured, by the names that metrics and tags have."""
    values: dict[str, float] = {} if speed is None else speed.model_dump(exclude_none=True)
    if quality is not None:
        values |= quality.model_dump(exclude={"chats"})
        if quality.chats is not None:
            values |= {f"chat_{name}": value for name, value in quality.chats.model_dump().items()}
    return {name: float(value) for name, value in values.items()}


def log_figures(model: LoggedModel, figures: dict[str, float]) -> None:
    """Log the figures to the run and the logged model; the same call again adds nothing.

    They bear the run's own time, so that two publishers at once say the same. Where a run goes on after a crash and has
    measured anew, what differs bears the time of now: MLflow takes one value a moment.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    run = client.get_run(model.run_id)
    known, begun, now = run.data.metrics, run.info.start_time, int(time.time() * 1000)
    metrics = [
        Metric(name, value, now if name in known else begun, 0, model_id=model.model_id, run_id=model.run_id)
        for name, value in figures.items()
        if known.get(name) != value
    ]
    client.log_batch(model.run_id, metrics=metrics)


def _remember(
    model: LoggedModel, version: "ModelVersion", published: PublishedVersion, fingerprint: str, request_key: str | None
) -> None:
    """Let the version be found by all that ended with it: now, and before the model could be proved."""
    from mlflow import MlflowClient

    client = MlflowClient()
    before = client.get_logged_model(model.model_id).tags
    fingerprints = with_fingerprint(version.tags, fingerprint, *fingerprints_in(before))
    if fingerprints != version.tags.get(FINGERPRINTS_TAG, ""):
        client.set_model_version_tag(version.name, version.version, FINGERPRINTS_TAG, fingerprints)
    keys = [key.removeprefix(REQUEST_KEY) for key in before if key.startswith(REQUEST_KEY)]
    for key in keys if request_key is None else [request_key, *keys]:
        remember_key(model.name, published.version, key, published.alias)


def _close_run(model: LoggedModel, version: int) -> None:
    """Leave the version on the run and the logged model, and nothing of what it was before."""
    from mlflow import MlflowClient

    client = MlflowClient()
    for tag in (REFUSED, UNPROVED):
        if client.get_logged_model(model.model_id).tags.get(tag):
            clear_logged_tag(model.model_id, tag)
        if tag in client.get_run(model.run_id).data.tags:
            client.delete_tag(model.run_id, tag)
    client.set_logged_model_tags(model.model_id, {VERSION_OF_LOGGED: str(version)})
    client.set_tag(model.run_id, VERSION_OF_LOGGED, version)
    client.set_terminated(model.run_id, "FINISHED")


def _published(model: LoggedModel, version: "ModelVersion", alias: str) -> PublishedVersion:
    """Describe the version; one that came first is of its own logged model and run."""
    model_id = version.tags[MODEL_ID]
    run_id = facts_in(version.tags)["mlflow_run"]
    proved = model.model_copy(update={"model_id": model_id, "uri": f"models:/{model_id}", "run_id": run_id})
    return PublishedVersion(
        model=proved,
        name=model.name,
        version=int(version.version),
        alias=alias,
        digest=model.digest,
        page_uri=page_uri(run_id),
        summary=version.description or "",
    )
