"""Known outcome: what a run would end with at once, because it was published before, or waits for its hardware.

    resolve -> find      the first two stages of a packaging run, by themselves

It answers in the time that MLflow takes to import: nothing is fetched, and no Prefect run is started for it.
"""

import logging

from slmpack.errors import SlmpackError
from slmpack.log.experiment import require_experiment
from slmpack.publish.find import alias_of, find_wanted
from slmpack.publish.outcome import Stages, unchanged_outcome, unproved_outcome
from slmpack.publish.request import Request, on_chats, registered_name
from slmpack.publish.unproved import find_unproved_wanted
from slmpack.publish.wanted import wanted_key
from slmpack.records import Interface, Outcome, Target
from slmpack.source.logged_model import chats_of
from slmpack.source.resolve import resolve_source

logger = logging.getLogger(__name__)


def known_outcome(source: str, target: Target, interface: Interface, request: Request) -> Outcome | None:
    """Return the outcome of a request that nothing has to be done for, None where a run is needed.

    What may be the network's gives None as well: a run tries again.

    Raises:
        SlmpackError: a run would end with this error, too.
    """
    try:
        return _find(source, target, interface, request)
    except SlmpackError:
        raise
    except Exception as error:
        logger.debug("the look before the run ended with %r", error)
        return None


def _find(source: str, target: Target, interface: Interface, request: Request) -> Outcome | None:
    stages = Stages()
    with stages.silently("resolve"):
        require_experiment()
        resolved = resolve_source(source, request.workspace)
        name = registered_name(request.name, resolved)
        if request.quality_chats is None and (chats := chats_of(resolved)):
            request = on_chats(request, chats)
    with stages.silently("find"):
        wanted = wanted_key(resolved, target, interface, request)
        found = find_wanted(name, wanted, alias_of(target, interface))
        waiting = None if found else find_unproved_wanted(name, target, wanted)
    if found is not None:
        return unchanged_outcome(found, stages)
    return None if waiting is None else unproved_outcome(waiting, stages)
