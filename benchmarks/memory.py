"""The anonymous memory of this process's children: what the kernel cannot take back."""

import re
import threading
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.25
_ANONYMOUS = re.compile(r"^Anonymous:\s+(\d+) kB", re.MULTILINE)


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process; 0 if it is gone. Source: man 5 proc_pid_smaps."""
    try:
        found = _ANONYMOUS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


class AnonymousMemory:
    """While it is entered, samples all children together; `peak_bytes` is the highest sum."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "AnonymousMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        ours = psutil.Process()
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(anonymous_bytes(each.pid) for each in ours.children(True)))
