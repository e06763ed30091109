"""Watch a training from within transformers' Trainer: its losses, its speed, and when it needs a checkpoint."""

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.errors import TrainError
from slmpack.progress import report
from slmpack.retrain.training.checkpoints import mark_whole
from slmpack.retrain.training.losses import LOSSES, TrainingPoint, read_points

if TYPE_CHECKING:
    from transformers import TrainerCallback


def watch_steps(folder: Path, save_seconds: float) -> "TrainerCallback":
    """Return the callback that reports every step, stops at a number that is not finite, and requests checkpoints.

    Args:
        folder: where the losses are written, and the checkpoints are.
        save_seconds: a checkpoint is written after so long.
    """
    from transformers import TrainerCallback

    watch = _StepWatch(folder)

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.begin(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = time.monotonic() - watch.saved >= save_seconds

        def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            logs: dict[str, float] = others["logs"]
            if "loss" in logs:  # else it is the summary at the end
                watch.require_finite(state, logs, args.learning_rate)
                watch.record(state, logs)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.save(state)

    return Callback()


class _StepWatch:
    """What the callback knows of a run: when it began, what an earlier run of it took, and the last checkpoint.

    `state` is transformers' `TrainerState`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began = self.saved = time.monotonic()
        self.first_step = self.first_tokens = 0
        self.earlier_seconds = 0.0

    def begin(self, state: Any) -> None:
        self.began = self.saved = time.monotonic()
        self.first_step, self.first_tokens = state.global_step, state.num_input_tokens_seen
        before = read_points(self.folder / LOSSES)
        self.earlier_seconds = before[-1].seconds if before else 0.0
        report("train", state.global_step, state.max_steps, "steps")

    def require_finite(self, state: Any, logs: dict[str, float], learning_rate: float) -> None:
        """Refuse a step without a finite loss and gradient, and remove the checkpoints, which would lead here again.

        Raises:
            TrainError: with the number and the step.
        """
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                for path in self.folder.glob("checkpoint-*"):
                    shutil.rmtree(path)
                raise TrainError(
                    f"the {name.replace('grad_norm', 'gradient')} is {logs[name]} at step {state.global_step} of "
                    f"{state.max_steps}",
                    "a finite number",
                    f"lower the learning rate ({learning_rate:g}), or look for what is odd in the chats",
                )

    def record(self, state: Any, logs: dict[str, float]) -> None:
        seconds, steps = time.monotonic() - self.began, state.global_step - self.first_step
        point = TrainingPoint(
            step=state.global_step,
            steps=state.max_steps,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            tokens=int(state.num_input_tokens_seen),
            seconds=self.earlier_seconds + seconds,
            tokens_per_second=(state.num_input_tokens_seen - self.first_tokens) / seconds,
            seconds_left=(state.max_steps - state.global_step) * seconds / steps,
        )
        with (self.folder / LOSSES).open("a") as file:
            file.write(point.model_dump_json() + "\n")
        report("train", point.step, point.steps, "steps")

    def save(self, state: Any) -> None:
        mark_whole(self.folder / f"checkpoint-{state.global_step}")
        self.saved = time.monotonic()
