"""Chat data: looked at line by line before anything is loaded, and divided into what is learnt from and what is not.

    lines --> bad: left out, if they are few --> repeated: once --> chats --+--> training.jsonl    (see `parts`)
                                                                           +--> held-out.jsonl

A few bad lines in a large file are how exports are; many are another format, and nothing is learnt from the rest. A
data set is known by a digest of its chats, regardless of file names, order and repetitions: the same chats are the
same data.
"""

import logging
import math
from collections import Counter
from pathlib import Path

from pydantic import Field

from slmpack.chats.chat import place_of
from slmpack.chats.files import files_of
from slmpack.chats.lines import BadLine, ChatLine, TokensOf, read_lines
from slmpack.errors import DataError
from slmpack.machine.store import sha256_of
from slmpack.records import FileDigest, Record, digest_of

logger = logging.getLogger(__name__)

MIN_CHATS = 8  # fewer are learnt by heart within a minute, and a part of them measures nothing
MIN_HELD_OUT = 4  # of one or two answers, chance decides whether they got better
MOST_HELD_OUT = 0.5
RECORDED_BAD_LINES = 10
LISTED_BAD_LINES = 3


class DataPolicy(Record):
    """What a data set may be before nothing is learnt from it, and how much of it is held out."""

    max_bad_share: float = Field(
        0.02, ge=0.0, lt=1.0, description="The share of lines that may be bad and are left out: 0.02 is one in fifty."
    )
    held_out_share: float = Field(
        0.10, gt=0.0, le=MOST_HELD_OUT, description="The share of chats that nothing is learnt from, to measure by."
    )


def least_chats(policy: DataPolicy) -> str:
    """Say how few chats are enough; which of them are held out is chance, so for the share it is a guess."""
    likely = math.ceil(MIN_HELD_OUT / policy.held_out_share)
    return (
        f"at least {MIN_CHATS} different chats, {MIN_HELD_OUT} of them held out and {MIN_HELD_OUT} learnt from: "
        f"about {max(MIN_CHATS, likely)} with a share of {policy.held_out_share:g} held out"
    )


class ChatData(Record):
    """What a data set is; the chats themselves are read again from its files.

    Attributes:
        name: of the file or the folder, without its place.
        digest: sha256 over the chats, each of them once, regardless of files and order.
        training_digest, held_out_digest: of the two parts alone.
        lines: all that are not blank; `chats` + `bad` + `duplicates`.
        chats: different ones that can be used.
        held_out: how many of them are held out, with `policy`'s share.
        duplicates: lines that are a chat that came before.
        repaired: chats of which turns were joined or left out, see `chats`.
        first_bad: the first of the bad lines.
    """

    name: str
    files: tuple[FileDigest, ...]
    digest: str
    training_digest: str
    held_out_digest: str
    lines: int
    chats: int
    held_out: int
    bad: int
    duplicates: int
    repaired: int
    first_bad: tuple[BadLine, ...]
    policy: DataPolicy

    @property
    def training(self) -> int:
        """How many chats are learnt from."""
        return self.chats - self.held_out


def check_chats(
    path: Path,
    *,
    policy: DataPolicy = DataPolicy(),  # noqa: B008 - frozen
    tokens_of: TokensOf | None = None,
    context_length: int = 0,
) -> ChatData:
    """Look at every line of a file or a folder of chats, before anything is loaded.

    Args:
        tokens_of: counts the tokens of a chat as the model will read it; a `ChatError` of it makes the line a bad one.
            None: no chat is too long.
        context_length: tokens that the model takes at most.

    Raises:
        DataError: there are no files of chats; too many lines are bad; one chat repeats itself in most lines; or too
            few different ones are left to learn from or to hold out.
    """
    files = files_of(path)
    digests = tuple(
        FileDigest(name=file.name, sha256=sha256_of(file), size_bytes=file.stat().st_size) for file in files
    )
    tally = _Tally()
    for line in read_lines(files, tokens_of, context_length):
        tally.add(line)
    tally.require(path.name, policy)
    data = tally.data(path.name, digests, policy)
    _tell(data)
    return data


class _Tally:
    """Counts what lines are; of each chat it keeps a digest and its place."""

    def __init__(self) -> None:
        self.lines = self.bad = self.repaired = 0
        self.first_bad: list[BadLine] = []
        self.times: Counter[str] = Counter()
        self.places: dict[str, float] = {}

    def add(self, line: ChatLine) -> None:
        self.lines += 1
        if line.chat is None:
            self.bad += 1
            if len(self.first_bad) < RECORDED_BAD_LINES:
                self.first_bad.append(BadLine(file=line.file, line=line.number, reason=line.reason))
            return
        digest = line.chat.digest
        self.times[digest] += 1
        if digest not in self.places:
            self.places[digest] = place_of(line.chat)
            self.repaired += line.chat.repaired

    def require(self, name: str, policy: DataPolicy) -> None:
        """Refuse what nothing can be learnt from.

        Raises:
            DataError: why, with the figure.
        """
        if self.lines == 0:
            raise DataError(
                f"{name} is empty",
                f"{MIN_CHATS} chats at least, one JSON object a line",
                "see what should have written it",
            )
        if self.bad == self.lines or self.bad / self.lines > policy.max_bad_share:
            raise DataError(
                f"{self.bad:,} of {self.lines:,} lines of {name} are bad ({self.bad / self.lines:.1%}): "
                f"{_list_lines(self.first_bad, self.bad)}",
                f"at most {policy.max_bad_share:.1%}",
                "correct them or take them out",
            )
        most = max(self.times.values())
        if most > 1 and 2 * most > self.lines:
            raise DataError(
                f"one chat is {most:,} of {self.lines:,} lines of {name} ({most / self.lines:.0%})",
                "half of them at most",
                "see what repeats it",
            )
        if len(self.places) < MIN_CHATS:
            raise DataError(f"{name} has {len(self.places)} different chats", f"at least {MIN_CHATS}", "add more")
        self._require_parts(name, policy.held_out_share)

    def _require_parts(self, name: str, share: float) -> None:
        held = sum(place < share for place in self.places.values())
        learnt = len(self.places) - held
        if held < MIN_HELD_OUT:
            enough = math.floor(100 * sorted(self.places.values())[MIN_HELD_OUT - 1] + 1) / 100
            advice = f"hold out {enough:.2f} or add chats" if enough <= MOST_HELD_OUT else "add chats"
            raise DataError(
                f"a share of {share:g} holds out {held} of the {len(self.places)} chats of {name}",
                f"at least {MIN_HELD_OUT}",
                advice,
            )
        if learnt < MIN_HELD_OUT:
            raise DataError(
                f"a share of {share:g} leaves {learnt} of the {len(self.places)} chats of {name}",
                f"at least {MIN_HELD_OUT} to learn from",
                "add chats",
            )

    def data(self, name: str, files: tuple[FileDigest, ...], policy: DataPolicy) -> ChatData:
        held = sorted(digest for digest, place in self.places.items() if place < policy.held_out_share)
        learnt = sorted(self.places.keys() - set(held))
        return ChatData(
            name=name,
            files=files,
            policy=policy,
            digest=digest_of(sorted(self.places)),
            training_digest=digest_of(learnt),
            held_out_digest=digest_of(held),
            lines=self.lines,
            chats=len(self.places),
            held_out=len(held),
            bad=self.bad,
            duplicates=self.lines - self.bad - len(self.places),
            repaired=self.repaired,
            first_bad=tuple(self.first_bad),
        )


def _list_lines(first: list[BadLine], bad: int) -> str:
    """Name the first bad lines, and say that there are more."""
    listed = ", ".join(str(line) for line in first[:LISTED_BAD_LINES])
    return listed if bad <= LISTED_BAD_LINES else f"{listed}, and {bad - LISTED_BAD_LINES:,} more"


def _tell(data: ChatData) -> None:
    """Say what was found, and what was left out."""
    logger.info("%s: %d chats to learn from, %d held out", data.name, data.training, data.held_out)
    if data.duplicates:
        logger.info("%d lines that repeat a chat are left out", data.duplicates)
    if data.repaired:
        logger.info(
            "%d chats were repaired: turns of the user were joined, or left out after the last answer", data.repaired
        )
    if data.bad:
        logger.warning("%d bad lines are left out: %s", data.bad, _list_lines(list(data.first_bad), data.bad))
