"""What the tests of `slmpack.child` run in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from slmpack import progress
from slmpack.errors import SourceError
from slmpack.records import Record


class Number(Record):
    value: int


class Marker(Record):
    path: Path


def double(number: Number) -> Number:
    print("noise on stdout")
    os.write(1, b"native noise on stdout\n")
    progress.report("double", 1, 1, "numbers")
    return Number(value=2 * number.value)


def refuse(number: Number) -> Number:
    raise SourceError(f"{number.value}", "an even number", "double it")


def stumble(number: Number) -> Number:
    return Number(value=1 // number.value)


def be_killed(number: Number) -> Number:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def hold_memory(number: Number) -> Number:
    block = bytearray(os.urandom(1 << 20) * number.value)
    time.sleep(1)
    return Number(value=len(block))


def start_grandchild_and_wait(marker: Marker) -> Marker:
    """Write both process ids, then wait to be ended."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    marker.path.with_suffix(".part").write_text(f"{os.getpid()} {grandchild.pid}")
    marker.path.with_suffix(".part").rename(marker.path)
    time.sleep(600)
    return marker
