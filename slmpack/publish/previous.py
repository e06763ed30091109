"""Previous: what the same request ended with before: a published version, or a model that waits for its hardware.

    by the request's key, from the source's pin     nothing is fetched
    by the digests of what would be made            of a source that moved and has the same files

`known_outcome` is the first two stages of a packaging run by themselves. It answers in the time that MLflow takes to
import: nothing is fetched, and no Prefect run is started for it.
"""

import logging
from collections.abc import Sequence

from slmpack.errors import SlmpackError
from slmpack.log.experiment import require_experiment
from slmpack.publish.find import PublishedLookup, Search, alias_of, published_before
from slmpack.publish.outcome import StageTimer, previous_outcome
from slmpack.publish.request import Request
from slmpack.publish.request_key import resolved_request
from slmpack.publish.sign import needs_signing
from slmpack.publish.unproved import waiting_before
from slmpack.reports import Outcome, UnprovedModel
from slmpack.signing.keys import is_secret, read_key
from slmpack.source.logged_model import chats_of
from slmpack.source.resolve import resolve_source

logger = logging.getLogger(__name__)


def find_previous(request: Request, digests: Sequence[str] = ()) -> PublishedLookup | UnprovedModel | None:
    """Return what the same request ended with before; None with `force`.

    Args:
        digests: of the logged models that the request would make; none before its source is fetched.
    """
    if request.options.force:
        return None
    search = Search(
        name=request.registered,
        target=request.target,
        alias=alias_of(request.target, request.options.interface),
        fingerprint=request.fingerprint,
        request_key=request.request_key,
        digests=tuple(digests),
    )
    return published_before(search) or waiting_before(search)


def known_outcome(source: str, request: Request) -> Outcome | None:
    """Return the outcome of a request that nothing has to be done for, None where a run is needed.

    What may be the network's gives None as well: a run tries again.

    Raises:
        SlmpackError: a run would end with this error, too.
    """
    try:
        return _find(source, request)
    except SlmpackError:
        raise
    except Exception as error:
        logger.debug("the look before the run ended with %r", error)
        return None


def _find(source: str, request: Request) -> Outcome | None:
    stages = StageTimer()
    with stages.silently("resolve"):
        require_experiment()
        resolved = resolve_source(source, request.workspace)
        request = resolved_request(request, resolved, request.options.quality_chats or chats_of(resolved))
    with stages.silently("find"):
        found = find_previous(request)
        if isinstance(found, PublishedLookup) and _is_to_be_signed(found, request.options.signing_key):
            return None
    return None if found is None else previous_outcome(found, stages)


def _is_to_be_signed(found: PublishedLookup, signing_key: str | None) -> bool:
    """Say whether a run has to sign the version; a key in a block of Prefect's is known only there."""
    if signing_key is None:
        return False
    return is_secret(signing_key) or needs_signing(found.name, found.version, read_key(signing_key))
