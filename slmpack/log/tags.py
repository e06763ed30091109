"""Version tags: the facts of a version, in a few tags for people and one for machines.

    slmpack.source, slmpack.target, slmpack.recipe, ...   what people read or filter by, and what a search needs
    slmpack.facts                                         every other fact, as one JSON object

MLflow's list of versions has a line a tag, so that 40 tags are a screen for each version. Versions of earlier releases
have a tag for each fact: `facts_in` reads both kinds.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from slmpack.figures import tag_of
from slmpack.plain_text import tag_text

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "slmpack."
FACTS = "slmpack.facts"
APART = frozenset(
    {
        "base",
        "data",
        "device",
        "digest",
        "licence",
        "model_id",
        "parent",
        "recipe",
        "retrained",
        "revision",
        "source",
        "target",
        "template_waiver",
        "waiver",
    }
)
# Tags of their own only where they are something else.
USUAL = {"exporter": "onnxruntime-genai", "interface": "chat"}
# With it all facts stay below 8,000 characters, where MLflow 3.17.2 cuts the tags of runs and of logged models; those
# of versions may have 100,000. Source: mlflow/utils/validation.py
TEXT_CHARACTERS = 2000


def version_tags(facts: Mapping[str, object]) -> dict[str, str]:
    """Return the tags that tell `facts`, by the names without prefix; floats with six digits."""
    apart = {name: value for name, value in facts.items() if name in APART or value != USUAL.get(name, value)}
    packed = {name: value for name, value in facts.items() if name not in apart}
    return {f"{PREFIX}{name}": tag_text(str(value)) for name, value in apart.items()} | {FACTS: _packed(packed)}


def facts_in(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the facts by the names without prefix, wherever the tags of a version or a logged model have them."""
    own = {key.removeprefix(PREFIX): value for key, value in tags.items() if key.startswith(PREFIX) and key != FACTS}
    return _unpacked(tags) | own


def with_more(tags: Mapping[str, str], facts: Mapping[str, object]) -> str:
    """Return the value of the tag FACTS with `facts` added."""
    return _packed({**_stored(tags), **facts})


def _packed(facts: Mapping[str, object]) -> str:
    return json.dumps({name: _short(value) for name, value in facts.items()}, ensure_ascii=False)


def _short(value: object) -> float | str:
    return float(tag_of(value)) if isinstance(value, float) else tag_text(str(value))[:TEXT_CHARACTERS]


def _unpacked(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: str(value) for name, value in _stored(tags).items()}


def _stored(tags: Mapping[str, str]) -> dict[str, object]:
    """Return the facts of the tag FACTS, texts and numbers; none where somebody wrote something else there."""
    try:
        found = json.loads(tags.get(FACTS, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def clear_version_tag(version: "ModelVersion", key: str) -> None:
    """Take a tag from a version, or leave it empty where this user may not delete: readers take both for none."""
    from mlflow import MlflowClient

    client = MlflowClient()
    _clear(
        lambda: client.delete_model_version_tag(version.name, version.version, key),
        lambda: client.set_model_version_tag(version.name, version.version, key, ""),
    )


def clear_logged_tag(model_id: str, key: str) -> None:
    """Take a tag from a logged model as `clear_version_tag` does."""
    from mlflow import MlflowClient

    client = MlflowClient()
    _clear(
        lambda: client.delete_logged_model_tag(model_id, key), lambda: client.set_logged_model_tags(model_id, {key: ""})
    )


def _clear(delete: Callable[[], object], empty: Callable[[], object]) -> None:
    """Delete, for which MLflow's basic auth wants the permission MANAGE; one who packages has EDIT."""
    from mlflow.exceptions import MlflowException

    try:
        delete()
    except MlflowException as error:
        if error.error_code != PERMISSION_DENIED:
            raise
        empty()


PERMISSION_DENIED = "PERMISSION_DENIED"


DIGEST = "slmpack.digest"


MODEL_ID = "slmpack.model_id"


APPROVED = "slmpack.approved."  # and an alias that people give: when a version got it, and who approved


VERSION_OF_LOGGED = "slmpack.version"  # of a logged model and its run: the number of the version that it became


SIGNED_BY = "slmpack.signed_by"  # the fingerprint of the key; for searches, since anybody who may tag can write it


UNPROVED = "slmpack.unproved"  # of a logged model: the hardware that it waits for


PUBLISHED = "slmpack.published"  # the alias that was moved to the version, when it was for the first time


SUPERSEDED_BY, HELD_ALIAS = "slmpack.superseded_by", "slmpack.held_alias"


HELD_SINCE, HELD_UNTIL = "slmpack.held_since", "slmpack.held_until"


REQUEST_KEY = "slmpack.wanted."  # and the first characters of a `request_key` that ended with the version; the alias


REFUSED = "slmpack.refused"


RETRAINED = "slmpack.retrained"  # the key of the retraining that a run or a version came from


RUN_ADDRESS = "prefect_address"
