"""Is the exported graph the same model? Its logits are compared with the source's own, position by position.

    a fixed text --transformers, float32 (`checkpoint.forward`)--> logits --+
    a fixed text --the graph: prefill, then decode steps--> logits ---+--> `Compared`, or BuildError

optimum itself compares a few random tokens and only warns. What is compared here is what this machine's transformers
makes of the checkpoint, so a configuration that the exporter's older transformers reads otherwise is found as well.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.finite import require_finite_weights
from slmpack.checkpoint.forward import load_source, logits_of
from slmpack.errors import BuildError
from slmpack.machine.child import limited
from slmpack.machine.forks import TORCH, forked_with
from slmpack.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# Largest difference at a position, as a share of the distance from its lowest to its highest logit. Both sides compute
# in float32; random weights of seven families differed by 1e-6 at most, doubled epsilons of norms by 1.4e-4.
TOLERANCE = 1e-4
MOST_TOKENS = 64
DECODE_STEPS = 4
TEXT = (
    "The lighthouse stood at the end of a long stone pier. Every evening, just before sunset, the keeper climbed its "
    "ninety-two steps, cleaned the lamp and lit it. Ships from 14 countries passed by; most of their captains never "
    "learned his name. In the winter of 1897 a storm broke the pier in two places, and for eleven days nobody came."
)
PAST, PRESENT = "past_key_values.", "present."


class CheckRequest(Record):
    """A checkpoint, its weights' precision in torch's terms, and the graph that was exported of it."""

    snapshot: Path
    dtype: str
    context_length: int
    graph: Path


class Compared(Record):
    """How many positions were compared, and the largest difference, as a share of the logits' spread."""

    positions: int
    largest: float


@forked_with(*TORCH)
def compare_with_source(request: CheckRequest) -> Compared:
    """Run in a child: run both and compare.

    Raises:
        BuildError: they differ by more than `TOLERANCE`, have another likeliest token, the graph does not run, or a
            weight is not finite.
    """
    require_finite_weights(request.snapshot)
    ids = _ids_of(request)
    source = _source_logits(request, ids)
    found = graph_logits(request.graph, ids)[: len(source)]
    return compare_logits(found, source, len(ids) - DECODE_STEPS)


def _ids_of(request: CheckRequest) -> list[int]:
    from transformers import AutoTokenizer

    with limited(f"the tokenizer of {request.snapshot}"):
        tokenizer = AutoTokenizer.from_pretrained(request.snapshot, local_files_only=True)
        ids: list[int] = tokenizer(TEXT)["input_ids"]
    return ids[: min(MOST_TOKENS, request.context_length)]


def _source_logits(request: CheckRequest, ids: list[int]) -> "Floats":
    """Return float32 `[len(ids) - 1, vocabulary]`."""
    import numpy as np

    model = load_source(request.snapshot, request.dtype)
    return np.concatenate([part.numpy() for part in logits_of(model, [ids])])


def graph_logits(graph: Path, ids: list[int]) -> "Floats":
    """Return the graph's logits, float32 `[len(ids), vocabulary]`: all but the last 4 ids at once, these one by one.

    Raises:
        BuildError: the graph asks for something unknown, or does not run.
    """
    import numpy as np
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        past = {each.name: np.zeros(_empty(each.shape), np.float32) for each in _past_inputs(session)}
        rows, start = [], 0
        for stop in (len(ids) - DECODE_STEPS, *range(len(ids) - DECODE_STEPS + 1, len(ids) + 1)):
            answers = dict(zip(names, session.run(None, _feeds(session, ids, start, stop) | past), strict=True))
            rows.append(answers["logits"][0])
            past = {name: answers[name.replace(PAST, PRESENT)] for name in past}
            start = stop
    except Exception as error:  # onnxruntime has an exception class for every status
        raise BuildError(
            f"the exported graph does not run: {' '.join(str(error).split())[:300]}",
            "a graph that takes a prompt and then its answer's tokens",
            "use --target transformers",
        ) from error
    return np.concatenate(rows)


def _past_inputs(session: Any) -> list[Any]:
    return [each for each in session.get_inputs() if each.name.startswith(PAST)]


def _empty(shape: list[int | str]) -> list[int]:
    """Return the shape `[1, heads, 0, head size]` of a cache before the first token."""
    _, heads, _, size = shape
    return [1, int(heads), 0, int(size)]


def _feeds(session: Any, ids: list[int], start: int, stop: int) -> dict[str, Any]:
    import numpy as np

    known = {
        "input_ids": np.array([ids[start:stop]], np.int64),
        "attention_mask": np.ones((1, stop), np.int64),
        "position_ids": np.arange(start, stop, dtype=np.int64)[None],
    }
    return {each.name: known[each.name] for each in session.get_inputs() if not each.name.startswith(PAST)}


def compare_logits(found: "Floats", expected: "Floats", prefilled: int) -> Compared:
    """Compare float32 `[positions, vocabulary]`.

    Args:
        prefilled: positions before this one were prefilled, the others decoded; for the error.

    Raises:
        BuildError: a position differs too much; which, by how much, and both likeliest tokens.
    """
    import numpy as np

    if found.shape != expected.shape:
        raise BuildError(
            f"logits {list(found.shape)} of the exported graph",
            f"{list(expected.shape)}, as the source",
            "use --target transformers",
        )
    spreads = np.maximum(np.ptp(expected, axis=1), np.finfo(np.float32).tiny)
    shares = np.nan_to_num(np.abs(found - expected).max(axis=1) / spreads, nan=np.inf)
    tops = found.argmax(axis=1), expected.argmax(axis=1)
    wrong = (shares > TOLERANCE) | (tops[0] != tops[1])
    if not wrong.any():
        return Compared(positions=len(expected), largest=float(shares.max()))
    at = int(shares.argmax()) if (shares > TOLERANCE).any() else int(wrong.argmax())
    stage = "prefill" if at < prefilled else "decode"
    other = f", likeliest token {tops[0][at]} and not {tops[1][at]}" if tops[0][at] != tops[1][at] else ""
    raise BuildError(
        f"the exported graph is another model: its logits differ from the source's at {int(wrong.sum())} of "
        f"{len(expected)} positions, most at position {at} ({stage}), by {shares[at]:.2g} of their spread{other}",
        f"at most {TOLERANCE:g} and the same likeliest token",
        "use --target transformers",
    )
