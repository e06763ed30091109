"""Measure a process and all its children, and end them."""

import contextlib
from pathlib import Path

import psutil

OWN_PAGES = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:", "Shared_Dirty:")
ANONYMOUS_PAGES = ("RssAnon:", "RssShmem:")


def kill_tree(pid: int) -> None:
    """Kill a process and all its children."""
    _kill(_tree(pid))


def kill_children(pid: int) -> None:
    """Kill all children of a process, and not the process itself."""
    _kill(_tree(pid)[1:])


def private_bytes(pid: int) -> int:
    """Return the private memory of a process and its children, in bytes.

    That is their unique set size, and the written pages that a fork has in common with what it is a fork of: in an
    interpreter of its own they would be private, too.
    """
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            total += _own_bytes(process)
    return total


def anonymous_bytes(pid: int) -> int | None:
    """Return the anonymous memory of a process and its children, in bytes; None where the kernel does not say."""
    total = 0
    for each in _pids_of_tree(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text()
            sizes = [line.split()[1] for line in status.splitlines() if line.startswith(ANONYMOUS_PAGES)]
            total += sum(map(int, sizes)) * 1024
    return total or None


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _pids_of_tree(pid: int) -> list[int]:
    """Return the ids of a process and its children; psutil reads all processes of the machine for that."""
    lists: list[Path] = []
    with contextlib.suppress(OSError):  # it, or a thread of it, ended while its folder was read
        lists += Path(f"/proc/{pid}/task").glob("*/children")
    if not lists:  # not Linux, or gone
        return [process.pid for process in _tree(pid)]
    found = [pid]
    for each in lists:
        with contextlib.suppress(OSError):  # a thread that ended
            found += [one for child in each.read_text().split() for one in _pids_of_tree(int(child))]
    return found


def _own_bytes(process: psutil.Process) -> int:
    """Read proc(5)'s smaps_rollup once: while it is read, the process cannot get a page."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():  # not Linux
        return int(process.memory_full_info().uss)
    sizes = (line.split() for line in rollup.read_text().splitlines())
    return sum(int(size) * 1024 for name, size, *_ in sizes if name in OWN_PAGES)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
