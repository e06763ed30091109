"""Unproved: a model that is logged, and waits for a machine with the hardware that it is for.

    slmpack.unproved on the logged model and its run      no version, no alias
    runs:/<run>/proof/unproved.json                       what was checked without that hardware

`slmpack verify` runs the rest there, by the same URI, and publishes it. Until then the same request finds it again.
"""

import json
from typing import TYPE_CHECKING

from slmpack.errors import HardwareError, PublishError
from slmpack.log.log import ready_models
from slmpack.log.tags import DIGEST, REFUSED, UNPROVED, version_tags
from slmpack.machine.hardware import unprovable_error
from slmpack.publish.find import FINGERPRINTS_TAG, Search, figures_in, fingerprints_in, key_tag, with_fingerprint
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.publish import figures_of, log_figures
from slmpack.records import LoggedModel, Target
from slmpack.reports import QualityFigures, UnprovedModel
from slmpack.source.mlflow_errors import final_errors
from slmpack.source.names import name_of_logged

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel as MlflowModel

CHECKS = "proof/unproved.json"


def leave_unproved(model: LoggedModel, proofs: Proofs, fingerprint: str, request_key: str) -> UnprovedModel:
    """Leave on the logged model and its run what it waits for, what was measured and what was checked.

    Args:
        fingerprint: what `waiting_before` finds an `auto` by.
        request_key: what it finds the model by before the source is fetched.

    Raises:
        PublishError: MLflow refuses.
    """
    from mlflow import MlflowClient

    client, figures = MlflowClient(), figures_of(None, proofs.quality.quality)
    with final_errors(PublishError, f"to mark {model.uri} as unproved"):
        log_figures(model, figures)
        client.log_text(model.run_id, json.dumps(proofs.table(), indent=1), CHECKS)
        client.set_logged_model_tags(model.model_id, version_tags(figures))
        target = model.package.target
        _remember(client.get_logged_model(model.model_id), fingerprint, target, request_key)
        client.set_tag(model.run_id, UNPROVED, target.provider)
        client.set_terminated(model.run_id, "FINISHED")
        client.set_logged_model_tags(model.model_id, {UNPROVED: target.provider})  # last: it is found by it
        return _described(client.get_logged_model(model.model_id), target)


def waiting_before(search: Search) -> UnprovedModel | None:
    """Return the newest model that the same request left unproved, by its key, or by digests where it has some.

    One that is found by its digest is found by the key the next time.
    """
    key, target = search.request_key, search.target
    if key is None:
        return None
    if not search.digests:
        waiting = _waiting(search.name, target, {key_tag(key): str(target)})
        return _described(waiting[0], target) if waiting else None
    for logged in (each for digest in search.digests for each in _waiting(search.name, target, {DIGEST: digest})):
        if search.counts(fingerprints_in(logged.tags)):
            _remember(logged, search.fingerprint, target, key)
            return _described(logged, target)
    return None


def _waiting(name: str, target: Target, tags: dict[str, str]) -> "list[MlflowModel]":
    """Return the models with those tags that wait for the target's hardware, if this machine lacks it too."""
    if unprovable_error(target) is None:
        return []
    found = ready_models(tags | {UNPROVED: target.provider})
    return [logged for logged in found if name_of_logged(logged) == name and not logged.tags.get(REFUSED)]


def _remember(logged: "MlflowModel", fingerprint: str, target: Target, request_key: str) -> None:
    from mlflow import MlflowClient

    tags = {FINGERPRINTS_TAG: with_fingerprint(logged.tags, fingerprint), key_tag(request_key): str(target)}
    MlflowClient().set_logged_model_tags(logged.model_id, tags)


def _described(logged: "MlflowModel", target: Target) -> UnprovedModel:
    tags, facts = logged.tags, logged.params
    return UnprovedModel(
        name=name_of_logged(logged),
        model_id=str(logged.model_id),
        target=target,
        recipe=None if facts["recipe"] == "none" else facts["recipe"],
        digest=str(tags[DIGEST]),
        size_bytes=int(facts["size_bytes"]),
        quality=figures_in(tags, QualityFigures),
        reason=_reason(f"models:/{logged.model_id}", target),
    )


def _reason(uri: str, target: Target) -> str:
    error = unprovable_error(target)
    found = str(error).partition(";")[0] if error else "another machine built it"
    return str(
        HardwareError(
            f"target {target} needs an NVIDIA GPU, and {found}",
            "one to prove it on",
            f"on a machine of the pool {target.provider}, type: slmpack verify {uri}",
        )
    )
