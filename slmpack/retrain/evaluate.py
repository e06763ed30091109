"""Retrain: whether a tuned model goes on to the targets, and which run has settled the same question before.

    perplexity of answers that were held out, and of the general text:   base | in use | tuned
    policy: better by enough on the first, not worse by too much on the second, both against the model in use

What is in use is the version of the registered model with the alias `tuned`; before there is one, it is the base.
"""

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from slmpack.chats.dataset import ChatData
from slmpack.errors import QualityError
from slmpack.figures import perplexity_shown, ratio_shown
from slmpack.log.experiment import EXPERIMENT
from slmpack.log.health import clear_version, damage_of, mark_version
from slmpack.log.tags import REFUSED, RETRAINED
from slmpack.log.versions import versions_with
from slmpack.records import ModelSource, Record, Target, digest_of
from slmpack.reports import Outcome, Status
from slmpack.retrain.training.settings import TrainSettings
from slmpack.source.mlflow_errors import is_absent

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

TUNED_ALIAS = "tuned"
KEY_CHARACTERS = 24


class RetrainPolicy(Record):
    """How much better a tuned model has to be before anything moves."""

    min_gain: float = Field(
        0.02, ge=0.0, lt=1.0, description="The held-out perplexity must fall by this share of that in use: 0.02 is 2 %."
    )
    max_forgetting: float = Field(
        0.25, ge=0.0, le=100.0, description="The general perplexity may rise by this share of that in use."
    )


class Perplexities(Record):
    """What each model says of one text; `in_use` is the base's where nothing else is in use."""

    base: float
    in_use: float
    tuned: float

    @property
    def ratio(self) -> float:
        """The tuned model's over that of the model in use: below 1 is better."""
        return self.tuned / self.in_use

    @property
    def shown(self) -> str:
        """The tuned model's and that in use."""
        return f"{perplexity_shown(self.tuned)} (in use {perplexity_shown(self.in_use)})"

    def compared(self, text: str) -> str:
        """Say how the tuned model stands to the one in use on `text`."""
        return f"a {text} perplexity of {perplexity_shown(self.tuned)}, {ratio_shown(self.ratio)} times that in use"


class TunedFigures(Record):
    """Of the answers in the held-out chats, and of the built-in general text."""

    held_out: Perplexities
    general: Perplexities

    def metrics(self) -> dict[str, float]:
        """Return them by the names that MLflow's metrics have."""
        return {
            f"{text}_perplexity_{model}": value
            for text, measured in (("held_out", self.held_out), ("general", self.general))
            for model, value in measured.model_dump().items()
        }

    @property
    def summary(self) -> str:
        """Both in words."""
        parts = (("held out", self.held_out), ("general", self.general))
        return ", ".join(f"{name} {found.shown}" for name, found in parts)


class RetrainOutcome(Record):
    """What became of a retraining: the object that `--json` prints.

    Attributes:
        version: of the registered model, the tuned one.
        figures: None where nothing was measured in this run.
        targets: what became of each target.
        reason: why nothing is better or nothing moved, else None.
        settled: all of that is known from a run before; nothing was trained or built.
    """

    status: Status
    name: str | None = None
    version: int | None = None
    model_uri: str | None = None
    data: str | None = None
    figures: TunedFigures | None = None
    targets: tuple[Outcome, ...] = ()
    seconds: dict[str, float] = Field(default={})
    reason: str | None = None
    settled: bool = False

    @property
    def registered(self) -> tuple[str, int]:
        """The registered model's name and the number of its version, once there is one."""
        assert self.name is not None
        assert self.version is not None
        return self.name, self.version

    def finished(self, data: str, seconds: dict[str, float]) -> "RetrainOutcome":
        """Return the outcome at the end of the run.

        Args:
            data: the digest of the chats, unless some of them could not be learnt from.
            seconds: wall time of each stage.
        """
        return self.model_copy(update={"data": self.data or data, "seconds": seconds})

    @property
    def tuned_uri(self) -> str:
        """Where the tuned version is."""
        return f"models:/{self.name}/{self.version}"


class PreviousResult(Record):
    """A retraining that came to an end before.

    Attributes:
        version: what it published; None if the policy refused it.
        reason: of the refusal.
    """

    version: int | None
    reason: str | None


def retrain_key(base: ModelSource, data: ChatData, settings: TrainSettings, policy: RetrainPolicy) -> str:
    """Return one digest of the base's exact content, the chats and all that is done with them."""
    pin = [base.kind, base.location if not base.is_local else None, base.revision, base.member]
    terms = [settings.learnt_by(), policy.model_dump(), data.policy.model_dump()]
    return digest_of([pin, data.digest, terms])[:KEY_CHARACTERS]


def find_previous_result(name: str, key: str) -> PreviousResult | None:
    """Return how the same retraining ended before, wherever it ran."""
    if found := usable_versions(name, key):
        return PreviousResult(version=int(found[-1].version), reason=None)
    run = _refused_run(name, key)
    return None if run is None else PreviousResult(version=None, reason=run.data.tags[REFUSED])


def settled_outcome(name: str, settled: PreviousResult) -> RetrainOutcome:
    """Describe a retraining that came to its end before."""
    if settled.version is None:
        return RetrainOutcome(status="refused", name=name, reason=settled.reason, settled=True)
    return RetrainOutcome(status="unchanged", name=name, version=settled.version, settled=True)


def packaged_outcome(
    outcome: RetrainOutcome, packages: Sequence[Outcome], refused: Container[Target]
) -> RetrainOutcome:
    """Return the outcome of a retraining once its version is packaged.

    Args:
        packages: what became of each target.
        refused: the targets that were not tried, since the version was refused for them before.
    """
    bad = [f"{each.target}: {each.reason}" for each in packages if each.reason is not None]
    has_moved = outcome.status == "published" or any(each.status == "published" for each in packages)
    nothing_done = all(each.target in refused or each.status == "unchanged" for each in packages)
    return outcome.model_copy(
        update={
            "status": "failed" if bad else "published" if has_moved else "unchanged",
            "model_uri": outcome.tuned_uri,
            "targets": tuple(packages),
            "reason": "; ".join(bad) or None,
            "settled": outcome.settled and nothing_done,
        }
    )


def usable_versions(name: str, key: str) -> "list[ModelVersion]":
    """Return the versions of a retraining whose files are all there, lowest number first; the others are marked."""
    return [version for version in versions_with(name, RETRAINED, key) if _is_usable(version)]


def _is_usable(version: "ModelVersion") -> bool:
    damage = damage_of(str(version.source).removeprefix("models:/"))
    if damage is None:
        clear_version(version)
    else:
        mark_version(version, damage)
    return damage is None


def _refused_run(name: str, key: str) -> "Run | None":
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{RETRAINED}` = '{key}'")
    return next((run for run in runs if REFUSED in run.data.tags and run.data.params.get("name") == name), None)


def version_in_use(name: str) -> int | None:
    """Return the number of the tuned version in use, None before there is one or if that one's files are gone."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        version: ModelVersion = MlflowClient().get_model_version_by_alias(name, TUNED_ALIAS)
    except MlflowException as error:
        if is_absent(error):
            return None
        raise
    if RETRAINED in version.tags and not _is_usable(version):
        return None
    return int(version.version)


def judge_tuned(figures: TunedFigures, policy: RetrainPolicy) -> None:
    """Hold the figures against the policy.

    Raises:
        QualityError: it is not better by enough, or has forgotten too much.
    """
    if figures.held_out.ratio > 1.0 - policy.min_gain:
        raise QualityError(
            figures.held_out.compared("held-out"),
            f"at most {ratio_shown(1.0 - policy.min_gain)} times {perplexity_shown(figures.held_out.in_use)}",
            "nothing moves; look at the data, or train longer",
        )
    if figures.general.ratio > 1.0 + policy.max_forgetting:
        raise QualityError(
            figures.general.compared("general"),
            f"at most {ratio_shown(1.0 + policy.max_forgetting)} times {perplexity_shown(figures.general.in_use)}",
            "nothing moves; train less, or mix general chats into the data",
        )


def refusal_reason(figures: TunedFigures, policy: RetrainPolicy) -> str | None:
    """Return why the policy refuses the tuned model, None if it is better."""
    try:
        judge_tuned(figures, policy)
    except QualityError as refusal:
        return str(refusal)
    return None


def describe_retraining(outcome: RetrainOutcome) -> str:
    """Say in one line what became of a retraining."""
    figures = f"; perplexity {outcome.figures.summary}" if outcome.figures else ""
    if outcome.settled and outcome.reason is not None:
        return f"refused before: {outcome.reason}"
    if outcome.version is None:
        return f"{outcome.status}: {outcome.reason}{figures}"
    good = sum(target.reason is None for target in outcome.targets)
    packaged = f"; {good} of {len(outcome.targets)} targets published" if outcome.targets else ""
    return f"{outcome.status}: {outcome.name} version {outcome.version}{figures}{packaged}"
