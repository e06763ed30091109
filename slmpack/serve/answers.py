"""Answers in OpenAI's form: whole ones, and chunks of a stream; of chats, and of texts that go on from a prompt.

Source: OpenAI's API reference, "Chat completion object", "Chat completion chunk object" and "Completion object".
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from slmpack.log.chat_model import Row, TextTokenizer
from slmpack.serve.jobs import Token
from slmpack.serve.served_model import Piece
from slmpack.serve.tools import ToolForm, ToolText


@dataclass
class Usage:
    """Tokens of one request: its prompts, those of them that needed not be computed, and its answers."""

    prompt: int
    reused: int = 0
    completion: int = 0

    def count(self, tokens: Sequence[Token]) -> None:
        """Add the tokens of a piece."""
        self.completion += len(tokens)
        self.reused = max([self.reused, *(token.reused for token in tokens)])

    def to_row(self) -> Row:
        """Return OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        }


@dataclass
class Form:
    """How the answers to one request are written.

    Attributes:
        is_chat: chat completions; else completions of texts.
        logprobs: whether they are written.
        tool_form: how calls are told from text; None: all is text.
    """

    is_chat: bool
    model: str
    tokenizer: TextTokenizer
    end_tokens: frozenset[int]
    logprobs: bool
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    tool_form: ToolForm | None = None
    _divided: dict[int, ToolText] = field(default_factory=dict)

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> Row:
        """Return the answer of all choices, each of which is a list of pieces."""
        choices = [self._choice(index, each) for index, each in enumerate(pieces)]
        return {**self._envelope("chat.completion"), "choices": choices, "usage": usage.to_row()}

    def first(self, index: int) -> Row | None:
        """Return the chunk that begins a choice of a chat; texts have none."""
        if not self.is_chat:
            return None
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def chunks(self, piece: Piece) -> list[Row]:
        """Return the chunks of a piece: its text, and with the last one the reason of the end."""
        logprobs = self._logprobs(self._told(piece))
        if not self.is_chat:
            choice = {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
            return [self._chunk([choice])]
        text, calls, finish = self._divide(piece)
        deltas: list[tuple[Row, Row | None, str | None]] = []
        if text or logprobs:
            deltas.append(({"content": text}, logprobs, None))
        deltas += [({"tool_calls": [call]}, None, None) for call in calls]
        if finish:
            deltas.append(({}, None, finish))
        return [
            self._chunk([{"index": piece.index, "delta": delta, "logprobs": some, "finish_reason": end}])
            for delta, some, end in deltas
        ]

    def _divide(self, piece: Piece) -> tuple[str, list[Row], str | None]:
        """Return the text of a piece, the calls that are whole with it, and the reason of the end."""
        if self.tool_form is None:
            return piece.text, [], piece.finish
        divided = self._divided.setdefault(piece.index, ToolText(self.tool_form))
        known = len(divided.calls)
        text = divided.push(piece.text) + (divided.rest() if piece.finish else "")
        calls = [{"index": place, **call} for place, call in enumerate(divided.calls) if place >= known]
        return text, calls, "tool_calls" if piece.finish == "stop" and divided.calls else piece.finish

    def last(self, usage: Usage) -> Row:
        """Return the chunk that tells the usage, and has no choice."""
        return self._chunk([]) | {"usage": usage.to_row()}

    def _choice(self, index: int, pieces: Sequence[Piece]) -> Row:
        self._divided.pop(index, None)  # a stream has divided them already
        divided = [self._divide(piece) for piece in pieces]
        text = "".join(some for some, _, _ in divided)
        tokens = [token for piece in pieces for token in self._told(piece)]
        common = {"index": index, "logprobs": self._logprobs(tokens), "finish_reason": divided[-1][2]}
        if not self.is_chat:
            return {**common, "text": text}
        message: Row = {"role": "assistant", "content": text, "refusal": None}
        if index in self._divided and (calls := self._divided[index].calls):
            message |= {"content": text or None, "tool_calls": calls}
        return {**common, "message": message}

    def _chunk(self, choices: list[Row]) -> Row:
        return {**self._envelope("chat.completion.chunk"), "choices": choices}

    def _envelope(self, kind: str) -> Row:
        kind, prefix = (kind, "chatcmpl") if self.is_chat else ("text_completion", "cmpl")
        return {"id": f"{prefix}-{self.identity}", "object": kind, "created": self.created, "model": self.model}

    def _told(self, piece: Piece) -> Sequence[Token]:
        """Return the tokens that the text is made of: neither the end of the turn nor what only a stop string has."""
        if piece.finish != "stop" or not self.logprobs:
            return piece.tokens
        spelling, told = b"", []
        for token in piece.tokens:
            enough = len(spelling.decode(errors="replace")) >= len(piece.text)
            if not enough and token.chosen.token not in self.end_tokens:
                told.append(token)
                spelling += self.tokenizer.bytes_of(token.chosen.token)
        return told

    def _logprobs(self, tokens: Sequence[Token]) -> Row | None:
        if not self.logprobs:
            return None
        return self._chat_logprobs(tokens) if self.is_chat else self._text_logprobs(tokens)

    def _chat_logprobs(self, tokens: Sequence[Token]) -> Row:
        content = [
            self._spelt(token.chosen.token, token.chosen.logprob)
            | {"top_logprobs": [self._spelt(*each) for each in token.chosen.likeliest]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _spelt(self, token: int, logprob: float | None) -> Row:
        spelling = self.tokenizer.bytes_of(token)
        return {"token": spelling.decode(errors="replace"), "bytes": list(spelling), "logprob": logprob}

    def _text_logprobs(self, tokens: Sequence[Token]) -> Row:
        def name(token: int) -> str:
            try:
                return (spelling := self.tokenizer.bytes_of(token)).decode()
            except UnicodeDecodeError:  # by its bytes, as OpenAI does: another part of a character has another name
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)

        return {
            "tokens": [name(token.chosen.token) for token in tokens],
            "token_logprobs": [token.chosen.logprob for token in tokens],
            "top_logprobs": [{name(each): value for each, value in token.chosen.likeliest} for token in tokens],
            "text_offset": None,
        }


async def merged(streams: Sequence[AsyncGenerator[Piece]]) -> AsyncGenerator[Piece]:
    """Yield the pieces of several answers as they come; an error of one ends all."""
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    async def follow(stream: AsyncGenerator[Piece]) -> None:
        try:
            async for piece in stream:
                queue.put_nowait(piece)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)
        finally:
            await stream.aclose()

    tasks = [asyncio.create_task(follow(stream)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def choices_of(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """Return the pieces of each choice."""
    found: list[list[Piece]] = [[] for _ in range(count)]
    for piece in pieces:
        found[piece.index].append(piece)
    return found
