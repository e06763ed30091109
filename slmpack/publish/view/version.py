"""A version's view: what its page says, and what the registry says of it since.

    proof/facts.json of its run   what was proved: the page's own facts, where this release can read them
    slmpack.* tags                the same in less detail, where it cannot
    aliases, later tags           what has it now, who signed and approved it, whether its files are whole

MLflow copies a version into another registered model with its tags. The page is the first one's then: its number, what
it came after and the commands are, so the tags tell of the copy.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from slmpack.errors import CheckError
from slmpack.log.health import UNHEALTHY
from slmpack.log.links import page_address
from slmpack.log.tags import APPROVED, PUBLISHED, SIGNED_BY, facts_in
from slmpack.publish.bom.training import training_behind
from slmpack.publish.named_version import named_version, version_uri
from slmpack.publish.page.changes import changes_of
from slmpack.publish.page.facts import PageFacts
from slmpack.publish.page.log_page import page_facts_text
from slmpack.publish.page.render import state_of
from slmpack.publish.view.listing import key_name
from slmpack.publish.view.words import count_of, moment_of, number_of
from slmpack.records import Record
from slmpack.signing.policy import find_policy
from slmpack.source.absence import aliases_of
from slmpack.source.mlflow_errors import final_errors, is_absent

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

QUALITY = (
    "perplexity_ratio",
    "max_perplexity_ratio",
    "mean_kl",
    "top1_agreement",
    "new_loops",
    "chat_perplexity_ratio",
    "max_chat_perplexity_ratio",
)
SPEED = (
    "decode_tokens_per_second",
    "decode_p10_tokens_per_second",
    "decode_p90_tokens_per_second",
    "ttft_ms",
    "load_seconds",
    "peak_rss_bytes",
)


class Checks(Record):
    """How many checks were judged, how many held, and which proofs did not run."""

    held: int
    judged: int
    not_run: tuple[str, ...]


class VersionView(Record):
    """What is known of a published version; None where nothing is, or nothing that this release can read.

    Attributes:
        state: the page's headline: proved, partly, waived or failed.
        published: when it was registered, ISO 8601 in UTC.
        unhealthy: when its files were found missing or damaged, and which.
        recipe: None where the package is not quantised, too; `quantisation` says what that was, a sentence each.
        base: of an adapter or a tuned model, what it was made from.
        trained_on: the names of the data sets that the retraining behind it learnt from.
        quality: figures by the names of QUALITY; `max_*` are the policy's limits.
        speed: figures by the names of SPEED.
        signed_by: the fingerprint of the key, as the tag says: no signature was checked; `key` is what the trust
            policy of this machine calls it.
        approved: alias that people give -> when, and by whom.
        previous: the version that had the alias before, and `changes` against it, in a sentence.
        page: an artifact of the run; `page_address`, where MLflow shows it, if it is a server.
        page_of: the version that the page is of, where that is another one.
        chat_template: for comparisons; None where it is not known.
    """

    model_uri: str
    name: str
    version: int
    aliases: tuple[str, ...]
    state: str | None = None
    published: str
    unhealthy: str | None
    target: str | None
    interface: str | None
    recipe: str | None
    quantisation: tuple[str, ...] = ()
    source: str | None
    revision: str | None
    base: str | None
    base_revision: str | None
    trained_on: tuple[str, ...]
    licence: str | None
    size_bytes: int | None
    source_bytes: int | None = None
    quality: dict[str, float | None]
    speed: dict[str, float | None]
    machine: str | None
    checks: Checks | None = None
    waiver: str | None
    template_waiver: str | None
    signed_by: str | None
    key: str | None
    approved: dict[str, str]
    previous: int | None = None
    changes: str | None = None
    requirements: tuple[str, ...] | None = None
    digest: str | None
    page: str | None
    page_address: str | None
    page_of: str | None = None
    chat_template: str | None = Field(None, exclude=True)

    @property
    def figures(self) -> dict[str, float | None]:
        """All figures by the names that the page's comparison has."""
        return {**self.quality, **self.speed, "size_bytes": self.size_bytes}


def view_version(text: str) -> VersionView:
    """Gather what is known of the published version that `text` names, with or without `models:/`.

    Raises:
        UsageError: it can never name one, or the trust policy cannot be read.
        SourceError: MLflow has no such version.
        CheckError: slmpack did not publish it, or MLflow refuses to tell.
    """
    uri, policy = version_uri(text), find_policy()
    with final_errors(CheckError, f"to read {uri}"):
        version = named_version(uri)
        if PUBLISHED not in version.tags:
            raise CheckError(
                f"{uri} was not published by slmpack",
                "a proved version",
                f"`slmpack list {version.name}` shows those that were",
            )
        facts = facts_in(version.tags)
        page = page_behind(facts.get("mlflow_run"))
        told = _by_tags(facts)
        if page is not None and (page.name, page.version) == (version.name, int(version.version)):
            told |= _by_page(page)
        elif page is not None:
            told["page_of"] = f"{page.name} version {page.version}"
        told |= _trained(told)
        signed_by = version.tags.get(SIGNED_BY) or None
        return VersionView(
            **told,
            name=version.name,
            version=int(version.version),
            model_uri=f"models:/{version.name}/{version.version}",
            aliases=_aliases_of(version),
            published=moment_of(version.creation_timestamp),
            unhealthy=version.tags.get(UNHEALTHY) or None,
            signed_by=signed_by,
            key=key_name(signed_by, policy),
            approved=_approved_in(version.tags),
            page_address=_address_of(told["page"]),
        )


def page_behind(run_id: str | None) -> PageFacts | None:
    """Return the facts of a run's page; None where there are none, or those of a release that says other things."""
    text = page_facts_text(run_id) if run_id else ""
    try:
        return PageFacts.model_validate_json(text, extra="ignore") if text else None
    except (ValidationError, RecursionError):
        return None


def _by_tags(facts: Mapping[str, str]) -> dict[str, Any]:
    recipe, licence = facts.get("recipe"), facts.get("licence")
    apart = ("target", "source", "revision", "base", "base_revision", "waiver", "template_waiver", "digest", "page")
    return {
        **{name: facts.get(name) for name in apart},
        "licence": None if licence == "unknown" else licence,
        "interface": facts.get("interface", "chat"),
        "recipe": None if recipe == "none" else recipe,
        "size_bytes": count_of(facts.get("size_bytes")),
        "quality": {name: number_of(facts.get(name)) for name in QUALITY},
        "speed": {name: number_of(facts.get(name)) for name in SPEED},
        "machine": None,
    }


def _by_page(page: PageFacts) -> dict[str, Any]:
    quality = {} if page.quality is None else {**page.quality.model_dump(), **page.policy.model_dump()}
    if page.quality is not None and page.quality.chats is not None:
        quality["chat_perplexity_ratio"] = page.quality.chats.perplexity_ratio
    speed, machine = page.speed.model_dump(), page.machine
    same = (
        "source", "revision", "base", "base_revision", "licence", "waiver", "template_waiver", "recipe", "digest",
        "quantisation", "size_bytes", "source_bytes", "requirements", "chat_template",
    )  # fmt: skip
    return {
        **{name: getattr(page, name) for name in same},
        "state": state_of(page),
        "target": str(page.target),
        "interface": str(page.interface),
        "quality": {name: number_of(quality.get(name)) for name in QUALITY},
        "speed": {name: number_of(speed.get(name)) for name in SPEED},
        "machine": f"{machine.cpu}; {machine.cores} logical cores; {machine.system}",
        "checks": _checks_of(page),
        "previous": None if page.previous is None else page.previous.version,
        "changes": changes_of(page),
    }


def _checks_of(page: PageFacts) -> Checks:
    judged = [finding for proof in page.proofs for finding in proof.findings if finding.state != "reported"]
    return Checks(
        held=sum(finding.state == "passed" for finding in judged),
        judged=len(judged),
        not_run=tuple(proof.name for proof in page.proofs if not proof.findings),
    )


def _trained(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tuned model learnt from, and its base where the version itself does not say that."""
    training = training_behind(told["revision"] or "")
    if training is None:
        return {"trained_on": ()}
    learnt = {"trained_on": tuple(each.name for each in training.data if each.use == "training")}
    if told["base"] is not None:
        return learnt
    return {**learnt, "base": training.base or None, "base_revision": training.revision or None}


def _aliases_of(version: "ModelVersion") -> tuple[str, ...]:
    found = aliases_of(version.name)
    return tuple(sorted(alias for alias, number in found.items() if str(number) == str(version.version)))


def _approved_in(tags: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(APPROVED): value for key, value in sorted(tags.items()) if key.startswith(APPROVED)}


def _address_of(page: str | None) -> str | None:
    """Return where MLflow shows the page; None where that is no server, or the run is gone."""
    from mlflow.exceptions import MlflowException

    try:
        return None if page is None or not page.startswith("runs:/") else page_address(page)
    except MlflowException as error:
        if is_absent(error):
            return None
        raise
