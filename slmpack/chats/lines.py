"""Lines of chat data: each is a chat, or the reason why it is none.

A line that is too long, has no chat, or has more tokens than the model takes is a bad one.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from slmpack.chats.chat import Chat, ChatError, parse_chat
from slmpack.chats.files import MAX_LINE_BYTES, files_of, lines_of
from slmpack.errors import DataError
from slmpack.progress import report
from slmpack.records import Record

LINES_A_REPORT = 1000

TokensOf = Callable[[Chat], int]


class BadLine(Record):
    """A line that is left out: the file's name, the line's number from 1, and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} line {self.line}: {self.reason}"


class ChatLine(NamedTuple):
    """A line that is a chat, or the reason why not."""

    file: str
    number: int
    chat: Chat | None
    reason: str = ""


def read_chats(path: Path, *, tokens_of: TokensOf | None = None, context_length: int = 0) -> Iterator[Chat]:
    """Yield every chat of a file or a folder once, in their order; what `check_chats` leaves out is not among them.

    Raises:
        DataError: there are no files of chats.
    """
    return _different(
        line.chat for line in read_lines(files_of(path), tokens_of, context_length) if line.chat is not None
    )


def read_good_chats(path: Path) -> Iterator[Chat]:
    """Yield every chat of a file or a folder once, in their order.

    Raises:
        DataError: there are no files of chats, no chat in them, or a line that is none.
    """
    found = _different(_chat_of(line) for line in read_lines(files_of(path), None, 0))
    first = next(found, None)
    if first is None:
        raise DataError(f"{path.name} is empty", "one chat at least, one JSON object a line", "name another file")
    yield first
    yield from found


def read_lines(files: list[Path], tokens_of: TokensOf | None, context_length: int) -> Iterator[ChatLine]:
    """Yield every line of files of chats; the arguments are those of `check_chats`."""
    done = 0
    for file in files:
        for number, text in lines_of(file):
            try:
                yield ChatLine(file.name, number, _chat(text, tokens_of, context_length))
            except ChatError as error:
                yield ChatLine(file.name, number, None, str(error))
            done += 1
            if done % LINES_A_REPORT == 0:
                report("data", done, None, "lines")


def _chat_of(line: ChatLine) -> Chat:
    if line.chat is None:
        raise DataError(
            str(BadLine(file=line.file, line=line.number, reason=line.reason)),
            "a chat in every line",
            "correct it or take it out",
        )
    return line.chat


def _different(chats: Iterable[Chat]) -> Iterator[Chat]:
    seen: set[bytes] = set()
    for chat in chats:
        if (digest := bytes.fromhex(chat.digest)) not in seen:
            seen.add(digest)
            yield chat


def _chat(text: bytes | None, tokens_of: TokensOf | None, context_length: int) -> Chat:
    if text is None:
        raise ChatError(f"it is longer than {MAX_LINE_BYTES:,} bytes")
    chat = parse_chat(text)
    if tokens_of is not None and (tokens := tokens_of(chat)) > context_length:
        raise ChatError(f"it has {tokens:,} tokens, and the model takes {context_length:,}")
    return chat
