"""Wanted: what a run would publish, known from the source's pin alone: nothing has to be fetched to find it again."""

from slmpack.build.select import recipe_digest
from slmpack.log.log import logged_digest
from slmpack.publish.request import Request
from slmpack.records import Interface, ModelSource, Target, digest_of
from slmpack.source.fetch import snapshot_key


def wanted_key(source: ModelSource, target: Target, interface: Interface, request: Request) -> str:
    """Return one digest of the source's exact content and of everything that a run would do with it.

    It changes with the source's revision, the recipes, the builder's and the runtime's versions, the wrapper's code,
    the quality policy and the texts.
    """
    recipes = [recipe_digest(target, recipe, request.calibration_text) for recipe in request.ladder]
    logged = [logged_digest(digest, interface, target) for digest in recipes]
    return digest_of([snapshot_key(source), logged, request.asked])
