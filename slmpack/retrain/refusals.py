"""Refusals: the targets that a tuned version was refused for, so that no poll builds, logs and measures them again.

    slmpack.refused.<key> on the tuned version = the reason      key: target, recipes, builders, policy, chats, waiver

A target that failed for another reason is tried again: a full disk may have room tomorrow.
"""

from collections.abc import Iterable, Mapping

from slmpack.build.select import recipe_digest
from slmpack.errors import PublishError
from slmpack.log.tags import REFUSED
from slmpack.publish.request import check_request
from slmpack.records import Interface, Outcome, QualityPolicy, Recipe, Record, Target, digest_of
from slmpack.source.mlflow_errors import final_errors
from slmpack.targets import recipe_for

KEY_CHARACTERS = 24
REASON_CHARACTERS = 1000


class PackageTerms(Record):
    """How the packages of a tuned version are judged.

    Attributes:
        chats: those that the version itself names, see `mlflow_source.chats_of`.
    """

    policy: QualityPolicy
    waiver: str | None
    chats: str | None

    def tag_of(self, target: Target) -> str:
        """Return the tag of a target's refusal; it changes with all that could change the refusal."""
        request = check_request(
            target, recipe_for(target, Recipe.AUTO), Interface.CHAT, None, None, policy=self.policy, quality_text=None,
            waive_quality=self.waiver, quality_chats=self.chats,
        )  # fmt: skip
        recipes = [recipe_digest(target, recipe) for recipe in request.ladder]
        return f"{REFUSED}.{digest_of([target, recipes, request.asked, request.waiver])[:KEY_CHARACTERS]}"


def find_refusals(name: str, version: int, targets: Iterable[Target], asked: PackageTerms) -> dict[Target, Outcome]:
    """Return what is known of the targets that the same request was refused for.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    with final_errors(PublishError, f"to show {name} version {version}"):
        tags: Mapping[str, str] = MlflowClient().get_model_version(name, str(version)).tags
    return {
        target: Outcome(status="refused", target=target, name=name, reason=tags[tag])
        for target in targets
        if (tag := asked.tag_of(target)) in tags
    }


def remember_refusals(name: str, version: int, outcomes: Iterable[Outcome], asked: PackageTerms) -> None:
    """Leave on the tuned version which targets it was refused for, and why; the same call again changes nothing.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    with final_errors(PublishError, f"to tag {name} version {version}"):
        for outcome in outcomes:
            if outcome.status == "refused" and outcome.reason is not None:
                reason = outcome.reason[:REASON_CHARACTERS]
                MlflowClient().set_model_version_tag(name, str(version), asked.tag_of(outcome.target), reason)
