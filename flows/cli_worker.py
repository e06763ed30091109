"""The process that works: `python -P -m flows.cli_worker LINE ARGUMENTS...`, started by `flows.supervise`.

It says on the line when it begins and what it ends with. When the line is closed, it ends with all that it started, so
that nothing outlives a command that was killed.
"""

import atexit
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import NoReturn

from flows.supervise import BEGINS, INTERRUPTED


def main() -> NoReturn:
    """Run one command and end the process with its exit code."""
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)
    threading.Thread(target=_end_with_supervisor, args=(line,), name="slmpack-supervisor-watch", daemon=True).start()
    from flows.cli import run
    from flows.cli_lines import interrupted, supervisor

    supervisor.append(line)
    signal.signal(signal.SIGINT, _interrupt)  # not Python's own, which asyncio would replace
    line.send(BEGINS)
    try:
        code = run(sys.argv[2:])
    except SystemExit as ended:  # as argparse does
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    if interrupted.is_set() and code:
        code = INTERRUPTED
    sys.stdout.flush()
    line.send(bytes([code]))
    if code == INTERRUPTED:
        os._exit(code)  # what ends with the interpreter (Prefect's events, its server) may take long
    if "prefect" not in sys.modules:  # whose threads and server are ended by the interpreter alone
        _end(code)
    sys.exit(code)


def _end(code: int) -> NoReturn:
    """End without taking thousands of modules down one by one, which takes a second where MLflow was imported."""
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    from flows.cli_lines import interrupted

    interrupted.set()
    raise KeyboardInterrupt


def _end_with_supervisor(line: socket.socket) -> None:
    if not line.recv(1):
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
