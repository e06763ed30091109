"""How each stage runs under Prefect: retries, time limits, names. One library call each, no logic.

Telemetry is switched off before Prefect is imported by any of them.
"""

import logging

from slmpack import surroundings

surroundings.prepare()
logging.getLogger("slmpack").setLevel(logging.INFO)  # so that a run's log has the library's lines
