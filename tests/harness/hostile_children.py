"""What the tests of hostile texts run in a process of its own."""

import os
from pathlib import Path

from slmpack.machine.child import limited
from slmpack.records import Record

SLOW_TEXT = "i" * 2500 + "! a"  # seconds for an expression that backtracks


class Source(Record):
    folder: Path


class Told(Record):
    """What came of each text: its ids, or the error."""

    lines: tuple[str, ...]


def hoard(source: Source) -> Source:
    with limited("the template", seconds=60, size_bytes=200 << 20):
        bytearray(1 << 30)
    return source


def stand_still(source: Source) -> Source:
    from tokenizers import Tokenizer

    with limited("the tokenizer", seconds=0.5):
        tokenizer = Tokenizer.from_file(str(source.folder / "tokenizer.json"))
        tokenizer.encode(SLOW_TEXT * 20)  # no other thread runs meanwhile
    return source


def encode_texts_without_end(source: Source) -> Told:
    """Encode one, another text, one more, and that other text again.

    A thread goes on with each for minutes: in a process of its own, which ends, it takes no time from other tests.
    """
    from slmpack.log.chat_model import TextTokenizer, TokenizerError

    tokenizer, lines = TextTokenizer(source.folder, limit_seconds=3.0), []
    for text in (SLOW_TEXT * 20, "Hi", SLOW_TEXT * 20, "Hi"):
        try:
            lines.append(str(tokenizer.encode(text)))
        except TokenizerError as error:
            lines.append(str(error))
    return Told(lines=tuple(lines))


def abort(source: Source) -> Source:
    with limited("the tokenizer"):
        os.abort()


def try_folder(source: Source) -> Source:
    from slmpack.checkpoint.text_trial import try_texts

    try_texts(source.folder, seconds=200.0, size_bytes=1 << 30)  # no case is one of time
    return source
