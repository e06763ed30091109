"""Windows of token ids to run a checkpoint on, and the dtype that it is stored in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmpack.errors import UsageError
from slmpack.records import Snapshot

TEXT_FILE, REFERENCE_FILE, LOG_PROBABILITIES_FILE = "text.txt", "reference.json", "log_probabilities.npy"


MIN_TOKENS = 200


DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def dtype_of(snapshot: Snapshot) -> str:
    """Return torch's name of the precision that the source's weights are in."""
    return DTYPES.get(snapshot.dtype, "float32")


def first_ids(tokenizer: Any, text: Path, most: int, what_for: str) -> list[int]:
    """Return the token ids of a text file, at most `most`.

    Raises:
        UsageError: they are fewer than 200.
    """
    ids: list[int] = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"][:most]
    if len(ids) < MIN_TOKENS:
        raise UsageError(f"a {what_for} text of {len(ids)} tokens", f"at least {MIN_TOKENS}", "give a longer text")
    return ids


def cut_windows(ids: list[int], size: int, prefix: list[int]) -> Iterator[tuple[int, ...]]:
    """Cut `ids` into windows of at most `size` tokens, each after `prefix`; a last one of 1 token says nothing."""
    step = size - len(prefix)
    for start in range(0, len(ids), step):
        window = (*prefix, *ids[start : start + step])
        if len(window) >= 2:
            yield window


def prefix_of(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before every text: without them some models are lost."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(plain)] == plain), [])
