"""Conversation: turns with one model, which was loaded here or is behind a server.

    line -> command, or question -> system message, earlier turns, question -> model -> pieces of the answer
            earlier turns <- question and answer

`converse` follows the commands of an interactive chat; a `Screen` reads the lines and shows the answers.
"""

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any, Protocol

from slmpack.errors import SlmpackError, SourceError, UsageError

Message = dict[str, str]

COMMANDS = {
    "/reset": "forget what was said; the system message stays",
    "/system TEXT": "say this before every chat from now on; without TEXT no system message is sent",
    "/help": "list these commands",
    "/exit": "end the chat; so does Ctrl-D, and Ctrl-C twice at an empty prompt",
}
ENDS = ("/exit", "/quit", "/bye")
_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?", re.DOTALL)
_PROBE = "Hello"


class AnsweringModel(Protocol):
    """What answers chats.

    Attributes:
        has_turns: whether earlier turns and a system message can be sent with a question.
    """

    has_turns: bool

    def stream(self, messages: list[Message], limits: Mapping[str, Any]) -> Generator[str]:
        """Yield the pieces of the answer as they come.

        Args:
            limits: `max_tokens` and `temperature`, where they are not the model's own.

        Raises:
            SlmpackError: there is no answer.
        """

    def count_prompt_tokens(self, messages: list[Message]) -> int | None:
        """Return the tokens of the rendered chat; None where the server does not tell.

        Raises:
            SlmpackError: the chat is refused.
        """


class Conversation:
    """The turns with one model.

    Args:
        limits: of every answer, `max_tokens` and `temperature`.
    """

    def __init__(self, model: AnsweringModel, limits: Mapping[str, Any], system: str | None = None) -> None:
        self._model, self._limits = model, limits
        self._system: list[Message] = []
        self._turns: list[Message] = []
        self.set_system(system)

    def ask(self, prompt: str) -> Generator[str]:
        """Yield the pieces of an answer.

        An answer that the caller leaves early belongs to the conversation as far as it came; a question that failed
        does not belong to it.

        Raises:
            SlmpackError: there is no answer, or it broke off.
        """
        question = {"role": "user", "content": prompt}
        earlier = [*self._system, *self._turns] if self._model.has_turns else []
        said: list[str] = []
        try:
            with closing(self._model.stream([*earlier, question], self._limits)) as pieces:
                for piece in pieces:
                    said.append(piece)
                    yield piece
        except SlmpackError:
            said.clear()
            raise
        finally:
            if answer := "".join(said):
                self._turns += [question, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self._turns.clear()

    def set_system(self, text: str | None) -> None:
        """Send this system message with every question from now on; None: send none.

        Raises:
            SourceError: the model has no place for one.
        """
        if text is not None:
            _require_system_role(self._model, text)
        self._system = [] if text is None else [{"role": "system", "content": text}]


def _require_system_role(model: AnsweringModel, system: str) -> None:
    """Refuse a chat template that leaves the system message out: a longer one makes no longer prompt then."""
    if not model.has_turns:
        raise SourceError(
            "the model has the prompt interface, which knows no system message",
            "the chat interface",
            "leave the system message out, or put the text into the prompt",
        )
    lacks = "the model's chat template has no place for a system message", "", "leave the system message out"
    try:
        once, twice = (model.count_prompt_tokens(_probe(text)) for text in (system, f"{system}\n{system}"))
    except SourceError as error:
        if "chat template refuses" not in str(error):
            raise
        raise SourceError(f"{lacks[0]} ({error})", *lacks[1:]) from error
    if once is not None and twice is not None and twice <= once:
        raise SourceError(*lacks)


def _probe(system: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": _PROBE}]


class Screen(Protocol):
    """Where a conversation is read from and shown."""

    def read(self) -> str | None:
        """Return the next line without its end; None where there is no more."""

    def write(self, piece: str) -> None:
        """Show a piece of an answer."""

    def say(self, line: str) -> None:
        """Show a line of the program's own."""

    def end_answer(self) -> None:
        """Show that an answer is over."""

    def complain(self, error: SlmpackError) -> None:
        """Show a failure; raise it where the conversation cannot go on after one."""

    def interruptible(self) -> AbstractContextManager[object]:
        """Return a block in which Ctrl-C raises KeyboardInterrupt."""

    def stopped(self) -> None:
        """Show that an answer was stopped; raise KeyboardInterrupt where the whole command is to stop."""


def converse(conversation: Conversation, screen: Screen) -> None:
    """Answer line after line, until there is no more or `/exit`."""
    while (line := screen.read()) is not None:
        if not line.strip():
            continue
        command = _COMMAND.fullmatch(line.rstrip())
        if command is not None and command[1] in ENDS:
            return
        if command is None:
            _attempt(screen, partial(_answer, conversation, line, screen))
        else:
            _attempt(screen, partial(_obey, conversation, command[1], (command[2] or "").strip(), screen))


def _attempt(screen: Screen, work: Callable[[], None]) -> None:
    """Do what a line asks for; show its failure, or that Ctrl-C stopped it."""
    try:
        with screen.interruptible():
            work()
    except KeyboardInterrupt:
        screen.stopped()
    except SlmpackError as error:
        screen.complain(error)


def _answer(conversation: Conversation, prompt: str, screen: Screen) -> None:
    with closing(conversation.ask(prompt)) as pieces:
        for piece in pieces:
            screen.write(piece)
    screen.end_answer()


def _obey(conversation: Conversation, word: str, text: str, screen: Screen) -> None:
    """Follow a command.

    Raises:
        UsageError: there is no such command.
    """
    if word == "/reset":
        conversation.reset()
        screen.say("the chat begins anew")
    elif word == "/system":
        conversation.set_system(text or None)
        screen.say("the system message is set" if text else "no system message is sent")
    elif word == "/help":
        for command, meaning in COMMANDS.items():
            screen.say(f"{command:<13} {meaning}")
        screen.say("a line that begins with a space is a question, also where a command follows")
    else:
        known = ", ".join(command.partition(" ")[0] for command in COMMANDS)
        raise UsageError(f"no command {word}", f"one of {known}", "a question may begin with a space before the /")
