"""Chats as somebody logs them who keeps them in MLflow."""

from pathlib import Path

import mlflow
import pandas as pd
from mlflow.data.pandas_dataset import from_pandas


def log_chats(file: Path, name: str, *, source: str | None = None, artifact: bool = True) -> str:
    """Log chats as somebody does who keeps them in MLflow; return the run's id."""
    chats = pd.read_json(file, lines=True)
    with mlflow.start_run() as run:
        if artifact:
            mlflow.log_artifact(str(file))
        mlflow.log_input(from_pandas(chats, source=source or str(file), name=name))
    return str(run.info.run_id)
