"""A retraining's metrics in MLflow: each step of its loss, once."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from slmpack.retrain.mlflow_run import tell_losses
from slmpack.retrain.training.losses import TrainingPoint


def point(step: int, steps: int) -> TrainingPoint:
    return TrainingPoint(step=step, steps=steps, loss=1 / step, learning_rate=1e-3, tokens=step, seconds=step,
                         tokens_per_second=1.0, seconds_left=0.0)  # fmt: skip


@pytest.mark.slow
def test_a_training_that_goes_on_tells_each_step_once(mlflow_store: Path) -> None:
    client = MlflowClient()
    run = client.create_run("0").info.run_id
    before_it_was_killed, again = tell_losses(run), tell_losses(run)
    for step in (1, 2):
        before_it_was_killed(point(step, steps=2))
    for step in (1, 2, 3, 4):
        again(point(step, steps=4))
    assert [each.step for each in client.get_metric_history(run, "train_loss")] == [1, 2, 3, 4]
    assert len(client.get_metric_history(run, "learning_rate")) == 4
