"""Chats: what one line of data must be, and whether it is learnt from or held out.

    {"messages": [{"role": "system", ...}, {"role": "user", "content": "..."}, {"role": "assistant", ...}, ...], ...}

A chat is at most one system turn, then a user's and an assistant's in turn, and the assistant has the last word. Many
chat templates (Gemma, Mistral) refuse any other order, so two things that people have are repaired, and counted: two
turns of a user in a row become one, with an empty line between; what comes after the last answer is left out, since
nothing is learnt from it. Text stays as it is, character by character. Other keys beside `messages` are ignored.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

from slmpack.records import Record, digest_of

ROLES = ("system", "user", "assistant")
# What would be learnt from is more, or less, than the text says.
_TOOLS = ("tool_calls", "function_call")
_SHOWN = 40


class ChatError(ValueError):
    """Why a line is no chat to learn from."""


class Turn(Record):
    """What one side says, not empty, without NUL."""

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(Record):
    """One chat.

    Attributes:
        repaired: turns were joined or left out.
    """

    turns: tuple[Turn, ...]
    repaired: bool = False

    @property
    def digest(self) -> str:
        """The sha256 of all turns, role and text: the same chat has it in any file."""
        return digest_of([[turn.role, turn.content] for turn in self.turns])

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns as a tokenizer's `apply_chat_template` takes them."""
        return [turn.model_dump() for turn in self.turns]

    def line(self) -> str:
        """Return the chat as a line of JSON, without a line end."""
        return json.dumps({"messages": self.messages}, ensure_ascii=False)


def place_of(chat: Chat) -> float:
    """Return where in 0 to 1 the chat lies: below the share that is held out, it is held out.

    By a hash of what the user asks, all of it and nothing else: so a chat stays on its side if others are added, taken
    away or put elsewhere, and one question with two answers is on one side. Case, spaces and punctuation do not count:
    "Who rules?" and "who rules" are one question. The same question in other words is another, and so is a chat that
    goes on where another ends: a hash cannot tell.
    """
    questions = [turn.content for turn in chat.turns if turn.role == "user"]
    plain = [" ".join(re.findall(r"\w+", text.casefold())) or text for text in questions]
    return int.from_bytes(hashlib.sha256("\n".join(plain).encode()).digest()[:6], "big") / 2**48


def held_out(chat: Chat, share: float = 0.1) -> bool:
    """Return whether nothing is learnt from the chat, so that it can measure; about `share` of all are held out.

    One that is held out at some share is held out at any larger one.
    """
    return place_of(chat) < share


def parse_chat(line: bytes) -> Chat:
    """Read one line.

    Raises:
        ChatError: it is not UTF-8, not JSON, or no chat to learn from; the message says where.
    """
    turns = [_turn(number, message) for number, message in enumerate(_messages(line), start=1)]
    _check_order(turns)
    joined = list(_joined(turns))
    if joined[-1].role == "user":
        joined.pop()
    return Chat(turns=tuple(joined), repaired=len(joined) < len(turns))


def _messages(line: bytes) -> list[Any]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ChatError(f"byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ChatError(f"it is not JSON ({error.msg} at character {error.pos + 1})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise ChatError("it is JSON that Python does not read") from error
    if not isinstance(value, dict):
        raise ChatError(f"it holds {_kind(value)}, not an object")
    messages = value.get("messages")
    if not isinstance(messages, list):
        raise ChatError(f"messages is {_kind(messages)}, not a list" if "messages" in value else "it has no messages")
    if not messages:
        raise ChatError("messages is empty")
    return messages


def _turn(number: int, message: Any) -> Turn:
    if not isinstance(message, dict):
        raise ChatError(f"message {number} is {_kind(message)}, not an object")
    role = message.get("role")
    if role not in ROLES:
        raise ChatError(f"message {number} has the role {str(role)[:_SHOWN]!r}, not one of {', '.join(ROLES)}")
    if tools := [key for key in _TOOLS if message.get(key)]:
        raise ChatError(f"message {number} has {tools[0]}, which cannot be learnt")
    if message.get("weight", 1) not in (1, None):
        raise ChatError(f"message {number} has a weight, and every answer is learnt")
    return Turn(role=role, content=_text(number, message.get("content")))


def _text(number: int, content: Any) -> str:
    """Return the text; parts of text, as OpenAI's API takes them, become lines of one, as in vLLM and llama.cpp."""
    if isinstance(content, list):
        content = "\n".join(_part(number, part) for part in content)
    if not isinstance(content, str):
        raise ChatError(f"the content of message {number} is {_kind(content)}, not text")
    if not content.strip():
        raise ChatError(f"the content of message {number} is empty")
    if "\0" in content:
        raise ChatError(f"the content of message {number} has a NUL at character {content.index(chr(0)) + 1}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise ChatError(f"the content of message {number} has half a character at {error.start + 1}") from error
    return content


def _part(number: int, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = str(part.get("type"))[:_SHOWN] if isinstance(part, dict) else _kind(part)
    raise ChatError(f"the content of message {number} has a part that is {kind}, not text")


def _check_order(turns: list[Turn]) -> None:
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        raise ChatError(f"message {roles.index('system', 1) + 1} is system, which can only be the first")
    spoken = [role for role in roles if role != "system"]
    if not spoken:
        raise ChatError("it has only a system message")
    if spoken[0] != "user":
        raise ChatError("the assistant speaks before the user")
    if "assistant" not in spoken:
        raise ChatError("it has no answer of the assistant")
    for number, (one, next_one) in enumerate(pairwise(roles), start=2):
        if one == next_one == "assistant":
            raise ChatError(f"message {number} is a second answer of the assistant in a row")


def _joined(turns: list[Turn]) -> Iterator[Turn]:
    """Yield the turns, a run of the user's as one."""
    joined_turn = turns[0]
    for turn in turns[1:]:
        if turn.role == joined_turn.role:
            joined_turn = Turn(role=joined_turn.role, content=f"{joined_turn.content}\n\n{turn.content}")
        else:
            yield joined_turn
            joined_turn = turn
    yield joined_turn


def _kind(value: object) -> str:
    """Name a JSON value as JSON does."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
