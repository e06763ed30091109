"""`slmpack chat`: one question to a published model or to a server, or a conversation; answers stream to stdout."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli_lines import OK, begin
from flows.cli_parser import CommandParser, add_trust_option, add_trust_policy_option, use_trust_policy

if TYPE_CHECKING:
    from slmpack.log.conversation import AnsweringModel, Conversation

STDIN = "-"
KEY_VARIABLE = "SLMPACK_API_KEY"
MOST_TOKENS, HIGHEST_TEMPERATURE = 2**18, 2.0  # of one call, as the wrapper has them


def chat_options(parser: CommandParser) -> None:
    """Add the options of `chat`."""
    parser.add_argument(
        "model_uri",
        metavar="MODEL_URI",
        nargs="?",
        help="such as models:/smollm2-135m-instruct@cpu-int4; with --url the model's name there (default: its first)",
    )
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help=f"the question; {STDIN} reads it from standard input; without one every line of it is a turn of a chat",
    )
    parser.late = "prompt"
    parser.add_argument("--url", metavar="URL", help="ask the server there, slmpack's or another of OpenAI's protocol")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"whose first line is the server's key (or ${KEY_VARIABLE})"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is to be, said before the question")
    parser.add_argument(
        "--max-tokens",
        type=_number(int, 1, MOST_TOKENS),
        metavar="N",
        help="new tokens at most (default: what the model was published with)",
    )
    parser.add_argument(
        "--temperature",
        type=_number(float, 0.0, HIGHEST_TEMPERATURE),
        metavar="X",
        help="0 always takes the likeliest token (default)",
    )
    add_trust_option(parser)
    add_trust_policy_option(parser)
    parser.set_defaults(run=_chat)


def _number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """Return what reads a number within its limits."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"found {text!r}; expected {what} from {low:g} to {high:,.10g}")
        return value

    return read


def _chat(parsed: argparse.Namespace) -> int:
    _check(parsed)
    from flows.chat_screens import show

    prompt = None if parsed.prompt is None else _prompt(parsed.prompt)
    system = None if parsed.system is None else _filled(parsed.system, "--system", "leave --system out")
    limits = {name: getattr(parsed, name) for name in ("max_tokens", "temperature")}
    limits = {name: value for name, value in limits.items() if value is not None}
    with _model(parsed) as model:
        from slmpack.log.conversation import Conversation

        conversation = Conversation(model, limits, system)
        if prompt is None:
            return _converse(conversation)
        for piece in conversation.ask(prompt):
            show(piece)
        show("\n")
    return OK


def _check(parsed: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything slow; a lone prompt beside --url gets its place.

    Raises:
        UsageError: the model is missing or can be none, or an option is for the other kind of chat.
    """
    from slmpack.errors import UsageError
    from slmpack.log.ask import check_model

    if sys.stdin is None and parsed.prompt in (None, STDIN):
        raise UsageError("standard input is closed", "the prompt in it", "pipe a text into the command")
    if parsed.url is None:
        if parsed.model_uri is None:
            raise UsageError("MODEL_URI is missing", "a published model", "name one, or a server with --url URL")
        if parsed.api_key_file is not None:
            raise UsageError("--api-key-file without --url", "a server that has keys", "leave it out, or give --url")
        check_model(parsed.model_uri)
        use_trust_policy(parsed)
        return
    if parsed.trust_code:
        raise UsageError("--trust-code with --url", "a model that is loaded here", "leave one of them out")
    if parsed.prompt is None and parsed.model_uri is not None and _is_prompt(parsed.model_uri):
        parsed.model_uri, parsed.prompt = None, parsed.model_uri


def _is_prompt(word: str) -> bool:
    """Say whether the only word beside --url is a question: no model's name is empty or has a space in it."""
    return word == STDIN or not word.strip() or len(word.split()) > 1


@contextmanager
def _model(parsed: argparse.Namespace) -> "Iterator[AnsweringModel]":
    """Give the model that answers."""
    if parsed.url is None:
        begin(f"loading {parsed.model_uri}")
        from slmpack.log.ask import load_model

        yield load_model(parsed.model_uri, trust_code=parsed.trust_code)
        return
    from slmpack.serve.client import RemoteModel
    from slmpack.serve.keys import read_keys

    key = os.environ.get(KEY_VARIABLE) or None
    if parsed.api_key_file is not None:
        key = read_keys(parsed.api_key_file)[0]
    server = RemoteModel(parsed.url, parsed.model_uri, key)
    begin(f"asking {parsed.url}")
    with server as model:
        yield model


def _converse(conversation: "Conversation") -> int:
    from flows.chat_screens import Pipe, Terminal
    from slmpack.log.conversation import converse

    converse(conversation, Terminal() if sys.stdin.isatty() else Pipe())
    return OK


def _prompt(text: str) -> str:
    """Return the question, which may be on standard input.

    Raises:
        UsageError: it is empty, too long, or not text.
    """
    from flows.chat_screens import MOST_PROMPT_BYTES, read_text

    if text == STDIN:
        text = read_text(sys.stdin.buffer.read(MOST_PROMPT_BYTES + 1))
    return _filled(text, "the prompt", f"type a question, or {STDIN} to read one from standard input")


def _filled(text: str, what: str, advice: str) -> str:
    """Refuse a text without a letter.

    Raises:
        UsageError: there is nothing in it.
    """
    from slmpack.errors import UsageError

    if not text.strip():
        raise UsageError(f"{what} is empty", "some text", advice)
    return text
