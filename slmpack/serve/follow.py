"""Follow: take up a new version behind an alias; the one before answers what it has begun, and is left then."""

import asyncio
import logging
from pathlib import Path

from slmpack.serve.downloads import remove_download
from slmpack.serve.locate import Located, locate, version_behind
from slmpack.serve.models import Models
from slmpack.serve.options import ServeOptions
from slmpack.serve.served_model import ServedModel, start_model

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
DRAIN_SECONDS = 0.2


async def follow(uri: str, models: Models, options: ServeOptions, workspace: Path) -> None:
    """Look at the alias again and again; a version that cannot be loaded is logged once and not taken up."""
    refused = None
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        model = models.find(uri)
        number = None
        try:
            number = await asyncio.to_thread(version_behind, uri)
            if number in (model.located.version, refused):
                continue
            located = await asyncio.to_thread(locate, uri, trust_code=options.trust_code)
            fresh = await _started(located, options, workspace)
        except Exception as error:  # the registry is away, or the version is damaged: the one before goes on
            refused = number
            logger.warning("%s: version %s is not taken up: %s", uri, number, error)
            continue
        before = models.put(fresh)
        logger.info("%s: version %s takes the place of %s", uri, number, model.located.version)
        if before is not None:
            await _leave(before)


async def _started(located: Located, options: ServeOptions, workspace: Path) -> ServedModel:
    try:
        return await start_model(located, options, workspace)
    except Exception:
        remove_download(located.folder)
        raise


async def _leave(model: ServedModel) -> None:
    """Wait for the last answer of a version, and end its process; what was downloaded for it goes."""
    while model.users:
        await asyncio.sleep(DRAIN_SECONDS)
    await model.engine.stop()
    await asyncio.to_thread(remove_download, model.located.folder)
