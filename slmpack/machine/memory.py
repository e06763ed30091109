"""Memory: what a process can take here, what the stock builder will take, and a refusal before any work."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from slmpack.errors import RecipeError, SlmpackError

MEMBERSHIPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def available_bytes(memberships: Path = MEMBERSHIPS, cgroups: Path = CGROUPS) -> int:
    """Return how many bytes a new process can take: the machine's available memory, or less where a cgroup says so.

    A cgroup and each that encloses it leave their limit, less their usage, plus the page cache in it that the kernel
    takes back when somebody needs memory.

    Args:
        memberships: the process's cgroups, a line each: `0::/path` (version 2) or `4:memory:/path` (version 1).
        cgroups: where the cgroup file systems are mounted.
    """
    left = [int(psutil.virtual_memory().available)]
    for folder in enclosing_cgroups(memberships, cgroups, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                left.append(_number(folder / limit) - _number(folder / usage) + _reclaimable(folder / "memory.stat"))
            except (OSError, ValueError):  # of the other version, the root of all, or `max`: no limit
                continue
    return max(0, min(left))


def enclosing_cgroups(memberships: Path, cgroups: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's cgroups of a controller, from its own to the root.

    In a container the path may be the host's, of which only the root is mounted; what is not there limits nothing.
    Source: Linux kernel documentation, admin-guide/cgroup-v2.rst, and cgroups(7), "/proc/[pid]/cgroup".
    """
    try:
        lines = memberships.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mounts = (cgroups / controller,) if controllers else (cgroups, cgroups / "unified")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth])


def _number(path: Path) -> int:
    return int(path.read_text())


def _reclaimable(path: Path) -> int:
    """Return the page cache of a cgroup and those inside it, bytes; version 1 has those sums under `total_` names."""
    pairs = (line.split() for line in path.read_text().splitlines())
    facts = {name: int(value) for name, value in pairs}
    return sum(facts.get(f"total_{name}", facts.get(name, 0)) for name in ("inactive_file", "active_file"))


def require_memory(
    needed_bytes: int,
    available: int,
    what_for: str,
    failure: type[SlmpackError] = RecipeError,
    advice: str = "use --recipe small, which streams, or a machine with more memory",
) -> None:
    """Refuse work that would be killed for its memory, before it starts.

    Args:
        what_for: who needs it, and for what: "the stock builder for recipe balanced".
        failure: of the stage that needs it.
        advice: what to do instead.

    Raises:
        SlmpackError: `failure`: fewer than `needed_bytes` are available.
    """
    if available < needed_bytes:
        raise failure(
            f"{what_for} needs about {_gigabytes(needed_bytes, math.ceil)} of memory",
            f"{_gigabytes(available, math.floor)} are free here",
            advice,
        )


def _gigabytes(size: int, rounded: Callable[[float], int]) -> str:
    """Return GB (1e9 bytes) with one decimal, rounded so that what does not fit never looks as if it did."""
    return f"{rounded(size / 1e8) / 10:,.1f} GB"
