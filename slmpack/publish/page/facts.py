"""The page's facts: what the proofs found of one version, gathered from their reports and kept as JSON with it.

They have no path of the machine. A later release reads them again as `Earlier`, and takes what it understands.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from slmpack.figures import divergence_shown, limit_shown, perplexity_shown, ratio_shown, share_shown
from slmpack.prove import smoke as smoke_stage
from slmpack.publish.page.frontier import Attempt, Text
from slmpack.records import Interface, Record, Target
from slmpack.reports import (
    CHAT_RATIO,
    RATIO,
    ChatQuality,
    Check,
    Quality,
    QualityPolicy,
    QualityReport,
    SmokeReport,
    Speed,
    ValidationReport,
)
from slmpack.targets import BATCH_SIZES


def _text_of(chat: list[smoke_stage.Message]) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in chat)


# The smoke test's checks whose finding is an answer, and what was asked; other checks are shown as checks.
ASKED = {
    "one question": smoke_stage.QUESTION[0]["content"],
    "a batch of two": f"{smoke_stage.QUESTION[0]['content']} | {smoke_stage.OTHER_QUESTION[0]['content']}",
    "several turns": _text_of(smoke_stage.TURNS),
}


class Machine(Record):
    """Where the proofs ran."""

    cpu: Text
    cores: int
    memory_bytes: int
    system: Text


class Finding(Record):
    """A check as the page tells it: `threshold` is None where the check itself says what it expects."""

    name: Text
    found: Text
    threshold: Text | None = None
    state: Literal["passed", "waived", "failed", "reported"] = "passed"


class Proof(Record):
    """The checks of one kind; none of them means that this proof did not run."""

    name: Text
    findings: tuple[Finding, ...]


class Answer(Record):
    """What the model was asked in the smoke test, and what it said."""

    asked: Text
    said: Text


class Earlier(Record):
    """What is known of the version that held the alias before: what its own facts say, of any schema."""

    model_config = ConfigDict(extra="ignore")

    version: int
    recipe: Text | None = None
    revision: Text | None = None
    base_revision: Text | None = None
    licence: Text | None = None
    size_bytes: int | None = None
    quality: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    requirements: tuple[Text, ...] | None = None
    chat_template: Text | None = None


class PageFacts(Record):
    """All that the page tells. `Earlier` reads it again, so a field keeps its name.

    Attributes:
        created: ISO 8601.
        base: of an adapter, the model that it was merged into.
        source_bytes: size of the source's checkpoint.
        versions: builder and runtime, name to version.
        chat_template: None where the package has none.
        quantisation: what was done to the weights and why, a sentence each.
        repairs: what was put right in the files of the source and of the package, a sentence each.
        rungs: the recipes that were tried, empty where there was no choice.
        previous: the version that held the alias before, None for the first.
    """

    name: Text
    version: int
    alias: Text
    target: Target
    interface: Interface
    created: Text
    source: Text
    revision: Text
    licence: Text | None
    architecture: Text
    parameters: int
    context_length: int
    source_bytes: int
    recipe: Text | None
    size_bytes: int
    digest: Text
    requirements: tuple[Text, ...]
    versions: dict[Text, Text]
    machine: Machine
    chat_template: Text | None
    proofs: tuple[Proof, ...]
    answers: tuple[Answer, ...]
    quality: Quality | None
    policy: QualityPolicy
    waiver: Text | None
    speed: Speed
    quantisation: tuple[Text, ...] = ()
    repairs: tuple[Text, ...] = ()
    base: Text | None = None
    base_revision: Text | None = None
    rungs: tuple[Attempt, ...] = ()
    previous: Earlier | None = None


def facts_of(
    validation: ValidationReport,
    quality: QualityReport,
    smoke: SmokeReport,
    *,
    version: int,
    alias: str,
    created: str,
    machine: Machine,
    chat_template: str | None = None,
    others: Mapping[str, tuple[Check, ...]] | None = None,
    rungs: tuple[Attempt, ...] = (),
    previous: Earlier | None = None,
) -> PageFacts:
    """Gather what the page tells of one model.

    Args:
        others: further proofs, such as "parity" or "clean environment", name to checks; no checks: it did not run.
    """
    model = validation.model
    package, snapshot = model.package, model.package.snapshot
    base = snapshot.source.base
    return PageFacts(
        name=model.name,
        version=version,
        alias=alias,
        target=package.target,
        interface=model.interface,
        created=created,
        machine=machine,
        chat_template=chat_template,
        rungs=rungs,
        previous=previous,
        source=snapshot.source.shown,
        revision=snapshot.source.revision,
        licence=snapshot.licence,
        architecture=snapshot.architecture,
        parameters=snapshot.parameters,
        context_length=snapshot.context_length,
        source_bytes=snapshot.size_bytes,
        recipe=package.recipe,
        size_bytes=package.size_bytes,
        versions=package.versions,
        digest=model.digest,
        requirements=model.requirements,
        proofs=_proofs(validation, quality, smoke, others or {}),
        answers=tuple(Answer(asked=ASKED[c.name], said=c.found) for c in smoke.checks if c.name in ASKED),
        quality=quality.quality,
        policy=quality.policy,
        waiver=quality.waiver,
        speed=smoke.speed,
        quantisation=package.quantisation,
        repairs=(*snapshot.repairs, *package.repairs),
        base=base and base.shown,
        base_revision=base and base.revision,
    )


def _proofs(
    validation: ValidationReport,
    quality: QualityReport,
    smoke: SmokeReport,
    others: Mapping[str, tuple[Check, ...]],
) -> tuple[Proof, ...]:
    return (
        Proof(name="validation", findings=_findings(validation.checks)),
        *(Proof(name=name, findings=_findings(checks)) for name, checks in others.items()),
        Proof(name="quality", findings=_quality_findings(quality)),
        Proof(name="smoke", findings=_smoke_findings(smoke)),
    )


def _findings(checks: tuple[Check, ...]) -> tuple[Finding, ...]:
    return tuple(Finding(name=check.name, found=check.found) for check in checks)


def _smoke_findings(report: SmokeReport) -> tuple[Finding, ...]:
    """Tell each check; the answers themselves have a place of their own on the page."""
    findings = tuple(
        Finding(name=check.name, found="answered, see below" if check.name in ASKED else check.found)
        for check in report.checks
    )
    batches = BATCH_SIZES.get(report.model.package.target)
    return findings if batches is None else (*findings, Finding(name="batch sizes", found=batches))


def _quality_findings(report: QualityReport) -> tuple[Finding, ...]:
    """Tell each figure with its limit; where nothing was measured, the report's own checks say why."""
    quality = report.quality
    if quality is None:
        return _findings(report.checks)
    over: Literal["waived", "failed"] = "failed" if report.waiver is None else "waived"
    rows = (
        *_judged_findings(quality, report.policy, over),
        *_chat_findings(quality.chats, report.policy, over),
        Finding(name="mean KL", found=f"{divergence_shown(quality.mean_kl)} nats", state="reported"),
        Finding(name="99th percentile of KL", found=f"{divergence_shown(quality.p99_kl)} nats", state="reported"),
        Finding(name="top-1 agreement", found=share_shown(quality.top1_agreement), state="reported"),
    )
    named = {row.name for row in rows}
    return (*rows, *_findings(tuple(check for check in report.checks if check.name not in named)))


def _judged_findings(
    quality: Quality, policy: QualityPolicy, over: Literal["waived", "failed"]
) -> tuple[Finding, Finding]:
    """Tell the figures that have a limit; `over` is the state of one that misses it."""
    ratio, limit = quality.perplexity_ratio, policy.max_perplexity_ratio
    loops = "any number" if policy.allow_new_loops else "0"
    comparison = _compared(ratio, quality.perplexity, quality.source_perplexity, quality.tokens)
    return (
        Finding(
            name=RATIO,
            found=comparison,
            threshold=f"at most {limit_shown(limit)}",
            state="passed" if ratio <= limit else over,
        ),
        Finding(
            name="new loops",
            found=str(quality.new_loops),
            threshold=loops,
            state="passed" if policy.allow_new_loops or quality.new_loops == 0 else over,
        ),
    )


def _chat_findings(
    chats: ChatQuality | None, policy: QualityPolicy, over: Literal["waived", "failed"]
) -> tuple[Finding, ...]:
    """Tell what was kept of the answers in the quality chats, if there are any."""
    if chats is None:
        return ()
    ratio, limit = chats.perplexity_ratio, policy.max_chat_perplexity_ratio
    comparison = _compared(ratio, chats.perplexity, chats.source_perplexity, chats.tokens)
    return (
        Finding(
            name=CHAT_RATIO,
            found=comparison,
            threshold=f"at most {limit_shown(limit)}",
            state="passed" if ratio <= limit else over,
        ),
        Finding(name="top-1 agreement on chats", found=share_shown(chats.top1_agreement), state="reported"),
    )


def _compared(ratio: float, perplexity: float, of_source: float, tokens: int) -> str:
    return f"{ratio_shown(ratio)}: {perplexity_shown(perplexity)} over {perplexity_shown(of_source)}, {tokens:,} tokens"


def summary_json(facts: PageFacts) -> str:
    """Return the facts as JSON, for `read_earlier` of the next version."""
    return facts.model_dump_json(indent=1) + "\n"


def read_earlier(text: str, version: int) -> Earlier:
    """Read the `summary_json` of another version; what this release does not understand of it is left out."""
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        stored = {}
    stored = dict(stored, version=version) if isinstance(stored, dict) else {"version": version}
    while True:
        try:
            return Earlier.model_validate(stored)
        except ValidationError as error:
            for problem in error.errors():
                stored.pop(str(problem["loc"][0]), None)
