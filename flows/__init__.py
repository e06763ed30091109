"""What runs, in which order. Telemetry is switched off before Prefect is imported."""

from slmpack.machine import surroundings

surroundings.prepare()
surroundings.collect_garbage_seldom()
