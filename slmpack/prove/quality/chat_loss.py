"""Chat loss: how likely a model finds the answers in chats, token by token, as training counts them.

    chats --as `chats.examples` reads them--> windows of token ids, answers marked
    checkpoint --`checkpoint.forward`, float32--> logits --at the answers' tokens--> mean loss, perplexity

Prompts do not count. Weights of any precision are exact in float32, so a base, the model in use and a tuned one are
measured with the same arithmetic, on any machine, and a model takes the memory of its largest matrix.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.chats.examples import IGNORED, Example, read_examples
from slmpack.checkpoint.forward import load_source, logits_of
from slmpack.checkpoint.inspect import inspect_model
from slmpack.checkpoint.sizes import sizes_of
from slmpack.checkpoint.windows import DTYPES
from slmpack.errors import QualityError
from slmpack.figures import perplexity_shown
from slmpack.machine.child import run_in_child
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.limits import limit_seconds
from slmpack.machine.store import log_folder
from slmpack.progress import report
from slmpack.records import Record, digest_of

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

LOSS_LIMIT_SECONDS = 4 * 3600.0
ACTIVATION_BYTES = 512 << 20  # of one layer's inputs and outputs, float32, for all texts that are read together


class LossRequest(Record):
    """The checkpoint to run, its precision in torch's terms, its context in tokens, and the chats."""

    checkpoint: Path
    dtype: str
    context_length: int
    chats: Path


class ChatLoss(Record):
    """What a model says of the answers.

    Attributes:
        loss: mean cross-entropy, nats a token.
        tokens: of answers, ends of turns included.
        answers: how many examples were read; `left_out` are longer than the context.
    """

    loss: float
    tokens: int
    answers: int
    left_out: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


def chat_perplexity(checkpoint: Path, chats: Path, workspace: Path) -> float:
    """Return the perplexity of a checkpoint on the answers in a file of chats, see `chat_loss`."""
    return chat_loss(checkpoint, chats, workspace).perplexity


def chat_loss(checkpoint: Path, chats: Path, workspace: Path) -> ChatLoss:
    """Run a checkpoint on the answers in a file of chats, in a child.

    Args:
        chats: JSON Lines, an object with `messages` a line, checked before.
        workspace: where the child's log goes.

    Raises:
        SourceError: the folder is no checkpoint.
        TrainError: the chats cannot be read with the checkpoint's template.
        QualityError: it cannot be run, or its logits are not finite.
    """
    facts = inspect_model(checkpoint)
    request = LossRequest(
        checkpoint=checkpoint,
        dtype=DTYPES.get(facts.dtype, "float32"),
        context_length=facts.context_length,
        chats=chats,
    )
    key = digest_of([str(checkpoint), str(chats)])
    found, run = run_in_child(
        measure_loss,
        request,
        log=log_folder(workspace) / f"chat-loss-{key[:12]}.log",
        limit_seconds=limit_seconds(LOSS_LIMIT_SECONDS, 4 * facts.parameters),
        failure=QualityError,
        doing="the run on held-out chats",
    )
    logger.info(
        "perplexity %s on %d tokens of answers (%.0f s)", perplexity_shown(found.perplexity), found.tokens, run.seconds
    )
    return found


@forked_with(*TORCH)
def measure_loss(request: LossRequest) -> ChatLoss:
    """Run in a child: tokenise, run the model, a part of the chats at a time, and sum.

    Raises:
        TrainError: the chats cannot be read with the checkpoint's template.
        QualityError: logits that are not finite.
    """
    examples = read_examples(request.checkpoint, request.chats, request.context_length)
    total, done = 0.0, 0
    for part in parts_of(examples.fitting, tokens_at_once(request.checkpoint)):
        total += _loss(request, part)
        done += len(part)
        report("measure", done, len(examples.fitting), "held-out answers")
    if not math.isfinite(total):
        raise QualityError("a loss that is not finite", "a number", "check the checkpoint")
    return ChatLoss(
        loss=total / examples.learnt, tokens=examples.learnt, answers=len(examples.fitting), left_out=examples.left_out
    )


def tokens_at_once(checkpoint: Path) -> int:
    """Return how many tokens of chats a checkpoint can read at a time, by the size of its largest activations."""
    sizes = sizes_of(checkpoint)
    one_layer = sum(rows + columns for rows, columns in sizes.matrices.values()) // max(1, sizes.layers)
    return max(1, ACTIVATION_BYTES // (4 * max(1, one_layer)))


def parts_of(examples: Sequence[Example], tokens: int) -> Iterator[list[Example]]:
    """Yield groups of at most so many tokens, padding included, but at least one example; alike ones together."""
    part: list[Example] = []
    for example in sorted(examples, key=lambda each: len(each.ids)):
        if part and (len(part) + 1) * len(example.ids) > tokens:
            yield part
            part = []
        part.append(example)
    if part:
        yield part


def _loss(request: LossRequest, part: Sequence[Example]) -> float:
    """Return the sum over the answers' tokens, nats."""
    import torch

    model = load_source(request.checkpoint, request.dtype)
    labels = torch.tensor([label for example in part for label in example.labels[1:]])
    total, row = 0.0, 0
    for logits in logits_of(model, [example.ids for example in part]):
        total += _sum_of(logits, labels[row : row + len(logits)])
        row += len(logits)
    return total


def _sum_of(logits: "Tensor", labels: "Tensor") -> float:
    import torch

    counted = labels != IGNORED
    losses = torch.nn.functional.cross_entropy(logits[counted], labels[counted], reduction="none")
    return float(losses.double().sum())
