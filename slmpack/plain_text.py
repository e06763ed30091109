"""Plain text: nothing in a stranger's text commands a terminal, breaks a line or turns its order around.

Names, licences, answers and errors may have control characters in them. A terminal obeys those (it moves the cursor,
writes the clipboard, answers into the command line), and a bidirectional override shows a text that is not the one
there. So they are shown by their numbers in hexadecimal wherever we write for people: errors, progress, log lines, tags
and descriptions in MLflow. Data stay as they are: files, the JSON of a record, answers that go into a pipe.
"""

import logging
import re

from slmpack.redaction import redacted

# Control characters (C0, DEL, C1), halves of surrogate pairs, separators of lines, and what turns the direction.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAK = re.compile(r" *[^\S ]\s*")
# Prefect says in those how a run ended, with the message of the exception.
_SHOWN = ("slmpack", "prefect.flow_runs", "prefect.task_runs")


def harmless(text: str) -> str:
    """Return the text with the number of each character that a terminal would obey; lines and tabs stay."""
    return _COMMANDS.sub(_number, text)


def one_line(text: str) -> str:
    """Return harmless text on one line."""
    return harmless(_BREAK.sub(" ", text).strip())


def tag_text(text: str) -> str:
    """Return what a tag, a parameter or a description in MLflow may say: one harmless line without secrets."""
    return one_line(redacted(text))


def _number(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def make_logs_harmless() -> None:
    """Let every log line of ours, and Prefect's on its runs, be harmless and without secrets, wherever it goes."""
    make = logging.getLogRecordFactory()
    if getattr(make, "is_harmless", False):
        return

    def make_harmless(*arguments: object, **named: object) -> logging.LogRecord:
        record = make(*arguments, **named)
        if record.name.startswith(_SHOWN):
            record.msg, record.args = harmless(redacted(record.getMessage())), ()
        return record

    make_harmless.is_harmless = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_harmless)
