"""Fuzz the parsers of what strangers write: damaged files until the time is over, and a line for each parser.

    PYTHONPATH=tests/harness .venv/bin/python benchmarks/fuzz_parsers.py --seconds 3600        each parser for an hour
    ... --only gguf --seed 3 --case 1234                                 one case again, here, with its traceback

A case ends with what the file is, or with an error of slmpack's. Everything else is a defect: another error, a crash,
more than 5 s of computing, more than 1 GB beyond what the process had. A worker reads the files; it is replaced where
it dies. `--cases 50` ends after so many instead: the same ones on every machine.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, TextIO

from fuzzed_parsers import PARSERS, Parser

from slmpack.errors import SlmpackError
from slmpack.machine.child import _data_bytes

LIMIT_SECONDS = 5  # of the processor: others may keep it busy
HANG_SECONDS = 120  # of waiting
LIMIT_BYTES = 1 << 30
SHOWN_DEFECTS = 20
HEADING = f"{'parser':<17}{'cases':>8}{'refused':>9}{'accepted':>9}{'slowest s':>10}{'peak MB':>9}{'defects':>8}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=60.0, help="for each parser")
    options.add_argument("--cases", type=int, help="for each parser, in place of --seconds")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=PARSERS, help="one parser")
    options.add_argument("--case", type=int, help="read one case in this process; needs --only")
    options.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    with TemporaryDirectory(prefix="slmpack-fuzz-") as folder:
        if given.case is not None:
            repeat(PARSERS[given.only](Path(folder)), given.only, given.seed, given.case)
        elif given.worker is not None:
            work(PARSERS[given.only](Path(folder)), given.only, given.seed, given.worker)
        else:
            os.environ["TMPDIR"] = folder  # of the workers, which are killed before they remove anything
            sys.exit(report([given.only] if given.only else list(PARSERS), given.seed, given.seconds, given.cases))


def report(names: list[str], seed: int, seconds: float, cases: int | None) -> int:
    """Fuzz each parser, print a line for each and one for each defect; return 1 if there was one."""
    _write(HEADING)
    failed = 0
    for name in names:
        tally = fuzz(name, seed, seconds, cases)
        _write(
            f"{name:<17}{tally['cases']:>8}{tally['refused']:>9}{tally['accepted']:>9}{tally['slowest']:>10.2f}"
            f"{tally['peak'] / 1e6:>9.0f}{len(tally['defects']):>8}"
        )
        for case, defect in tally["defects"][:SHOWN_DEFECTS]:
            _write(f"    --only {name} --seed {seed} --case {case}: {defect}")
        failed |= bool(tally["defects"]) or not tally["cases"]
    return failed


def fuzz(name: str, seed: int, seconds: float, cases: int | None) -> dict[str, Any]:
    """Read so many cases, or until `seconds` after the first one; start a worker anew behind a case that killed it."""
    tally: dict[str, Any] = {"cases": 0, "refused": 0, "accepted": 0, "slowest": 0.0, "peak": 0, "defects": []}
    first, ends = 0, None

    def is_done(case: int) -> bool:
        return time.monotonic() > (ends or 0.0) if cases is None else case >= cases

    while ends is None or not is_done(first):
        command = [sys.executable, __file__, "--only", name, "--seed", str(seed), "--worker", str(first)]
        with (
            TemporaryFile("w+") as noise,  # libraries' progress bars, which would fill a pipe
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True) as worker,
        ):
            assert worker.stdout is not None
            case = None
            for line in worker.stdout:
                ends = ends or time.monotonic() + seconds
                if "case" in (event := json.loads(line)):
                    case = event["case"]
                    if is_done(case):
                        worker.kill()
                        return tally
                else:
                    _add(tally, case, event)
            code = worker.wait()
            if case is None:
                raise SystemExit(f"the worker for {name} ends with {code} before the first case: {_last_of(noise)}")
        hangs = code in (-signal.SIGALRM, -signal.SIGPROF)
        tally["defects"].append((case, f"more than {LIMIT_SECONDS} s" if hangs else f"the process ends with {code}"))
        first = case + 1
    return tally


def _last_of(noise: TextIO) -> str:
    noise.seek(0)
    return noise.read()[-2000:]


def _add(tally: dict[str, Any], case: int | None, event: dict[str, Any]) -> None:
    tally["cases"] += 1
    tally["refused" if event["refused"] else "accepted"] += 1
    tally["slowest"] = max(tally["slowest"], event["seconds"])
    tally["peak"] = max(tally["peak"], event["bytes"])
    tally["defects"] += [(case, defect) for defect in event["defects"]]


def work(parser: Parser, name: str, seed: int, first: int) -> None:
    """Read case after case, within the limits; write to standard output which one is next, and its result."""
    parser.file.write_bytes(parser.whole)
    for reader in parser.readers:  # with what they import, which is not the case's
        reader()
    most = _data_bytes() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    out = sys.stdout
    sys.stdout = sys.stderr
    for number in count(first):
        _write(json.dumps({"case": number}), out)
        write_case(parser, name, seed, number)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, began = _peak_bytes(), time.process_time()
        signal.alarm(HANG_SECONDS)  # no handler: it ends the process, in C code as well
        signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
        found = [_defect_of(reader) for reader in parser.readers]
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        cost = {"seconds": time.process_time() - began, "bytes": _peak_bytes() - before}
        defects = [defect for defect in found if defect]
        _write(json.dumps({**cost, "refused": None in found, "defects": defects}), out)


def write_case(parser: Parser, name: str, seed: int, number: int) -> None:
    parser.file.write_bytes(parser.mutate(random.Random(f"{name} {seed} {number}")))


def repeat(parser: Parser, name: str, seed: int, number: int) -> None:
    """Read one case again; the first reader that fails otherwise than it may shows its traceback."""
    write_case(parser, name, seed, number)
    content = parser.file.read_bytes()
    _write(repr(content[:5000]))
    for reader in parser.readers:
        try:
            _write(repr(reader()))
        except SlmpackError as error:
            _write(f"{type(error).__name__}: {error}")


def _defect_of(reader: Any) -> str | None:
    """Return what a reader does that it may not; None if it refuses the file, "" if it takes it."""
    try:
        reader()
    except SlmpackError as error:
        return (
            None if "\n" not in str(error) and len(str(error)) < 10_000 else f"a line of {len(str(error))} characters"
        )
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:150]!r}"
    return ""


def _write(line: str, to: TextIO = sys.stdout) -> None:
    to.write(f"{line}\n")
    to.flush()


def _peak_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split(maxsplit=1)[0]) * 1024


if __name__ == "__main__":
    main()
