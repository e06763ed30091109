"""Calibrate: how large the inputs of every weight matrix are, so that it is rounded where that costs least.

    <workspace>/calibrations/<key>/
        text.txt              what was read, UTF-8
        energy.safetensors    float32 [K] for a matrix [N, K]: the mean of x^2 over all tokens, channel by channel

The tensors have the names of the checkpoint's tensors. Matrices with the same input (q, k and v) have the same energy,
each its own copy; a tied head's is its embedding's. A matrix that nothing was multiplied with, such as an expert that
is no Linear, has none.

The source runs once, in float32, a module at a time (see `checkpoint.forward`), half on text and half on random token
ids: a few numbers a channel need no more.

SmolLM2-135M, 4 bits, mean KL on two texts other than these: .187 and .162 so, .186
and .165 from twice as many tokens; .194 and .169 from 512 random ids and .192 and .172 from 2,048; .191 and .170 from
768 tokens of text, .189 and .169 from 2,048 of the second text's own kind. Differences below .01 are noise.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.finite import require_finite_weights
from slmpack.checkpoint.forward import load_source, logits_of, tensor_names, vocabulary_of
from slmpack.checkpoint.texts.sample_texts import CODE, PROSE, SCRIPTS
from slmpack.checkpoint.windows import TEXT_FILE, cut_windows, dtype_of, first_ids, prefix_of
from slmpack.errors import BuildError, QualityError
from slmpack.machine.child import limited
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.remember import ChildWork, remembered
from slmpack.machine.store import Facts
from slmpack.progress import report
from slmpack.records import Record, Snapshot, digest_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

logger = logging.getLogger(__name__)

LAYOUT = 1  # of the folder; another number makes every calibration again
ENERGY_FILE = "energy.safetensors"
CALIBRATION_LIMIT_SECONDS = 3600.0
BUILT_IN_TEXT = "\n".join((*PROSE, *CODE, *SCRIPTS))
TOKENS = 512  # of a text; of the built-in one half, and as many random ids
WINDOW_TOKENS = 256
MILLION = 10**6
# What a calibration without a text of the user's depends on beside the snapshot.
CALIBRATION = digest_of([LAYOUT, BUILT_IN_TEXT, TOKENS, WINDOW_TOKENS])


class CalibrationRequest(Record):
    """What the source's process is to read, on windows of one length.

    Attributes:
        text_tokens: of `into`'s `text.txt`, at most.
        random_tokens: read after those.
    """

    snapshot: Path
    dtype: str
    context_length: int
    text_tokens: int
    random_tokens: int
    into: Path


class CalibrationResult(Record):
    """What came of it.

    Attributes:
        tokens: that were read.
        silent: tensors left out, since all that they were multiplied with was zero.
    """

    tokens: int
    silent: tuple[str, ...]


def calibrate(snapshot: Snapshot, text: str | None, workspace: Path) -> Path:
    """Return the folder of the energies of `snapshot`'s activations; the source runs in a child, once.

    Args:
        text: what to read, its first 512 tokens; None: the built-in text and random token ids.

    Raises:
        UsageError: the text has fewer than 200 tokens.
        BuildError: activations that are not finite or all zero, or the run failed.
        WorkspaceError: the workspace is full.
    """
    text_tokens, random_tokens = (TOKENS // 2, TOKENS // 2) if text is None else (TOKENS, 0)
    read = BUILT_IN_TEXT if text is None else text
    key = digest_of([CALIBRATION, snapshot.digest, text])

    def request(into: Path) -> CalibrationRequest:
        logger.info("calibrating %s on %d tokens", snapshot.source.name, TOKENS)
        (into / TEXT_FILE).write_text(read, encoding="utf-8", newline="")
        return CalibrationRequest(
            snapshot=snapshot.path,
            dtype=dtype_of(snapshot),
            context_length=snapshot.context_length,
            text_tokens=text_tokens,
            random_tokens=random_tokens,
            into=into,
        )

    def facts(calibrated: CalibrationResult) -> Facts:
        if calibrated.silent:
            logger.warning(
                "%d matrices saw only zeros, the first is %s: they are quantised without a calibration",
                len(calibrated.silent),
                calibrated.silent[0],
            )
        return {"tokens": calibrated.tokens, "silent": "\n".join(calibrated.silent)}

    work = ChildWork(run_calibration, "calibration", CALIBRATION_LIMIT_SECONDS, BuildError, "the calibration")
    return remembered("calibrations", key, snapshot, workspace, work, request, facts)


def read_energy(folder: Path) -> "dict[str, Tensor]":
    """Return the energies that `calibrate` stored, float32 `[K]` by the name of the checkpoint's tensor `[N, K]`."""
    from safetensors.torch import load_file

    return load_file(folder / ENERGY_FILE)


@forked_with(*TORCH)
def run_calibration(request: CalibrationRequest) -> CalibrationResult:
    """Run in a child: tokenise, run the source, write the energies.

    Raises:
        UsageError: the text has fewer than 200 tokens.
        BuildError: activations that are not finite or all zero, or an architecture without a decoder of its own.
    """
    from safetensors.torch import save_file

    model = load_source(request.snapshot, request.dtype)
    windows = windows_of(request, vocabulary_of(model))
    try:
        energy = measure_energy(model, windows)
    except BuildError:
        require_finite_weights(request.snapshot)  # a tensor that is to blame is the better answer
        raise
    silent = tuple(sorted(name for name, squares in energy.items() if not bool(squares.any())))
    if len(silent) == len(energy):
        raise BuildError(
            "a calibration in which every matrix saw only zeros", "activations", "check the checkpoint's weights"
        )
    save_file({name: squares for name, squares in energy.items() if name not in silent}, request.into / ENERGY_FILE)
    return CalibrationResult(tokens=sum(map(len, windows)), silent=silent)


def windows_of(request: CalibrationRequest, vocabulary: int) -> list[tuple[int, ...]]:
    """Return windows of one length: in a padded one the padding's activations would count."""
    import torch
    from transformers import AutoTokenizer

    with limited(f"the tokenizer of {request.snapshot}"):
        tokenizer = AutoTokenizer.from_pretrained(request.snapshot, local_files_only=True)
        ids = first_ids(tokenizer, request.into / TEXT_FILE, request.text_tokens, "calibration")
        prefix = prefix_of(tokenizer)
    size = min(WINDOW_TOKENS, len(prefix) + len(ids), request.context_length)
    generator = torch.Generator().manual_seed(0)
    known = min(len(tokenizer), vocabulary)
    random: list[int] = torch.randint(known, (request.random_tokens,), generator=generator).tolist()
    every = (*cut_windows(ids, size, prefix), *cut_windows(random, size, prefix))
    return [window for window in every if len(window) == size]


def measure_energy(model: Any, windows: Sequence[Sequence[int]]) -> "dict[str, Tensor]":
    """Return the mean square of each input channel of every Linear of the decoder, and of the head.

    Args:
        model: from `load_source`; it is of no other use afterwards.
        windows: token ids, all as many.

    Returns:
        float32 `[K]` by the checkpoint's name of the weight `[N, K]`.

    Raises:
        BuildError: an activation that is not finite, or an architecture without a decoder apart from its head.
    """
    head, names = model.get_output_embeddings(), matrix_names(model)
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def add(module: "Module", inputs: "Tensor") -> None:
        name, squares = names[module], _squares(inputs)
        if not bool(squares.isfinite().all()):
            raise BuildError(
                f"the inputs of {name} are not finite", "finite activations", "check the checkpoint's weights"
            )
        sums[name] = sums[name] + squares if name in sums else squares
        counts[name] += inputs.shape[:-1].numel()

    def after_decoder(_module: "Module", _inputs: object, output: Any) -> None:
        if not counts[names[head]]:  # it runs again for the logits, with some of the same inputs
            add(head, output.last_hidden_state)

    for module in names.keys() - {head}:
        module.register_forward_pre_hook(lambda module, inputs: add(module, inputs[0]))
    model.base_model.register_forward_hook(after_decoder)
    run_source(model, windows)
    return {name: squares / counts[name] for name, squares in sums.items()}


def matrix_names(model: Any) -> "dict[Module, str]":
    """Return what the checkpoint calls the weight of every Linear, and of the head; as the quantiser will find it."""
    import torch

    head = model.get_output_embeddings()
    return {
        module: names["weight"]
        for module, names in tensor_names(model).items()
        if isinstance(module, torch.nn.Linear) or module is head
    }


def _squares(inputs: "Tensor") -> "Tensor":
    """Return the sums of squares of `[..., K]` over all but the last axis, without a tensor of that size."""
    import torch

    norms: Tensor = torch.linalg.vector_norm(inputs.flatten(0, -2), dim=0)
    return norms.square()


def run_source(model: Any, windows: Sequence[Sequence[int]]) -> None:
    """Let `model`, from `load_source`, read the windows; what it says is not looked at.

    Raises:
        BuildError: an architecture without a decoder apart from its head.
    """

    def on_progress(done: int, total: int) -> None:
        report("build", done // MILLION, max(total // MILLION, 1), "million weights calibrated")

    try:
        next(logits_of(model, windows, on_progress))  # the decoder has seen everything before the first logits
    except QualityError as error:
        raise BuildError(f"no calibration: {error}") from error
