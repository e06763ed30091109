"""Tuned: a trained checkpoint as a snapshot like any other, and measured."""

from pathlib import Path

from slmpack.chats.parts import ChatParts
from slmpack.machine.at_rest import unchanged
from slmpack.prove.quality.chat_loss import chat_perplexity
from slmpack.records import Snapshot
from slmpack.retrain.training.train import Tuned
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source


def tuned_snapshot(trained: Tuned, base: Snapshot, workspace: Path) -> Snapshot:
    """Return the snapshot of a trained checkpoint, checked as every source is; its weights are links to it.

    Raises:
        SourceError: it is no usable checkpoint.
        WorkspaceError: there is no room for it.
    """
    source = resolve_source(str(trained.path), workspace)
    named = source.model_copy(update={"name": f"{base.source.name}-tuned", "licence": base.licence})
    return fetch_snapshot(named, workspace)


def held_out_perplexity(snapshot: Snapshot, parts: ChatParts, workspace: Path) -> float:
    """Return the perplexity of the answers in the held-out chats.

    Raises:
        TrainError: the chats cannot be read with the model's template.
        QualityError: the model cannot be run, or its logits are not finite.
        SourceError: a file of the model changed meanwhile.
    """
    with unchanged(snapshot):
        return chat_perplexity(snapshot.path, parts.held_out, workspace)
