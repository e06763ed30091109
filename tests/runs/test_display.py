"""The display: a live line on a terminal that leaves a tick behind, plain lines anywhere else."""

import os
import re
import subprocess
import sys

import pytest
from command_line import environment
from places import PROJECT

from flows.pace import Pace, duration_shown
from slmpack.records import Progress

STAGES = """
import logging, sys, time
from flows.display import Display
from slmpack.errors import RecipeError
from slmpack.publish.outcome import StageTimer
from slmpack.progress import report
logger, stages = logging.getLogger("slmpack.test"), StageTimer()
with Display() as display:
    display.doing("starting Prefect")
    sys.stdin.readline()  # until it was seen
    with stages("fetch"):
        report("fetch", 0, 10**8, "bytes")
        time.sleep(1.1)  # else there is no rate yet
        if sys.argv[1:] == ["half"]:
            report("fetch", 5 * 10**7, 10**8, "bytes")
            sys.stdin.readline()
        report("fetch", 10**8, 10**8, "bytes")
        logger.info("fetched a [bold]model[/bold]")
        logger.warning("the licence is missing")
        logger.warning("the licence is missing")
    try:
        with stages("build"):
            report("build", 1, 3, "tensors")
            raise RecipeError("no", "yes", "try")
    except RecipeError:
        pass
    with stages("smoke"):
        for done in range(1, 7):
            report("smoke", done, 6, "answers")
    display.say("published: x")
"""


def screen(shown: bytes, width: int = 100) -> list[str]:
    """Return what is left on a terminal, line by line: moves, erasures and returns of the cursor are obeyed."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", shown.decode()):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b["):
            kind, number = part[-1], int(re.sub(r"\D", "", part) or 1)
            row = max(0, row - number) if kind == "A" else row
            lines[row] = "" if kind == "K" else lines[row]
        else:
            lines[row] = (lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :])[:width]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def run_on_terminal(*words: str, **extra: str) -> bytes:
    """Return all that is shown; where there are `words`, it goes on each time that the next of them are shown."""
    ours, theirs = os.openpty()
    plain = {"CI": "", "NO_COLOR": "", "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", STAGES, *(["half"] if words else [])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=theirs, env=environment(**plain | extra), text=True
    ) as process:
        os.close(theirs)
        assert process.stdin is not None
        shown, awaited = b"", list(words)
        try:
            while awaited:
                shown += os.read(ours, 4096)
                if re.search(awaited[0], text_of(shown)):
                    process.stdin.write("\n")
                    process.stdin.flush()
                    del awaited[0]
            process.stdin.close()
            while block := os.read(ours, 4096):
                shown += block
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
    assert (process.returncode, awaited) == (0, []), shown.decode()
    return shown


def text_of(shown: bytes) -> str:
    """Return what is shown without the sequences for terminals; a character may not be whole yet."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode(errors="replace"))


def test_a_terminal_shows_a_moving_line_and_keeps_a_line_with_a_tick_for_each_stage() -> None:
    half = r"fetch +━+.* 50\.0 MB of 100\.0 MB, \d+\.\d MB/s, \d+ s left"
    shown = run_on_terminal("starting Prefect", half)
    text = text_of(shown)
    assert re.search(r"smoke +━*╺?━* *1 of 6 answers", text), text  # although all six took less than a frame
    left = screen(shown)
    assert [re.sub(r"\d+\.\d s", "N s", re.sub(" +", " ", line)) for line in left] == [
        "! the licence is missing", "✓ fetch N s fetched a [bold]model[/bold]", "✗ build N s",
        "✓ smoke N s", "published: x",
    ], left  # fmt: skip


@pytest.mark.parametrize("wish", [{"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}])
def test_plain_lines_are_for_whoever_wants_them(wish: dict[str, str]) -> None:
    shown = run_on_terminal(**wish)
    assert b"\x1b" not in shown
    text = re.sub(r"\d+\.\d (s|MB/s)", r"N \1", shown.decode())
    assert text.splitlines() == [
        "starting Prefect ...", "fetch ...", "  fetch: 100.0 MB of 100.0 MB, N MB/s", "fetched a [bold]model[/bold]",
        "the licence is missing", "fetch took N s", "build ...", "build ended after N s",
        "smoke ...", "  smoke: 6 of 6 answers", "smoke took N s", "published: x",
    ]  # fmt: skip


def test_a_rate_and_what_is_left_are_told_once_there_is_something_to_tell_them_by() -> None:
    pace = Pace()
    told = [
        pace.words(Progress(stage="fetch", done=done, total=90_039_855, unit="bytes hashed"), now=now)
        for done, now in ((0, 0.0), (1_000_000, 0.1), (45_000_000, 4.5), (90_039_855, 9.0))
    ]
    assert told == [
        "0.0 MB of 90.0 MB hashed", "1.0 MB of 90.0 MB hashed", "45.0 MB of 90.0 MB hashed, 10.0 MB/s, 5 s left",
        "90.0 MB of 90.0 MB hashed, 10.0 MB/s",
    ]  # fmt: skip
    assert pace.words(Progress(stage="smoke", done=3, total=None, unit="answers"), now=10.0) == "3 answers"
    assert pace.words(Progress(stage="fetch", done=1, total=None, unit="bytes"), now=10.0) == "0.0 MB"


def test_a_duration_is_told_in_the_unit_that_fits() -> None:
    assert [duration_shown(seconds) for seconds in (3.6, 89, 130, 3600, 3900)] == [
        "4 s", "89 s", "2 min", "1 h 0 min", "1 h 5 min",
    ]  # fmt: skip
