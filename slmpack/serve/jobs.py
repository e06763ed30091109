"""Jobs: what the front sends to the engine and the engine sends back, one line of JSON each.

front  -> {"new": {...}} | {"cancel": id} | {"stop": true}
engine -> {"ready": {...}} | {"tokens": [...], "state": {...}} | {"refused": [id, reason]}
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from slmpack.serve.sampling import Chosen, SamplingRule

LONGEST_LINE = 64 << 20  # bytes; a prompt of a million tokens has some 7 million


@dataclass(frozen=True)
class Job:
    """One answer that is to be generated.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: new tokens at most; with the prompt they fit into the context.
        reuse: whether the beginning of an earlier prompt may be used again.
    """

    id: int
    prompt: list[int]
    max_tokens: int
    rule: SamplingRule = field(default_factory=SamplingRule)
    reuse: bool = True

    def to_line(self) -> bytes:
        """Return the line that is sent."""
        return line_of({"new": asdict(self)})

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Job":
        """Return the job that was sent; JSON has only strings for the keys of `bias`."""
        rule = fields.pop("rule")
        rule["bias"] = {int(token): bias for token, bias in rule["bias"].items()}
        return cls(**fields, rule=SamplingRule(**rule))


@dataclass(frozen=True)
class Token:
    """The next token of a job.

    Attributes:
        finish: `stop` after a token that ends the turn, `length` at the limit; None: more will follow.
        reused: tokens of the prompt that needed not be computed.
    """

    id: int
    chosen: Chosen
    finish: str | None
    reused: int

    def to_fields(self) -> list[Any]:
        """Return what is written into a line."""
        chosen = self.chosen
        return [self.id, chosen.token, self.finish, self.reused, chosen.logprob, list(chosen.likeliest)]

    @classmethod
    def from_fields(cls, fields: list[Any]) -> "Token":
        """Return the token that was sent."""
        job, token, finish, reused, logprob, likeliest = fields
        return cls(job, Chosen(token, logprob, tuple((each, value) for each, value in likeliest)), finish, reused)


@dataclass(frozen=True)
class Refusal:
    """The end of a job that cannot be answered."""

    id: int
    reason: str


def line_of(message: object) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Cuts what was received into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def push(self, received: bytes) -> Iterator[dict[str, Any]]:
        """Take bytes and yield the messages that are whole."""
        self._rest += received
        if len(self._rest) > LONGEST_LINE:
            raise ValueError(f"a line of more than {LONGEST_LINE} bytes")
        if b"\n" not in received:
            return
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            yield json.loads(line)
