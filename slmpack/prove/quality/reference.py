"""Reference: the source's own logits on a text, computed and stored once, so that packages are compared with it.

    <workspace>/references/<key>/
        text.txt                what was read, UTF-8
        reference.json          `Reference`: the windows' token ids, the prompts' token ids
        log_probabilities.npy   float16 [positions, vocabulary]

Log-probabilities are stored, not logits: float16 has its finest steps near zero, which is where the likely tokens'
are (an error of 0.0005 at p = 0.5, while a logit of 20 is off by 0.008), and an error counts by the token's
probability. Renormalised when read, the rounding costs less than 1e-6 nats of KL.

The source's own weights, in float32 arithmetic: see `checkpoint.forward`. It is run once a snapshot and text, for all
that is built of it: 2,048 tokens are 4,096 operations a weight, minutes for a model of 3.8 billion on two cores.
"""

import logging
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from slmpack.checkpoint.forward import load_source, logits_of, vocabulary_of
from slmpack.checkpoint.windows import (
    LOG_PROBABILITIES_FILE,
    REFERENCE_FILE,
    TEXT_FILE,
    cut_windows,
    dtype_of,
    first_ids,
    prefix_of,
)
from slmpack.errors import QualityError
from slmpack.machine.child import limited
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.remember import ChildWork, remembered
from slmpack.machine.store import Facts, require_space
from slmpack.progress import report
from slmpack.records import Record, Snapshot, digest_of

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

LAYOUT = 2  # of the folder; another number makes every reference again
REFERENCE_LIMIT_SECONDS = 4 * 3600.0
MILLION = 10**6
MAX_TOKENS = 2048
WINDOW_TOKENS = 512
WINDOW_BYTES = 256 << 20  # of one window's logits in float32: large vocabularies get shorter windows
LOGITS_ROW_BYTES = 4  # of an entry of the vocabulary: float32
ROWS_BYTES = 32 << 20  # of float64 at a time, wherever a position has a number for every token
# Greedy answers to these are looked at for loops: open and closed questions, code, and a list.
PROMPTS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "List ten things to pack for a week in the mountains.",
    "Write a Python function that tells whether a word is a palindrome.",
)


class ReferenceRequest(Record):
    """What the source's process is to read: `into` has `text.txt`."""

    snapshot: Path
    dtype: str
    context_length: int
    into: Path


class Reference(Record):
    """What both models are fed.

    Attributes:
        windows: token ids of the text, cut; every window stands alone and begins as the tokenizer begins a text.
        prompts: token ids of `PROMPTS` in the source's chat template.
        vocabulary: what the tokenizer knows; a model's logits may be padded beyond it.
    """

    windows: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    vocabulary: int

    @property
    def positions(self) -> int:
        """Positions whose next token is in the same window."""
        return sum(len(window) - 1 for window in self.windows)


def source_reference(snapshot: Snapshot, text: str, workspace: Path) -> Path:
    """Return the folder of the source's log-probabilities on `text`; the source runs in a child, once.

    Raises:
        UsageError: the text has fewer than 200 tokens.
        QualityError: the source cannot be run, or its own logits are not finite.
        WorkspaceError: the snapshot is not there any more, or the workspace is full.
    """
    dtype = dtype_of(snapshot)
    key = digest_of([LAYOUT, snapshot.digest, text, dtype, MAX_TOKENS, WINDOW_TOKENS, PROMPTS])

    def request(into: Path) -> ReferenceRequest:
        logger.info(
            "running the source of %s on the text: %.1f billion weights, up to %d tokens",
            snapshot.source.name,
            snapshot.parameters / 1e9,
            MAX_TOKENS,
        )
        (into / TEXT_FILE).write_text(text, encoding="utf-8", newline="")
        return ReferenceRequest(snapshot=snapshot.path, dtype=dtype, context_length=snapshot.context_length, into=into)

    def facts(reference: Reference) -> Facts:
        return {"dtype": dtype, "positions": reference.positions}

    work = ChildWork(run_source, "reference", REFERENCE_LIMIT_SECONDS, QualityError, "the run of the source")
    return remembered("references", key, snapshot, workspace, work, request, facts)


@forked_with(*TORCH)
def run_source(request: ReferenceRequest) -> Reference:
    """Run in a child: tokenise, run the source, write both files.

    Raises:
        UsageError: the text has fewer than 200 tokens.
        QualityError: logits that are not finite.
        WorkspaceError: no room for what the source says.
    """
    from transformers import AutoTokenizer

    with limited(f"the tokenizer or the chat template of {request.snapshot}"):
        tokenizer = AutoTokenizer.from_pretrained(request.snapshot, local_files_only=True)
        ids = first_ids(tokenizer, request.into / TEXT_FILE, MAX_TOKENS, "quality")
        prefix = prefix_of(tokenizer)
        prompts = tuple(_prompt_ids(tokenizer, prompt) for prompt in PROMPTS)
    model = load_source(request.snapshot, request.dtype)
    vocabulary = vocabulary_of(model)
    size = min(WINDOW_TOKENS, WINDOW_BYTES // (LOGITS_ROW_BYTES * vocabulary), request.context_length)
    reference = Reference(
        windows=tuple(cut_windows(ids, size, prefix)),
        prompts=prompts,
        vocabulary=len(tokenizer),
    )
    (request.into / REFERENCE_FILE).write_text(reference.model_dump_json())
    require_space(request.into, 2 * reference.positions * vocabulary, "the record of what the source says")
    with (request.into / LOG_PROBABILITIES_FILE).open("wb") as file:
        write_header(file, (reference.positions, vocabulary))
        _write_all(model, reference, file)
    return reference


def _prompt_ids(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def write_header(file: IO[bytes], shape: tuple[int, int]) -> None:
    """Begin a float16 .npy file whose rows follow one by one: a map of it would count as our memory."""
    import numpy as np

    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})


def _write_all(model: Any, reference: Reference, file: IO[bytes]) -> None:
    import torch

    def on_progress(done: int, total: int) -> None:
        report("measure", done // MILLION, max(total // MILLION, 1), "million weights of the source")

    for logits in logits_of(model, reference.windows, on_progress):
        for rows in torch.split(logits, rows_at_once(logits.shape[1])):
            file.write(log_probabilities(rows).numpy().tobytes())


def rows_at_once(vocabulary: int) -> int:
    """Return how many positions to work on at a time where each has a float64 for every token."""
    return max(1, ROWS_BYTES // (8 * vocabulary))


def log_probabilities(logits: "Tensor") -> "Tensor":
    """Return the float16 `[positions, vocabulary]` that is stored of float32 logits.

    Raises:
        QualityError: logits that are not finite.
    """
    import torch

    if not bool(torch.isfinite(logits).all()):
        raise QualityError("logits of the source that are not finite", "finite numbers", "check the checkpoint")
    return torch.log_softmax(logits, dim=-1).clamp(min=-60000.0).half()  # float16 ends at -65504
