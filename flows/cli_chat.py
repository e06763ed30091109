"""`slmpack chat`: one question to a published model; the answer streams to stdout."""

import argparse
import sys
from collections.abc import Callable

from flows.cli_lines import OK, begin
from flows.cli_parser import CommandParser, add_trust_option

STDIN = "-"
MOST_TOKENS, HIGHEST_TEMPERATURE = 2**18, 2.0  # of one call, as the wrapper has them
MOST_PROMPT_BYTES = 16 << 20  # far beyond any context window


def chat_options(parser: CommandParser) -> None:
    """Add the options of `chat`."""
    parser.add_argument("model_uri", metavar="MODEL_URI", help="such as models:/smollm2-135m-instruct@cpu-int4")
    parser.add_argument("prompt", metavar="PROMPT", help=f"the question; {STDIN} reads it from standard input")
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
    from slmpack.log.ask import Question, check_model, stream_answer
    from slmpack.plain_text import harmless

    check_model(parsed.model_uri)
    prompt = _stdin_text() if parsed.prompt == STDIN else parsed.prompt
    question = Question(
        prompt=_filled(prompt, "the prompt", f"type a question, or {STDIN} to read one from standard input"),
        system=None if parsed.system is None else _filled(parsed.system, "--system", "leave --system out"),
        max_tokens=parsed.max_tokens,
        temperature=parsed.temperature,
    )
    shown = harmless if sys.stdout.isatty() else str  # a pipe gets what the model said, byte for byte
    begin(f"loading {parsed.model_uri}")
    for piece in stream_answer(parsed.model_uri, question, trust_code=parsed.trust_code):
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return OK


def _stdin_text() -> str:
    """Return what standard input holds, to its end.

    Raises:
        UsageError: it is closed, too long, or not text.
    """
    from slmpack.errors import UsageError

    if sys.stdin is None:
        raise UsageError("standard input is closed", "the prompt in it", "pipe a text into the command")
    content = sys.stdin.buffer.read(MOST_PROMPT_BYTES + 1)
    if len(content) > MOST_PROMPT_BYTES:
        raise UsageError(
            "the prompt on standard input is too long", f"at most {MOST_PROMPT_BYTES:,} bytes", "shorten it"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"byte {error.start} of standard input is not UTF-8", "UTF-8 text", "convert it") from error


def _filled(text: str, what: str, advice: str) -> str:
    """Refuse a text without a letter.

    Raises:
        UsageError: there is nothing in it.
    """
    from slmpack.errors import UsageError

    if not text.strip():
        raise UsageError(f"{what} is empty", "some text", advice)
    return text
