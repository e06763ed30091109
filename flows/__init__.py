"""What runs, in which order. Telemetry is switched off before Prefect is imported."""

from slmpack import surroundings

surroundings.prepare()
