"""Request key: one digest of a request and its source's exact content, known before anything is fetched."""

from slmpack.build.build import package_digest
from slmpack.build.select import recipe_digest
from slmpack.log.log import logged_digest
from slmpack.publish.request import Request, registered_name, with_quality_chats
from slmpack.records import ModelSource, Snapshot, digest_of
from slmpack.source.fetch import snapshot_key
from slmpack.source.licences import check_source


def resolved_request(request: Request, source: ModelSource, chats: str | None) -> Request:
    """Return the request with all that only its resolved source tells: the name, the chats and the key.

    Args:
        chats: those that the source names, None if it names none.

    Raises:
        LicenceError: the licence policy refuses what the source states.
        UsageError: the source gives no name that says which model it is, or names chats that may change.
    """
    check_source(source, request.options.licences)
    named = request.model_copy(update={"name": registered_name(request.name, source)})
    complete = with_quality_chats(named, chats)
    return complete.model_copy(update={"request_key": request_key(source, complete)})


def request_key(source: ModelSource, request: Request) -> str:
    """Return one digest of the source's exact content and of everything that a run would do with it.

    It changes with the source's revision, the recipes, the builder's and the runtime's versions, the wrapper's code,
    the policies and the texts.
    """
    recipes = [recipe_digest(request.target, recipe, request.calibration) for recipe in request.recipes_to_try]
    return digest_of([snapshot_key(source), _logged(recipes, request), request.fingerprint, *request.licence_terms])


def content_digests(snapshot: Snapshot, request: Request) -> tuple[str, ...]:
    """Return the digest of the logged model that each recipe would make of the fetched files."""
    packages = [
        package_digest(snapshot, request.target, recipe, request.calibration) for recipe in request.recipes_to_try
    ]
    return tuple(_logged(packages, request))


def _logged(digests: list[str], request: Request) -> list[str]:
    return [logged_digest(digest, request.options.interface, request.target) for digest in digests]
