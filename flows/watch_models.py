"""Watch registered models: a new source is announced to Prefect, whose automation packages it for all targets.

    every ten minutes:  newest source of each model -> announced before? nothing -> event -> tag of the version
    automation:         event `slmpack.source.version` -> run of `package-all` with that source and name

A poll, and not MLflow's webhooks. Those need an MLflow server, https, a public address and a key to encrypt secrets
with, and they lose what happens while the receiver is down. A poll needs nothing but the registry, be it a server or a
plain database, survives the restart of anything, and may be done twice.

First the event, then the tag: a run that is killed in between announces the version again, and packaging it again
ends as `unchanged`. The other order would lose it.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.parameters import WatchedNames
from slmpack.publish.watch import WatchResult, failed_look, summary_of
from tasks.watch import announce_version, await_registry, find_new_version, find_watched, mark_announced


@flow(name="watch-models")
def watch_models(
    names: WatchedNames = [],  # noqa: B006 - Prefect copies it, and the form shows it
) -> State[Any]:
    """Announce the newest source of every watched model, once; Failed, with what was wrong, if one was not looked at.

    It emits the event `slmpack.source.version` with `source`, `name` and `version`, and then tags the version
    `slmpack.announced`. Packages of ours and older sources are never announced.
    """
    await_registry()
    looks = [check_model(name) for name in find_watched(names)]
    ended = Completed if all(look.reason is None for look in looks) else Failed
    return ended(message=summary_of(looks), data=looks)


def check_model(name: str) -> WatchResult:
    """Announce the newest source of `name` if it is new; report an error, and go on with the other models."""
    try:
        found = find_new_version(name)
        if found is None:
            return WatchResult(name=name)
        announce_version(found)
        mark_announced(found)
    except Exception as error:
        return failed_look(name, error)
    return WatchResult(name=name, announced=found.source)
