"""Log a checkpoint that is no package of its own: a shared snapshot, or a tuned model.

snapshot --transformers flavour--> logged model, READY; its run FINISHED
"""

from pathlib import Path

from slmpack.checkpoint.package import checkpoint_package
from slmpack.errors import LogError
from slmpack.log.log import log_model
from slmpack.records import Interface, LoggedModel, Snapshot
from slmpack.source.mlflow_errors import final_errors


def log_checkpoint(snapshot: Snapshot, name: str, workspace: Path, tags: dict[str, str]) -> LoggedModel:
    """Log a snapshot by MLflow's transformers flavour, its licence and chat template with it, and end its run.

    Args:
        snapshot: the checkpoint to log; its files are linked where the artifact store is a folder of this machine.
        name: the registered model that it is meant for.
        workspace: where the logged model is put together.
        tags: become tags of the run and the model, each under `slmpack.` and its key.

    Raises:
        UsageError: MLflow would refuse the name.
        LogError: MLflow would not take the model, or its artifact store has no room or no permission.
    """
    from mlflow import MlflowClient

    model = log_model(checkpoint_package(snapshot), Interface.CHAT, name, workspace, tags)
    with final_errors(LogError, "to end the run of the checkpoint"):
        MlflowClient().set_terminated(model.run_id, "FINISHED")
    return model
