"""What runs, in which order. Telemetry is switched off before Prefect is imported."""

from slmpack import telemetry

telemetry.switch_off()
