"""Reports: what the proofs found, what they are judged by, and what a run ended as."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from slmpack.records import CPU, Device, LoggedModel, Recipe, Record, Target


class Check(Record):
    """One thing that was looked at and held: its name and what was found."""

    name: str
    found: str


class TemplateReport(Record):
    """No chat template depends on what a message says, or the user gave a reason why it may.

    Attributes:
        finding: what was waived: the place in the template and what it does; None where nothing was found.
        waiver: the reason for publishing all the same, else None.
        template: the text of the default template.
        base_template: that of the model that this one was made of; None where there is none or it is not known.
    """

    finding: str | None = None
    waiver: str | None = None
    template: str | None = None
    base_template: str | None = None

    @property
    def differs_from_base(self) -> bool:
        """Whether it is known that the template is not the base's."""
        return self.base_template is not None and self.base_template != self.template


class InstalledPackage(Record):
    """A package of a clean environment.

    Attributes:
        licence: what its metadata state, None if they state none.
        sha256: of the files that the package index has of the release; none if it gives no hashes.
    """

    name: str
    version: str
    licence: str | None
    sha256: tuple[str, ...] = ()


class CleanEnvironment(Record):
    """What a logged model did where nothing was installed but its requirements, and what that was."""

    checks: tuple[Check, ...]
    packages: tuple[InstalledPackage, ...] = ()


class ValidationReport(Record):
    """The logged model is what its interface promises; exists only if every check held.

    Attributes:
        checks: signature, example, requirements, leaks, files, and the prediction of the example.
        parity: tokenizer, chat template and end-of-turn tokens against the source; none for `transformers`.
        clean_environment: loaded, and its answer, in an environment made only from its requirements.
        packages: what was installed there; none where it was resolved only.
        device: what it was loaded and answered on.
        template: what its chat templates do with the words of a message.
    """

    model: LoggedModel
    checks: tuple[Check, ...]
    parity: tuple[Check, ...] = ()
    clean_environment: tuple[Check, ...] = ()
    packages: tuple[InstalledPackage, ...] = ()
    device: Device = CPU
    template: TemplateReport = TemplateReport()


class Speed(Record):
    """What one answer costs on the machine that measured it.

    Attributes:
        decode_tokens_per_second: tokens after the first, one request at a time; the median of the repeats.
        ttft_ms: time to first token, milliseconds, prompt included; the median of the repeats.
        load_seconds: from URI to a model that answers, measured once.
        peak_rss_bytes: highest resident memory of the process that loaded it.
        decode_p10_tokens_per_second, decode_p90_tokens_per_second, ttft_p10_ms, ttft_p90_ms: percentiles of the
            repeats; None in versions that were measured once.
        speed_repeats: how many answers were timed.
        load_per_core: the machine's load average of one minute by its logical cores, at the end of the repeats.
    """

    decode_tokens_per_second: float
    ttft_ms: float
    load_seconds: float
    peak_rss_bytes: int
    decode_p10_tokens_per_second: float | None = None
    decode_p90_tokens_per_second: float | None = None
    ttft_p10_ms: float | None = None
    ttft_p90_ms: float | None = None
    speed_repeats: int | None = None
    load_per_core: float | None = None


class QualityPolicy(Record):
    """What a package may lose of its source before nothing is published."""

    max_perplexity_ratio: float = Field(
        1.10, ge=1.0, le=1000.0, description="The package's perplexity over its source's: 1.10 is a tenth more."
    )
    allow_new_loops: bool = Field(False, description="Publish even if greedy answers loop where the source's do not.")
    max_chat_perplexity_ratio: float = Field(
        1.05, ge=1.0, le=1000.0, description="The same on the answers in the quality chats, where there are any."
    )


LicenceName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^(),]*[^(),\s][^(),]*$")]


class UnknownLicence(StrEnum):
    """What is done about a licence that nobody states."""

    WARN = "warn"
    REFUSE = "refuse"
    ALLOW = "allow"


class LicencePolicy(Record):
    """Which licences the source and all that it was made from may have."""

    allow: tuple[LicenceName, ...] = Field(
        (),
        title="Allowed licences",
        description="Names as the Hub or SPDX writes them, such as apache-2.0; any other licence is refused. "
        "Without one, all are allowed.",
    )
    refuse: tuple[LicenceName, ...] = Field(
        (), title="Refused licences", description="Names that are refused wherever they are, such as cc-by-nc-4.0."
    )
    unknown: UnknownLicence = Field(
        UnknownLicence.WARN, title="Unknown licence", description="What to do if the source states no licence."
    )

    @model_validator(mode="after")
    def _are_single(self) -> Self:
        both = {name.lower() for name in self.allow} & {name.lower() for name in self.refuse}
        if both:
            raise ValueError(f"{sorted(both)[0]} is both allowed and refused")
        return self


RATIO, CHAT_RATIO = "perplexity ratio", "perplexity ratio on chats"  # what checks call them


class ChatQuality(Record):
    """How far a package is from its source on the answers in chats; prompts are read and not counted.

    Attributes:
        perplexity_ratio: perplexity of the package over that of its source; 1.0 is no loss.
        top1_agreement: share of the answers' tokens with the same most likely token, 0 to 1.
        chats: how many were read.
        tokens: how many of answers were compared, ends of turns included.
    """

    perplexity: float
    source_perplexity: float
    perplexity_ratio: float
    top1_agreement: float
    chats: int
    tokens: int


class Quality(Record):
    """How far a package is from its source on one text; logits compared position by position.

    Attributes:
        perplexity_ratio: perplexity of the package over that of its source; 1.0 is no loss.
        mean_kl: mean over tokens of KL(source || package), nats.
        p99_kl: its 99th percentile, nats.
        top1_agreement: share of positions with the same most likely token, 0 to 1.
        tokens: how many positions were compared.
        new_loops: greedy answers that repeat themselves where the source's do not.
        seconds_per_1000_tokens: what measuring the package costs; the source's share is paid once a snapshot.
        chats: on the answers in chats, None where none were given.
    """

    perplexity: float
    source_perplexity: float
    perplexity_ratio: float
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    tokens: int
    new_loops: int
    seconds_per_1000_tokens: float
    chats: ChatQuality | None = None


class QualityReport(Record):
    """The package loses no more than the policy allows, or the user gave a reason why it may.

    Attributes:
        quality: None where the package is the source's own bytes, which are compared instead.
        waiver: the reason for publishing all the same, else None.
        device: what the package ran on.
    """

    model: LoggedModel
    quality: Quality | None
    policy: QualityPolicy
    checks: tuple[Check, ...]
    waiver: str | None = None
    device: Device = CPU


class SmokeReport(Record):
    """The logged model was loaded by URI in a process of its own and answered; exists only if it did.

    Attributes:
        device: what it answered on, and so what the speed is the speed of.
    """

    model: LoggedModel
    checks: tuple[Check, ...]
    speed: Speed
    device: Device = CPU

    @property
    def own_speed(self) -> Speed | None:
        """The speed on what the target is for; None where something else stood in for it."""
        return self.speed if self.device.provider == self.model.package.target.provider else None


Status = Literal["published", "unchanged", "unproved", "refused", "failed"]


class UnprovedModel(Record):
    """A model that was logged, holds in all that its machine could prove, and waits for the hardware it is for.

    Attributes:
        reason: what it waits for, and how it is proved there.
    """

    name: str
    model_id: str
    target: Target
    recipe: str | None
    digest: str
    size_bytes: int
    quality: "QualityFigures | None"
    reason: str

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"


class PublishedVersion(Record):
    """A registered version whose alias was moved to it.

    Attributes:
        page_uri: the page with every proof, an artifact of the MLflow run.
        summary: that page in a few lines of Markdown.
        unhealthy: which published versions it takes the place of because they cannot be used, and why.
    """

    model: LoggedModel
    name: str
    version: int
    alias: str
    digest: str
    page_uri: str = ""
    summary: str = ""
    unhealthy: tuple[str, ...] = ()

    @property
    def model_uri(self) -> str:
        return f"models:/{self.name}@{self.alias}"


class QualityFigures(Record):
    """What `--json` tells of the quality; `Quality` says what the figures mean. Without chats there is none of them."""

    perplexity_ratio: float
    mean_kl: float
    top1_agreement: float
    chat_perplexity_ratio: float | None = Field(None, exclude_if=lambda value: value is None)


class Outcome(Record):
    """What became of one target: the object that `--json` prints.

    Attributes:
        seconds: wall time of each stage that ran.
        reason: why nothing was published, else None.
        unhealthy: which published versions this one takes the place of because they cannot be used, and why.
    """

    status: Status
    target: Target
    recipe: Recipe | None = None
    name: str | None = None
    version: int | None = None
    alias: str | None = None
    model_uri: str | None = None
    digest: str | None = None
    size_bytes: int | None = None
    quality: QualityFigures | None = None
    speed: Speed | None = None
    seconds: dict[str, float] = Field(default={})
    reason: str | None = None
    unhealthy: tuple[str, ...] = ()
