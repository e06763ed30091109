"""Compare: run a package where its source was run, and tell how far apart they are at each position."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slmpack.build.open_package import open_package
from slmpack.checkpoint.windows import LOG_PROBABILITIES_FILE, REFERENCE_FILE
from slmpack.errors import QualityError
from slmpack.progress import report
from slmpack.prove.quality.chat_reference import CHATS_FILE, ChatReference
from slmpack.prove.quality.reference import Reference, rows_at_once
from slmpack.prove.quality.repetition import Answer, package_answer
from slmpack.records import Provider, Record
from slmpack.reports import ChatQuality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ComparisonRequest(Record):
    """What the package's process is to run: the package's folder and the source's, and by which provider.

    Attributes:
        chats: the folder of the source's on chats, see `chat_reference`; None without them.
    """

    package: Path
    reference: Path
    chats: Path | None = None
    provider: Provider = "cpu"


class Measured(Record):
    """What that process found; perplexities and KL as in `Quality`."""

    perplexity: float
    source_perplexity: float
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    answers: tuple[Answer, ...]
    seconds: float
    chats: ChatQuality | None = None


class Compared(NamedTuple):
    """Two models at the same positions, float64 `[positions]` each: KL in nats, agreement 0 or 1, -log p(next)."""

    kl: "NDArray[np.float64]"
    agreed: "NDArray[np.float64]"
    source_loss: "NDArray[np.float64]"
    loss: "NDArray[np.float64]"


class FedTokens(NamedTuple):
    """What a package is fed.

    Attributes:
        windows: token ids, each window by itself.
        marked: for each, the positions to compare, ascending; each has a next token.
        vocabulary: what the tokenizer knows.
        source: file of the source's log-probabilities, a row a marked position, in order.
        unit: what progress counts.
    """

    windows: tuple[tuple[int, ...], ...]
    marked: tuple[tuple[int, ...], ...]
    vocabulary: int
    source: Path
    unit: str


def run_package(request: ComparisonRequest) -> Measured:
    """Run in a child: feed the package the source's windows, compare, then let it answer the prompts.

    Raises:
        QualityError: logits that are not finite, or a package that does not run or lacks part of the vocabulary.
    """
    reference = Reference.model_validate_json((request.reference / REFERENCE_FILE).read_text())
    try:
        model = open_package(request.package, request.provider)
        started = time.perf_counter()
        compared = _run_windows(model, fed_text(request.reference, reference))
        seconds = time.perf_counter() - started
        chats = None if request.chats is None else _run_chats(model, request.chats)
        answers = []
        for prompt in reference.prompts:
            answers.append(package_answer(model, prompt))
            report("measure", len(answers), len(reference.prompts), "greedy answers")
    except RuntimeError as error:
        raise QualityError(f"the package does not run: {error}", "logits", "package it again with --force") from error
    return summarise(compared, tuple(answers), seconds).model_copy(update={"chats": chats})


def fed_text(folder: Path, reference: Reference) -> FedTokens:
    """Return a text, of which every position counts that has a next token."""
    marked = tuple(tuple(range(len(window) - 1)) for window in reference.windows)
    return FedTokens(
        reference.windows, marked, reference.vocabulary, folder / LOG_PROBABILITIES_FILE, "tokens compared"
    )


def _run_chats(model: Any, folder: Path) -> ChatQuality:
    chats = ChatReference.model_validate_json((folder / CHATS_FILE).read_text())
    fed = FedTokens(chats.windows, chats.marked, chats.vocabulary, folder / LOG_PROBABILITIES_FILE, "tokens of chats")
    found = summarise(_run_windows(model, fed), (), 0.0)
    return ChatQuality(
        perplexity=found.perplexity,
        source_perplexity=found.source_perplexity,
        perplexity_ratio=found.perplexity / found.source_perplexity,
        top1_agreement=found.top1_agreement,
        chats=len(chats.windows),
        tokens=chats.positions,
    )


def _run_windows(model: Any, fed: FedTokens) -> Compared:
    import numpy as np

    source = np.load(fed.source, mmap_mode="r")
    parts: list[Compared] = []
    row, done, total = 0, 0, sum(map(len, fed.windows))
    for window, marked in zip(fed.windows, fed.marked, strict=True):
        logits = window_logits(model, window)
        require_vocabulary(fed.vocabulary, source.shape[1], logits.shape[1])
        step, places, ids = rows_at_once(logits.shape[1]), np.array(marked), np.array(window)
        for start in range(0, len(places), step):
            at = places[start : start + step]
            parts.append(compare(source[row : row + len(at)], logits[at], ids[at + 1]))
            row += len(at)
        done += len(window)
        report("measure", done, total, fed.unit)
    return Compared(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def window_logits(model: Any, window: tuple[int, ...]) -> "NDArray[np.float32]":
    """Return float32 `[sequence, vocabulary]`; max_length is no longer than it must be: the runtime fills all of it."""
    import numpy as np
    import onnxruntime_genai as og

    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(window))  # which may be the whole context
    generator = og.Generator(model, parameters)
    generator.append_tokens(list(window))
    logits = np.asarray(generator.get_output("logits"), dtype=np.float32)
    return logits.reshape(len(window), -1)


def require_vocabulary(tokenizer: int, source: int, package: int) -> None:
    """Refuse a package that cannot say all tokens; what is beyond the tokenizer's vocabulary is padding.

    Raises:
        QualityError: the package's vocabulary is smaller than both the tokenizer's and the source's.
    """
    if package < min(tokenizer, source):
        raise QualityError(
            f"logits of {package} tokens",
            f"the {min(tokenizer, source)} that the source can say",
            "package it again with --force",
        )


def compare(source: "NDArray[np.float16]", logits: "NDArray[np.float32]", following: "NDArray[np.int64]") -> Compared:
    """Compare two models at some positions, in float64.

    A vocabulary may be padded in one of the two. What the source gives to ids that the package lacks is dropped (they
    are padding, see `require_vocabulary`); what the package gives to ids that the source lacks counts as lost.

    Args:
        source: log-probabilities `[positions, vocabulary]`.
        logits: the package's `[positions, vocabulary]`.
        following: the token that really comes next, `[positions]`.

    Raises:
        QualityError: logits that are not finite.
    """
    import numpy as np

    if not np.isfinite(logits).all():
        raise QualityError("logits of the package that are not finite", "finite numbers", "use another --recipe")
    common, rows = min(source.shape[1], logits.shape[1]), np.arange(len(following))
    expected = _log_softmax(source[:, :common])
    found = _log_softmax(logits)
    best = found.argmax(axis=1)
    agreed = np.take_along_axis(_padded(expected, found.shape[1]), best[:, None], axis=1)[:, 0] == expected.max(axis=1)
    found = found[:, :common]
    kl = (np.exp(expected) * (expected - found)).sum(axis=1)
    return Compared(
        kl=np.maximum(kl, 0.0),  # rounding
        agreed=agreed.astype(np.float64),
        source_loss=-expected[rows, following],
        loss=-found[rows, following],
    )


def _padded(values: "NDArray[np.float64]", width: int) -> "NDArray[np.float64]":
    import numpy as np

    if width == values.shape[1]:  # nearly always: no copy of a number for every token
        return values
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=-np.inf)


def _log_softmax(values: "NDArray[Any]") -> "NDArray[np.float64]":
    import numpy as np

    shifted = values.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def summarise(compared: Compared, answers: tuple[Answer, ...], seconds: float) -> Measured:
    """Return the figures of all positions.

    Raises:
        QualityError: a figure beyond what a float holds, as of a package that is no language model any more.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        perplexity = float(np.exp(compared.loss.mean()))
    if not np.isfinite(perplexity):
        raise QualityError(
            f"a loss of {compared.loss.mean():.0f} nats a token",
            "that of a language model",
            "check the checkpoint, then package it again with --force",
        )
    return Measured(
        perplexity=perplexity,
        source_perplexity=float(np.exp(compared.source_loss.mean())),
        mean_kl=float(compared.kl.mean()),
        p99_kl=float(np.quantile(compared.kl, 0.99)),
        top1_agreement=float(compared.agreed.mean()),
        answers=answers,
        seconds=seconds,
    )
