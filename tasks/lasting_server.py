"""Which Prefect server a run talks to: one that lasts, or the temporary one of a command."""

import os

from prefect.settings import get_current_settings

from slmpack.machine.surroundings import TEMPORARY_PREFECT


def has_lasting_server() -> bool:
    """Say whether the run's server is there when the run has ended."""
    return get_current_settings().api.url is not None and TEMPORARY_PREFECT not in os.environ
