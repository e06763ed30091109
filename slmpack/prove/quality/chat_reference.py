"""Chat reference: the source's own logits on the answers in some chats, computed and stored once, like `reference`.

    <workspace>/chat-references/<key>/
        chats.jsonl             the chats
        chats.json              `ChatReference`: the chats' token ids, and where their answers are
        log_probabilities.npy   float16 [answers' tokens, vocabulary]

A model that was trained for a task is worth what it says there. The built-in text does not show that: 4 bits may keep
the prose and lose the name that was learnt.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from slmpack.chats.examples import IGNORED, Example, read_examples
from slmpack.chats.lines import read_good_chats
from slmpack.checkpoint.forward import load_source, logits_of, vocabulary_of
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.checkpoint.windows import LOG_PROBABILITIES_FILE, dtype_of
from slmpack.errors import DataError, QualityError
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.remember import ChildWork, remembered
from slmpack.machine.store import Facts, require_space
from slmpack.progress import report
from slmpack.prove.quality.chat_loss import parts_of, tokens_at_once
from slmpack.prove.quality.reference import (
    LOGITS_ROW_BYTES,
    REFERENCE_LIMIT_SECONDS,
    log_probabilities,
    rows_at_once,
    write_header,
)
from slmpack.records import Record, Snapshot, digest_of

logger = logging.getLogger(__name__)

LAYOUT = 1  # of the folder; another number makes every one again
GIVEN, CHATS_FILE = "chats.jsonl", "chats.json"
MAX_TOKENS = 8192  # of chats, prompts included
MAX_ANSWER_TOKENS = 2048  # as many positions as the built-in text has
MAX_CHAT_TOKENS = 1024  # of one chat
CHAT_BYTES = 512 << 20  # of one chat's logits in float32: large vocabularies get shorter chats


class ChatReferenceRequest(Record):
    """What the source's process is to read: `into` has `chats.jsonl`."""

    snapshot: Path
    dtype: str
    context_length: int
    into: Path


class ChatReference(Record):
    """What both models are fed.

    Attributes:
        windows: token ids of a chat each, in the source's template.
        marked: for each, the positions after which a token of an answer comes, its end of turn included.
        left_out: chats that are longer than what is read of one, or come after enough of them.
        vocabulary: what the tokenizer knows.
    """

    windows: tuple[tuple[int, ...], ...]
    marked: tuple[tuple[int, ...], ...]
    left_out: int
    vocabulary: int

    @property
    def positions(self) -> int:
        return sum(map(len, self.marked))


def chat_reference(snapshot: Snapshot, chats: Path, workspace: Path, expected: str | None = None) -> Path:
    """Return the folder of the source's log-probabilities on the answers in a file or folder of chats.

    Args:
        expected: the digest over the chats' own digests, sorted, that they must have; None: any.

    Raises:
        DataError: a line is no chat, or the chats are others than `expected`.
        SourceError: a file of the source changed while it ran.
        TrainError: no chat is short enough, or they cannot be read with the source's template.
        QualityError: the source cannot be run, or its logits are not finite.
        WorkspaceError: the workspace is full.
    """
    read = list(read_good_chats(chats))
    if expected is not None and digest_of(sorted(chat.digest for chat in read)) != expected:
        raise DataError(f"the chats in {chats.name} changed after they were checked", "files at rest", "start again")
    lines = [chat.line() for chat in read]
    dtype = dtype_of(snapshot)
    key = digest_of([LAYOUT, snapshot.digest, lines, dtype, MAX_TOKENS, MAX_ANSWER_TOKENS, MAX_CHAT_TOKENS])

    def request(into: Path) -> ChatReferenceRequest:
        (into / GIVEN).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return ChatReferenceRequest(
            snapshot=snapshot.path, dtype=dtype, context_length=snapshot.context_length, into=into
        )

    def facts(reference: ChatReference) -> Facts:
        logger.info(
            "the source read %d chats with %d tokens of answers; %d were left out",
            len(reference.windows),
            reference.positions,
            reference.left_out,
        )
        return {"positions": reference.positions}

    work = ChildWork(
        run_source_on_chats, "chat-reference", REFERENCE_LIMIT_SECONDS, QualityError, "the run of the source on chats"
    )
    return remembered("chat-references", key, snapshot, workspace, work, request, facts)


@forked_with(*TORCH)
def run_source_on_chats(request: ChatReferenceRequest) -> ChatReference:
    """Run in a child: read the chats, run the source, write both files.

    Raises:
        TrainError: no chat is short enough, or they cannot be read with the source's template.
        QualityError: logits that are not finite.
        WorkspaceError: no room for what the source says.
    """
    vocabulary = vocabulary_of(load_source(request.snapshot, request.dtype))
    longest = min(request.context_length, MAX_CHAT_TOKENS, CHAT_BYTES // (LOGITS_ROW_BYTES * vocabulary))
    examples = read_examples(request.snapshot, request.into / GIVEN, longest)
    used = sorted(first_examples(examples.fitting), key=lambda example: len(example.ids))
    reference = ChatReference(
        windows=tuple(tuple(example.ids) for example in used),
        marked=tuple(answer_positions(example) for example in used),
        left_out=examples.left_out + len(examples.fitting) - len(used),
        vocabulary=len(read_tokenizer(request.snapshot)),
    )
    (request.into / CHATS_FILE).write_text(reference.model_dump_json())
    require_space(request.into, 2 * reference.positions * vocabulary, "the record of what the source says")
    with (request.into / LOG_PROBABILITIES_FILE).open("wb") as file:
        write_header(file, (reference.positions, vocabulary))
        for rows in _answers_rows(request, used):
            file.write(rows)
    return reference


def first_examples(examples: Sequence[Example]) -> list[Example]:
    """Return the first examples, as many as are read; at least one."""
    used: list[Example] = []
    tokens = learnt = 0
    for example in examples:
        tokens, learnt = tokens + len(example.ids), learnt + example.learnt
        if used and (tokens > MAX_TOKENS or learnt > MAX_ANSWER_TOKENS):
            break
        used.append(example)
    return used


def answer_positions(example: Example) -> tuple[int, ...]:
    """Return the positions whose next token has a label."""
    return tuple(at for at, label in enumerate(example.labels[1:]) if label != IGNORED)


def _answers_rows(request: ChatReferenceRequest, examples: Sequence[Example]) -> Iterator[bytes]:
    import torch

    done = 0
    for part in parts_of(examples, tokens_at_once(request.snapshot)):
        model = load_source(request.snapshot, request.dtype)  # of no use for a second part
        marks = torch.cat([torch.tensor([label != IGNORED for label in example.labels[1:]]) for example in part])
        row = 0
        for logits in logits_of(model, [example.ids for example in part]):
            answers = logits[marks[row : row + len(logits)]]
            row += len(logits)
            for rows in torch.split(answers, rows_at_once(logits.shape[1])):
                yield log_probabilities(rows).numpy().tobytes()
        done += len(part)
        report("measure", done, len(examples), "chats read by the source")
