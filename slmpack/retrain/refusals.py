"""Refusals: the targets that a tuned version was refused for, so that no poll builds, logs and measures them again.

    slmpack.refused.<key> on the tuned version = the reason      key: target, recipes, builders, policy, chats, waiver

A target that failed for another reason is tried again: a full disk may have room tomorrow.
"""

from collections.abc import Iterable, Mapping

from slmpack.build.select import recipe_digest
from slmpack.errors import PublishError
from slmpack.log.tags import REFUSED
from slmpack.publish.request import Request
from slmpack.records import Interface, Target, digest_of
from slmpack.reports import Outcome
from slmpack.source.mlflow_errors import final_errors

KEY_CHARACTERS = 24
REASON_CHARACTERS = 1000


def tag_of(request: Request) -> str:
    """Return the tag of a refusal; it changes with all that could change the refusal."""
    target, interface = request.target, request.options.interface
    recipes = [recipe_digest(target, recipe, request.calibration) for recipe in request.recipes_to_try]
    terms: list[object] = [target, recipes, request.fingerprint, request.waiver]
    terms += [] if interface is Interface.CHAT else [interface]  # as tags were before there was a choice
    terms += [] if request.options.waive_template is None else [request.options.waive_template]  # as well
    terms += request.licence_terms
    return f"{REFUSED}.{digest_of(terms)[:KEY_CHARACTERS]}"


def find_refusals(name: str, version: int, requests: Iterable[Request]) -> dict[Target, Outcome]:
    """Return the targets whose request was refused before.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    with final_errors(PublishError, f"to show {name} version {version}"):
        tags: Mapping[str, str] = MlflowClient().get_model_version(name, str(version)).tags
    return {
        request.target: Outcome(status="refused", target=request.target, name=name, reason=tags[tag])
        for request in requests
        if (tag := tag_of(request)) in tags
    }


def remember_refusals(name: str, version: int, outcomes: Iterable[Outcome], requests: Iterable[Request]) -> None:
    """Leave on the tuned version which targets it was refused for, and why; the same call again changes nothing.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    tags = {request.target: tag_of(request) for request in requests}
    with final_errors(PublishError, f"to tag {name} version {version}"):
        for outcome in outcomes:
            if outcome.status == "refused" and outcome.reason is not None:
                reason = outcome.reason[:REASON_CHARACTERS]
                MlflowClient().set_model_version_tag(name, str(version), tags[outcome.target], reason)
