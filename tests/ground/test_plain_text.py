"""Plain text: no name, licence or answer of a stranger's commands a terminal or breaks a line."""

import logging
import subprocess
import sys

import pytest

from flows.display import Display
from slmpack.errors import LONGEST_PART, SourceError
from slmpack.plain_text import harmless, make_logs_harmless, one_line, tag_text
from slmpack.publish.outcome import failed_outcome
from slmpack.records import Target

HOSTILE = "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\x9b31m\x7f\r\b\u202egnp\u2066x\u2028y\u200f\x00"
COMMANDS = [
    *map(chr, (*range(9), *range(11, 32), *range(127, 160))),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ud800",
]


@pytest.mark.parametrize("character", COMMANDS, ids=lambda character: f"{ord(character):04x}")
def test_what_a_terminal_obeys_is_shown_by_its_number(character: str) -> None:
    number = ord(character)
    expected = f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
    assert harmless(f"a{character}b\n\tc") == f"a{expected}b\n\tc"


@pytest.mark.parametrize("text", ["Grüße, 世界 👩‍👩‍👧 نعم ‌و", "a  b", "C:\\x1b", ""])
def test_text_that_commands_nothing_stays_as_it_is(text: str) -> None:
    assert harmless(text) == one_line(text) == text


def test_a_line_stays_a_line() -> None:
    assert one_line("a\r\nslmpack: published \n\n b\x0bc\x85d\u2029e") == "a slmpack: published b c d e"


def test_errors_outcomes_and_tags_of_hostile_text_are_one_harmless_line() -> None:
    for told in (
        str(SourceError(f"{HOSTILE}\n", HOSTILE, HOSTILE)),
        str(failed_outcome(Target.CPU_INT4, OSError(f"{HOSTILE}\nx")).reason),
        tag_text(f"{HOSTILE}\n"),
    ):
        assert told == harmless(told)
        assert "\n" not in told
        assert r"\x1b]52;" in told


def test_the_display_shows_names_and_log_lines_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.say(f"published: {HOSTILE}")
        logging.getLogger("slmpack.fetch").info("fetching %s", HOSTILE)
    shown = capfd.readouterr().err
    assert shown.count(r"\x1b]52;") == 2
    assert harmless(shown) == shown


LOGS = """
import logging, sys
from slmpack.machine import surroundings
surroundings.prepare()
logging.basicConfig(stream=sys.stderr, level=logging.INFO)
for name in ("slmpack.fetch", "prefect.flow_runs", "prefect.task_runs", "other"):
    logging.getLogger(name).info("%s and mysql://u:secret@host", sys.argv[1])
"""


def test_log_lines_that_a_worker_writes_are_harmless_and_have_no_password() -> None:
    text = HOSTILE.replace("\x00", "")
    done = subprocess.run([sys.executable, "-c", LOGS, text], capture_output=True, text=True, check=True)
    *ours, other = done.stderr.split("INFO:")[1:]
    for line in ours:
        assert harmless(line) == line
        assert "secret" not in line
    assert len(ours) == 3
    assert "\x1b" in other  # nothing of anybody else's is changed


def test_log_lines_are_made_harmless_once() -> None:
    before = logging.getLogRecordFactory()
    try:
        make_logs_harmless()
        first = logging.getLogRecordFactory()
        make_logs_harmless()
        assert logging.getLogRecordFactory() is first
    finally:
        logging.setLogRecordFactory(before)


def test_an_error_shows_the_beginning_of_what_a_file_says() -> None:
    shown = str(SourceError("x" * 100_000, "a name", "shorten it"))
    assert shown == "x" * LONGEST_PART + "...; a name; shorten it"
