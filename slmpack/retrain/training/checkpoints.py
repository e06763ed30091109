"""Checkpoints of a training: which one a killed run goes on from, and what room they take.

    <workspace>/training/<key>/     for its owner alone, removed when the result is stored
        losses.jsonl                a line a step
        precision.txt               of the base
        checkpoint-<step>/          transformers' own; the last `KEPT`
            adapter_model.safetensors or model.safetensors, trainer_state.json
            optimizer.pt, scheduler.pt, rng_state.pth   read back with weights_only, which runs no code
            whole                   written last: without it the folder is half one, and not used
        tuned/                      what training made, until it is stored; training.json is written last

transformers writes the optimizer's state with torch.save. Nobody else's is ever read: the folder is made here, under a
key that covers all that went into it. Its arguments, a pickle that nothing reads, are removed.
"""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from slmpack.errors import WorkspaceError
from slmpack.machine.private import folder_in

KEPT = 2  # so that one is whole while another is written
WHOLE = "whole"
PICKLED_ARGUMENTS = "training_args.bin"
OPTIMIZER_COPIES = 3  # the weight and Adam's two moments, float32
NO_ROOM = ("No space left on device", "PytorchStreamWriter failed", "unexpected pos", "File too large")


def training_folder(workspace: Path, key: str) -> Path:
    """Return the folder of a training, made if need be, for its owner alone."""
    folder = folder_in(workspace, "training", key)
    folder.chmod(0o700)
    return folder


def last_whole(folder: Path) -> tuple[int, Path] | None:
    """Return the last checkpoint that is whole and its step, None if there is none; half ones are removed."""
    steps = {}
    for path in folder.glob("checkpoint-*"):
        if (path / WHOLE).is_file():
            steps[step_of(path)] = path
        else:
            shutil.rmtree(path)
    return max(steps.items()) if steps else None


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def mark_whole(checkpoint: Path) -> None:
    """Sync a checkpoint's files, then say that it is whole."""
    (checkpoint / PICKLED_ARGUMENTS).unlink(missing_ok=True)
    for path in [*checkpoint.rglob("*"), checkpoint]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    (checkpoint / WHOLE).touch()


def needed_bytes(snapshot_bytes: int, trained: int, whole_model: bool) -> int:
    """Return the room that a training takes: checkpoints, what comes of it, and its copy in the store.

    Args:
        trained: how many weights are trained.
        whole_model: whether they are the model's own, and not an adapter's.
    """
    checkpoints = (KEPT + 1) * OPTIMIZER_COPIES * 4 * trained
    return checkpoints + snapshot_bytes * (2 if whole_model else 1)


def no_room(error: BaseException, folder: Path) -> WorkspaceError | None:
    """Return our error for a full disk, None for another failure; torch and safetensors do not raise OSError."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if not full and not any(sign in str(error) for sign in NO_ROOM):
        return None
    return WorkspaceError(
        f"no room for a checkpoint in {folder} ({shutil.disk_usage(folder).free:,} bytes are free)",
        "room for three of them",
        "free some space or name another --workspace; the run then goes on where it was",
    )


def adapter_parameters(matrices: Mapping[str, tuple[int, int]], rank: int) -> int:
    """Return how many weights a LoRA of `rank` has that changes these matrices, `[out, in]` each."""
    return sum(rank * (rows + columns) for rows, columns in matrices.values())
