"""Cores: how many a process may use here, and how children share them."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from slmpack.machine.memory import CGROUPS, MEMBERSHIPS, enclosing_cgroups

VARIABLE = "OMP_NUM_THREADS"  # of OpenMP, and so of torch and ONNX Runtime's builder
_of_children: ContextVar[int | None] = ContextVar("threads_of_children", default=None)


def share_of_cores(memberships: Path = MEMBERSHIPS, cgroups: Path = CGROUPS) -> int:
    """Return how many cores this process may keep busy: its affinity, or less where a cgroup has a quota.

    Args:
        memberships, cgroups: those of `slmpack.machine.memory.available_bytes`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in enclosing_cgroups(memberships, cgroups, "cpu") if (quota := _quota(folder))]
    return max(1, math.floor(min([cores, *quotas])))


def _quota(folder: Path) -> float | None:
    """Return a cgroup's cores, from version 2's `cpu.max` or version 1's pair of files; None: it has no limit."""
    try:
        if (both := folder / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # of neither version, or `max`
        return None


@contextmanager
def threads_of_children(threads: int) -> Iterator[Callable[[], None]]:
    """Give the children that are started in this block so many threads each; give what ends that earlier."""

    def end() -> None:
        _of_children.set(None)

    token = _of_children.set(threads)
    try:
        yield end
    finally:
        _of_children.reset(token)


def threads_here() -> int:
    """Return how many threads this process is to compute with: what its environment says, or all cores of its share."""
    given = os.environ.get(VARIABLE, "")
    return int(given) if given.isdecimal() and int(given) else share_of_cores()


def threads_of_a_child() -> int | None:
    """Return how many threads a child is to use; None: as many as its libraries choose, or the user said."""
    given = _of_children.get()
    if os.environ.get(VARIABLE, "").isdecimal():
        return None if given is None else min(given, int(os.environ[VARIABLE]))
    share = share_of_cores()
    if given is None and share == os.cpu_count():
        return None
    return min(given or share, share)
