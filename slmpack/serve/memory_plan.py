"""How many tokens the slots may hold: what the model's window has, or what memory holds beside the weights."""

from pathlib import Path

from slmpack.errors import HardwareError, UsageError

SHARE = 0.5  # of the memory that the weights leave; the rest is for the system's cache and for other processes
WEIGHT_FACTOR = 1.2  # kernels hold some weights a second time, in an order of their own
PROCESS_BYTES = 200 << 20  # of the process that computes, beside weights, keys and values; 100 MB were measured
LEAST_CONTEXT = 256  # tokens; a server of less answers hardly anything


def plan_context(
    window: int, wanted: int | None, slots: int, bytes_per_token: int, *, available: int, weights: int, models: int = 1
) -> int:
    """Return the tokens of a prompt and its answer that each slot holds at most.

    Args:
        window: of the model, tokens.
        wanted: what the user said; None: as many as fit.
        available: bytes that processes can still take.
        weights: bytes of the model's files of weights.
        models: served by this server; each gets an equal part, since none takes its memory before it has requests.

    Raises:
        UsageError: more is wanted than the model's window.
        HardwareError: what is wanted, or the least, does not fit into memory; it says what would.
    """
    if wanted is not None and wanted > window:
        raise UsageError(f"--context {wanted}", f"at most {window}, the model's window", "ask for less")
    fixed = int(WEIGHT_FACTOR * weights) + PROCESS_BYTES
    left = max(0, available // models - fixed)
    fits = int(left * (1 if wanted else SHARE) // (slots * bytes_per_token))
    context = min(window, fits) if wanted is None else wanted
    if context > fits or context < min(window, LEAST_CONTEXT):
        least = wanted or min(window, LEAST_CONTEXT)
        shared = f", of which {models} models get {available / models / 1e9:.1f} each" if models > 1 else ""
        raise HardwareError(
            f"{slots} slots of {least} tokens take {slots * least * bytes_per_token / 1e9:.1f} GB "
            f"({bytes_per_token:,} bytes a token), and the model itself {fixed / 1e9:.1f}",
            f"{available / 1e9:.1f} GB are free here{shared}",
            _advice(fits, least, left // (least * bytes_per_token), wanted),
        )
    return context


def _advice(tokens: int, least: int, slots: int, wanted: int | None) -> str:
    """Return what would fit: fewer slots, or shorter ones."""
    fitting = [f"--slots {slots}"] if slots else []
    if wanted is not None and tokens >= min(least, LEAST_CONTEXT):
        fitting.append(f"--context {tokens}")
    return f"use {' or '.join(fitting)}" if fitting else "serve it on a machine with more memory"


def weight_bytes(graph: Path) -> int:
    """Return the bytes of a graph's file and of those beside it that have its weights."""
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
