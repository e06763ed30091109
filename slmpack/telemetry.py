"""Nothing leaves the machine unasked: switches off what our dependencies would send home."""

import os

SWITCHES = {
    "DO_NOT_TRACK": "true",  # Prefect's client, the Hub's client, MLflow
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # Prefect's server does not heed DO_NOT_TRACK
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # heeded where it is set before the import; the runtime's own call changes nothing
}


def switch_off() -> None:
    """Set the switches for this process and its children, before Prefect, MLflow or the Hub client are imported."""
    os.environ.update(SWITCHES)
