"""Findings: the checks of each proof as the page tells them, every figure with its limit."""

from collections.abc import Mapping
from typing import Literal

from slmpack.figures import divergence_shown, limit_shown, perplexity_shown, ratio_shown, share_shown
from slmpack.prove import smoke as smoke_stage
from slmpack.prove.through_server import NOT_TRIED
from slmpack.publish.page.attempt import Text
from slmpack.records import Record
from slmpack.reports import (
    CHAT_RATIO,
    RATIO,
    ChatQuality,
    Check,
    Quality,
    QualityPolicy,
    QualityReport,
    SmokeReport,
    ValidationReport,
)
from slmpack.targets import BATCH_SIZES


def _text_of(chat: list[smoke_stage.Message]) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in chat)


# The smoke test's checks whose finding is an answer, and their questions; other checks are shown as checks.
ASKED = {
    "one question": smoke_stage.QUESTION[0]["content"],
    "a batch of two": f"{smoke_stage.QUESTION[0]['content']} | {smoke_stage.OTHER_QUESTION[0]['content']}",
    "several turns": _text_of(smoke_stage.TURNS),
}


TEMPLATE_RULE = "no branch of the chat template depends on them"


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
    """A question of the smoke test, and the model's answer."""

    asked: Text
    said: Text


def proofs_of(
    validation: ValidationReport,
    quality: QualityReport,
    smoke: SmokeReport,
    others: Mapping[str, tuple[Check, ...]],
) -> tuple[Proof, ...]:
    """Return what was found, a proof each.

    Args:
        others: further proofs, name to checks.
    """
    return (
        Proof(name="validation", findings=(*_findings(validation.checks), *_template_findings(validation))),
        *(Proof(name=name, findings=_findings(checks)) for name, checks in others.items()),
        Proof(name="quality", findings=_quality_findings(quality)),
        Proof(name="smoke", findings=_smoke_findings(smoke)),
    )


def answers_of(smoke: SmokeReport) -> tuple[Answer, ...]:
    """Return the smoke test's questions and what the model answered."""
    return tuple(Answer(asked=ASKED[c.name], said=c.found) for c in smoke.checks if c.name in ASKED)


def _findings(checks: tuple[Check, ...]) -> tuple[Finding, ...]:
    return tuple(Finding(name=check.name, found=check.found) for check in checks)


def _template_findings(report: ValidationReport) -> tuple[Finding, ...]:
    """Return what the chat templates do with the words of a message; nothing where they were not looked at."""
    template, name = report.template, "words of messages"
    if template.finding is not None:
        return (Finding(name=name, found=template.finding, threshold=TEMPLATE_RULE, state="waived"),)
    return (Finding(name=name, found=TEMPLATE_RULE),) if template.template is not None else ()


def _smoke_findings(report: SmokeReport) -> tuple[Finding, ...]:
    """Return each check; the answers themselves have a place of their own on the page."""
    findings = tuple(
        Finding(
            name=check.name,
            found="answered, see below" if check.name in ASKED else check.found,
            state="reported" if check.found.startswith(NOT_TRIED) and check.name not in ASKED else "passed",
        )
        for check in report.checks
    )
    batches = BATCH_SIZES.get(report.model.package.target)
    return findings if batches is None else (*findings, Finding(name="batch sizes", found=batches))


def _quality_findings(report: QualityReport) -> tuple[Finding, ...]:
    """Return each figure with its limit; where nothing was measured, the report's own checks say why."""
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
    """Return the figures that have a limit; `over` is the state of one that misses it."""
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
    """Return the loss on the answers in the quality chats, if there are any."""
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
