"""Retraining: what one retraining is about, and what became of it once it was measured."""

from slmpack.chats.dataset import ChatData
from slmpack.records import ModelSource, Record
from slmpack.retrain.evaluate import RetrainOutcome, RetrainPolicy, TunedFigures, retrain_key
from slmpack.retrain.training.settings import TrainSettings


class Retraining(Record):
    """What a run is about.

    Attributes:
        base: what is trained; `parent` is its registered version where it is one.
        key: see `retrain_key`.
    """

    name: str
    base: ModelSource
    data: ChatData
    settings: TrainSettings
    key: str

    @property
    def parent(self) -> str:
        return self.base.text if self.base.text.startswith("models:/") else self.base.shown


def retraining_of(
    name: str, base: ModelSource, data: ChatData, settings: TrainSettings, policy: RetrainPolicy
) -> Retraining:
    """Return the retraining of a registered model, with the key by which it is found again."""
    return Retraining(name=name, base=base, data=data, settings=settings, key=retrain_key(base, data, settings, policy))


def judged_outcome(
    retraining: Retraining, figures: TunedFigures, *, version: int | None = None, reason: str | None = None
) -> RetrainOutcome:
    """Describe a retraining that was measured: registered as `version`, or refused for `reason`."""
    if version is not None:
        return RetrainOutcome(status="published", name=retraining.name, version=version, figures=figures)
    data = retraining.data.digest
    return RetrainOutcome(status="refused", name=retraining.name, data=data, figures=figures, reason=reason)
