"""How each stage runs under Prefect: retries, time limits, names. One library call each, no logic.

Telemetry is switched off before Prefect is imported by any of them.
"""

import logging

from slmpack.machine import surroundings

surroundings.prepare()
surroundings.collect_garbage_seldom()
surroundings.name_font_cache(None)  # a command has done so, by the workspace that it was given
logging.getLogger("slmpack").setLevel(logging.INFO)  # so that a run's log has the library's lines
