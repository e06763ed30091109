"""Train: a model and chats become a tuned model, a whole checkpoint that can be logged and packaged.

    <workspace>/tunings/<key>/
        model.safetensors, ...     the tuned weights in the base's precision
        config.json, tokenizer, chat template, licence   the base's, byte for byte
        README.md                  its licence and its base, as the Hub writes them
        adapter/                   the LoRA alone, if it is one
        training.json              `Training`: settings, versions, loss curve

The key covers the base, the chats, the settings and the versions of what trains, so the same training is run once. It
runs in a process of its own and writes checkpoints to <workspace>/training/<key>/ (see `checkpoints`): a run that
was killed goes on from the last of them.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from slmpack.checkpoint.headers import INDEX, is_weights
from slmpack.checkpoint.inspect import relevant_files
from slmpack.checkpoint.sizes import sizes_of
from slmpack.checkpoint.windows import dtype_of
from slmpack.errors import SourceError, TrainError
from slmpack.machine.at_rest import unchanged
from slmpack.machine.child import ChildRun, run_in_child
from slmpack.machine.limits import limit_seconds
from slmpack.machine.store import Facts, log_folder, require_space, sha256_of, store_folder
from slmpack.records import Record, Snapshot, digest_of
from slmpack.retrain.training.checkpoints import last_whole, needed_bytes, no_room, step_of, training_folder
from slmpack.retrain.training.losses import LOSSES, OnPoint, TrainingPoint, following, read_points, write_points
from slmpack.retrain.training.memory import trained_parameters
from slmpack.retrain.training.settings import TrainSettings
from slmpack.retrain.training.trainer import ADAPTER, TUNED, TrainRequest, TrainResult, run_training
from slmpack.source.merge_adapter import MergeRequest, merge_adapter

logger = logging.getLogger(__name__)

LAYOUT = 1  # of the folder and of what is done; another number trains all again
TRAIN_LIMIT_SECONDS = 24 * 3600.0
MERGE_LIMIT_SECONDS = 3600.0
LOG_SECONDS = 30.0
TRAINERS = ("torch", "transformers", "peft", "accelerate")
TRAINING = "training.json"
CARD = "README.md"


class Training(TrainResult):
    """How a tuned model came to be: what the process tells, and what went in.

    Attributes:
        base: digest of the snapshot.
        data: sha256 of the file of chats.
        versions: of what trained, name to version.
        seconds: trained, interruptions left out.
        peak_private_bytes: of the training's process; after an interruption, of its last part.
        resumed_at: the step that the last part went on from, None if there was one part.
        curve: a point a step.
    """

    base: str
    data: str
    settings: TrainSettings
    versions: dict[str, str]
    seconds: float
    peak_private_bytes: int
    resumed_at: int | None
    curve: tuple[TrainingPoint, ...]


class Tuned(Record):
    """A tuned model in the workspace: a checkpoint in Hugging Face's layout.

    Attributes:
        key: what it is of: base, chats, settings, versions.
        path: the folder, read-only.
        steps: of training.
        first_loss: of the first step, nats a token, and `last_loss` of the last: means over a batch each.
        seconds: trained.
    """

    key: str
    path: Path
    steps: int
    first_loss: float
    last_loss: float
    seconds: float


def read_training(tuned: Path) -> Training:
    """Return how a tuned model came to be."""
    return Training.model_validate_json((tuned / TRAINING).read_text())


def train_adapter(
    snapshot: Snapshot,
    chats: Path,
    settings: TrainSettings,
    workspace: Path,
    on_point: OnPoint = lambda _: None,
) -> Tuned:
    """Return `snapshot` tuned on chats, trained unless the workspace has it; a killed run goes on.

    Args:
        chats: JSON Lines, an object with `messages` a line, checked before.
        on_point: called with every step's point, in another thread; not if nothing is trained.

    Raises:
        TrainError: the loss is not finite, the chats cannot be read with the model's template, too little memory, or
            the process died.
        SourceError: the adapter, merged, does not say what it says beside its base, or a file of the base changed.
        WorkspaceError: no room, or the snapshot is gone.
    """
    data = sha256_of(chats)
    versions = {name: version(name) for name in TRAINERS}
    key = digest_of([LAYOUT, snapshot.digest, data, settings.learnt_by(), versions])
    logs = log_folder(workspace)

    def make(into: Path) -> Facts:
        folder = training_folder(workspace, key)
        with _telling_no_room(folder):
            if not (folder / TUNED / TRAINING).is_file():
                request = _request(snapshot, chats, settings, folder)  # refused by headers alone, if it does not fit
                trained, run = _run_at_rest(request, snapshot, logs / f"train-{key[:12]}.log", on_point)
                _keep(trained, run, request, base=snapshot.digest, data=data, versions=versions)
            with unchanged(snapshot):
                _fill(snapshot, folder / TUNED, into, logs / f"train-merge-{key[:12]}.log")
        return {"base": snapshot.digest, "data": data}

    path = store_folder(workspace, "tunings", key, make)
    shutil.rmtree(workspace / "training" / key, ignore_errors=True)
    training = read_training(path)
    return Tuned(
        key=key,
        path=path,
        steps=len(training.curve),
        first_loss=training.curve[0].loss,
        last_loss=training.curve[-1].loss,
        seconds=training.seconds,
    )


@contextmanager
def _telling_no_room(folder: Path) -> Iterator[None]:
    """Turn what a full disk stops here, and in the merge's process, into our error; training tells it itself."""
    try:
        yield
    except (OSError, TrainError) as error:
        if no_space := no_room(error, folder):
            raise no_space from error
        raise


def _request(snapshot: Snapshot, chats: Path, settings: TrainSettings, folder: Path) -> TrainRequest:
    """Look for the checkpoint to go on from, and for room.

    Raises:
        WorkspaceError: there is too little of it.
    """
    trained = trained_parameters(sizes_of(snapshot.path), settings.rank)
    require_space(folder, needed_bytes(snapshot.size_bytes, trained, not settings.rank), "training")
    step, resume = last_whole(folder) or (0, None)
    write_points(folder / LOSSES, read_points(folder / LOSSES)[:step])
    return TrainRequest(
        checkpoint=snapshot.path,
        dtype=dtype_of(snapshot),
        base_name=snapshot.source.shown,
        base_revision=snapshot.source.revision,
        chats=chats,
        settings=settings,
        max_length=min(settings.max_length, snapshot.context_length),
        folder=folder,
        resume=resume,
        save_seconds=60 * settings.save_minutes,
    )


def _run_at_rest(
    request: TrainRequest, snapshot: Snapshot, log: Path, on_point: OnPoint
) -> tuple[TrainResult, ChildRun]:
    """Train; checkpoints of a base that changed meanwhile are removed, since the next run would go on from them."""
    try:
        with unchanged(snapshot):
            return _run(request, snapshot, log, on_point)
    except SourceError:
        shutil.rmtree(request.folder, ignore_errors=True)
        raise


def _run(request: TrainRequest, snapshot: Snapshot, log: Path, on_point: OnPoint) -> tuple[TrainResult, ChildRun]:
    logger.info("training %s%s", snapshot.source.name, f", from {request.resume.name} on" if request.resume else "")
    logged_at = time.monotonic()

    def tell(point: TrainingPoint) -> None:
        nonlocal logged_at
        if time.monotonic() - logged_at >= LOG_SECONDS:
            logged_at = time.monotonic()
            logger.info("%s", point.shown)
        on_point(point)

    with following(request.folder / LOSSES, tell):
        trained, run = run_in_child(
            run_training,
            request,
            log=log,
            limit_seconds=limit_seconds(TRAIN_LIMIT_SECONDS, snapshot.size_bytes),
            failure=TrainError,
            doing="training",
        )
    if trained.left_out:
        logger.warning(
            "%d of %d answers are longer than max_length and were left out",
            trained.left_out,
            trained.left_out + trained.examples,
        )
    logger.info("that took %.0f s and %.1f GB", run.seconds, run.peak_private_bytes / 1e9)
    return trained, run


def _keep(
    trained: TrainResult, run: ChildRun, request: TrainRequest, base: str, data: str, versions: dict[str, str]
) -> None:
    """Write how it went beside what came of it, so that this is not trained again."""
    curve = tuple(read_points(request.folder / LOSSES))
    training = Training(
        **trained.model_dump(),
        base=base,
        data=data,
        settings=request.settings,
        versions=versions,
        seconds=curve[-1].seconds,
        peak_private_bytes=run.peak_private_bytes,
        resumed_at=step_of(request.resume) if request.resume else None,
        curve=curve,
    )
    unfinished = request.folder / TRAINING
    unfinished.write_text(training.model_dump_json(indent=1) + "\n")
    unfinished.rename(request.folder / TUNED / TRAINING)


def _fill(snapshot: Snapshot, tuned: Path, into: Path, log: Path) -> None:
    """Make the whole checkpoint: the tuned weights, and of all else the base's own bytes."""
    shutil.copytree(tuned, into, dirs_exist_ok=True)
    if (into / ADAPTER).is_dir():
        merged, _ = run_in_child(
            merge_adapter,
            MergeRequest(base=snapshot.path, adapter=into / ADAPTER, into=into, stage="train"),
            log=log,
            limit_seconds=limit_seconds(MERGE_LIMIT_SECONDS, snapshot.size_bytes),
            failure=TrainError,
            doing="the merge",
        )
        logger.info("merged the adapter into its base; its logits are %.1g from those of both apart", merged.distance)
    for path in into.glob("*.json"):
        if path.name not in (TRAINING, INDEX):
            path.unlink()
    for name, path in relevant_files(snapshot.path).items():
        if not is_weights(name) and name != INDEX:
            (into / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, into / name)
    # A card is about the base; what it says of the licence goes on.
    facts = {"base_model": snapshot.source.shown, "license": snapshot.licence}
    lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items() if value]
    (into / CARD).write_text("\n".join(["---", *lines, "---", ""]))
