"""The text that quality is measured on, and the reason for waiving it."""

import codecs
from pathlib import Path

from slmpack.errors import UsageError
from slmpack.machine.bounded_file import open_regular

CORPUS = Path(__file__).with_name("corpus") / "quality.txt"


READ_BYTES = 1 << 18  # of a text: many times what its first 2,048 tokens need


MIN_TEXT_BYTES = 400  # below it no tokenizer gives 200 tokens of prose; the exact count comes later


MIN_WAIVER_LETTERS = 8


def checked_waiver(waiver: str) -> str:
    """Return the reason in one line.

    Raises:
        UsageError: it is too short to be one.
    """
    reason = " ".join(waiver.split())
    if sum(letter.isalnum() for letter in reason) < MIN_WAIVER_LETTERS:
        raise UsageError(
            f"the waiver {reason!r}",
            f"a reason of at least {MIN_WAIVER_LETTERS} letters",
            "say why it does not matter here",
        )
    return reason


def read_text(path: Path | None, option: str = "--quality-text") -> str:
    """Return the text to measure on, the built-in one without a path; cheap, so that a bad one is refused early.

    Args:
        option: what the user named the file with.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 text, or is far too short.
    """
    path, advice = path or CORPUS, f"name another file with {option}"
    try:
        with open_regular(path) as file:
            head = file.read(READ_BYTES)
            text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=not file.read(1))
    except OSError as error:
        raise UsageError(f"the text {path.name}: {error.strerror}", "a file", advice) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"byte {error.start} of {path.name} is not UTF-8", "UTF-8 text", advice) from error
    if "\0" in text:
        raise UsageError(f"a NUL byte in {path.name}", "text, not data", advice)
    if len(text.strip().encode()) < MIN_TEXT_BYTES:
        raise UsageError(
            f"{len(text.strip().encode())} bytes of text in {path.name}",
            f"at least 200 tokens, so {MIN_TEXT_BYTES} bytes or more",
            advice,
        )
    return text
