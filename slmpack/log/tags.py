"""Version tags: the facts of a version, in a few tags for people and one for machines.

    slmpack.source, slmpack.target, slmpack.recipe, ...   what people read or filter by, and what a search needs
    slmpack.facts                                         every other fact, as one JSON object

MLflow's list of versions has a line a tag, so that 40 tags are a screen for each version. Versions of earlier releases
have a tag for each fact: `facts_in` reads both kinds.
"""

import json
from collections.abc import Mapping

from slmpack.figures import tag_of
from slmpack.plain_text import tag_text

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
    return _packed({**_unpacked(tags), **facts})


def _packed(facts: Mapping[str, object]) -> str:
    return json.dumps({name: _short(value) for name, value in facts.items()}, ensure_ascii=False)


def _short(value: object) -> float | str:
    return float(tag_of(value)) if isinstance(value, float) else tag_text(str(value))[:TEXT_CHARACTERS]


def _unpacked(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the facts of the tag FACTS; none where somebody wrote something else there."""
    try:
        found = json.loads(tags.get(FACTS, "{}"))
    except (ValueError, RecursionError):
        return {}
    return {name: str(value) for name, value in found.items()} if isinstance(found, dict) else {}


DIGEST = "slmpack.digest"


MODEL_ID = "slmpack.model_id"


UNPROVED = "slmpack.unproved"  # of a logged model: the hardware that it waits for


PUBLISHED = "slmpack.published"  # the alias that was moved to the version, when it was for the first time


SUPERSEDED_BY, HELD_ALIAS = "slmpack.superseded_by", "slmpack.held_alias"


HELD_SINCE, HELD_UNTIL = "slmpack.held_since", "slmpack.held_until"


WANTED = "slmpack.wanted."  # and the first characters of a `wanted_key` that ended with the version; the alias


REFUSED = "slmpack.refused"


RUN_ADDRESS = "prefect_address"
