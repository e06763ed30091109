"""Scheduler: which prompt is read next, and which answers get a token; one turn after the other.

    turn: a part of one prompt -> a token for every answer that is being written

A short prompt goes before the rest of a long one, and waiting makes a prompt shorter, so that none waits for ever. A
prompt is read in parts, so that answers go on beside it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slmpack.serve.grammar import GrammarError, Grammars, Matcher
from slmpack.serve.jobs import Job, Refusal, Token
from slmpack.serve.sampling import Sampler
from slmpack.serve.slots import Slots, Table, last_part

PART = 128  # tokens of a prompt a turn: more is no faster, and the others wait for it
AGEING = 400.0  # tokens that a prompt counts as shorter for each second it waits


class Graph(Table, Protocol):
    """What is needed of `SlotGraph`."""

    slots: int

    @property
    def taken_tokens(self) -> int:
        """Tokens for whose keys and values memory was taken."""

    def reserve(self, slot: int, length: int) -> None:
        """Make a slot ready for so many tokens, prompt and answer together."""

    def advance(self, slot: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append tokens to a slot; return the logits behind the last of them, float32 `[vocabulary]`."""

    def step(self, tokens: Mapping[int, int]) -> Mapping[int, npt.NDArray[np.float32]]:
        """Append one token to each of some slots; return the logits behind it."""


class _Answer:
    """A job under way."""

    def __init__(self, job: Job, matcher: Matcher | None, since: float) -> None:
        self.job, self.matcher, self.since = job, matcher, since
        self.sampler = Sampler(job.rule)
        self.slot = -1  # none yet
        self.read = self.reused = self.made = 0
        self.last = 0

    def left(self, now: float) -> float:
        """Return how long the rest of the prompt is, less what its waiting counts."""
        return len(self.job.prompt) - self.read - AGEING * (now - self.since)

    def part(self, size: int) -> list[int]:
        """Return the next part of the prompt; its last token goes through the kernel that the whole has (see `slots`).

        Args:
            size: tokens at most, unless the last part needs one more.
        """
        count = len(self.job.prompt)
        last = last_part(count)
        if count - self.read <= max(size, last):
            return self.job.prompt[self.read :]
        end = min(self.read + size, count - last)
        return self.job.prompt[self.read : end]


class Scheduler:
    """Answers jobs on one graph.

    Args:
        together: whether a step may take several rows; else each row has a step of its own.
        reuse: whether the graph can use the beginning of an earlier prompt again.
        part: tokens of a prompt a turn, an even number.
        clock: seconds.
    """

    def __init__(
        self,
        graph: Graph,
        end_tokens: frozenset[int],
        grammars: Grammars,
        *,
        together: bool = True,
        reuse: bool = True,
        part: int = PART,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._graph, self._end_tokens, self._grammars = graph, end_tokens, grammars
        self._together, self._reuse, self._part, self._clock = together, reuse, part, clock
        self._slots = Slots(graph, graph.slots)
        self._reading: list[_Answer] = []  # prompts, with a slot or without one
        self._writing: dict[int, _Answer] = {}  # slot -> answer

    @property
    def has_work(self) -> bool:
        """Whether a turn would do anything."""
        return bool(self._reading or self._writing)

    def state(self) -> dict[str, int]:
        """Return what is going on, for the metrics."""
        waiting = sum(answer.slot < 0 for answer in self._reading)
        return {"slots": self._slots.busy, "waiting": waiting, "taken_tokens": self._graph.taken_tokens}

    def add(self, job: Job) -> None:
        """Take a job.

        Raises:
            GrammarError: its grammar cannot be followed.
        """
        matcher = None if job.rule.grammar is None else self._grammars.matcher(job.rule.grammar)
        self._reading.append(_Answer(job, matcher, self._clock()))

    def cancel(self, job: int) -> None:
        """Drop a job; its slot is free at once."""
        for answer in [each for each in (*self._reading, *self._writing.values()) if each.job.id == job]:
            self._end(answer)

    def turn(self) -> Iterator[Token | Refusal]:
        """Read a part of a prompt, then yield a token of every answer that is being written."""
        if (answer := self._next_to_read()) is not None and (token := self._read_part(answer)) is not None:
            yield token
        rows = {slot: answer.last for slot, answer in self._writing.items()}
        for some in [rows] if self._together and rows else [{slot: last} for slot, last in rows.items()]:
            for slot, logits in self._graph.step(some).items():
                yield self._next_token(self._writing[slot], logits)

    def _next_to_read(self) -> _Answer | None:
        ready = [answer for answer in self._reading if answer.slot >= 0 or self._slots.has_free]
        now = self._clock()
        return min(ready, key=lambda answer: answer.left(now), default=None)

    def _read_part(self, answer: _Answer) -> Token | Refusal | None:
        """Read on; return the first token once the whole prompt is read."""
        if answer.slot < 0:
            answer.slot, answer.reused = self._slots.take(answer.job.prompt, reuse=self._reuse and answer.job.reuse)
            answer.read = answer.reused
            self._graph.reserve(answer.slot, len(answer.job.prompt) + answer.job.max_tokens)
        part = answer.part(self._part)
        logits = self._graph.advance(answer.slot, part)
        self._slots.fill(answer.slot, part)
        answer.read += len(part)
        if answer.read < len(answer.job.prompt):
            return None
        self._reading.remove(answer)
        self._writing[answer.slot] = answer
        return self._next_token(answer, logits)

    def _next_token(self, answer: _Answer, logits: npt.NDArray[np.float32]) -> Token | Refusal:
        try:
            mask = None if answer.matcher is None else answer.matcher.mask()
        except GrammarError:  # found in the middle: what there is does not have the form, and must not look whole
            self._end(answer)
            return Refusal(answer.job.id, "a form that becomes too complex")
        chosen = answer.sampler.choose(logits, mask)
        if answer.matcher is not None:
            answer.matcher.push(chosen.token)
        answer.last = chosen.token
        answer.made += 1
        finish = "stop" if chosen.token in self._end_tokens else None
        if finish is None and answer.made >= answer.job.max_tokens:
            finish = "length"
        if finish is not None:
            self._end(answer)
        return Token(answer.job.id, chosen, finish, answer.reused)

    def _end(self, answer: _Answer) -> None:
        if answer in self._reading:
            self._reading.remove(answer)
        if answer.slot >= 0:
            self._writing.pop(answer.slot, None)
            self._slots.give_back(answer.slot)
