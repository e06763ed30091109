"""Runs a command under strace: what it and all its children ask the network, and which files they write.

Everything counts, whatever library does it. The loopback and sockets in the file system do not.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slmpack.telemetry import SWITCHES

SYSCALLS = (
    "execve,clone,clone3,fork,vfork,connect,sendto,sendmsg,sendmmsg,open,openat,openat2,creat,mkdir,mkdirat,rename,"
    "renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat"
)
_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\w+)(.*)")
_BEGUN = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_LOOPBACK = re.compile(r"127\.|::1$|0\.0\.0\.0$|::$|::ffff:127\.")
_PATHS = re.compile(r'"((?:[^"\\]|\\.)*)"')
_KERNELS = ("/dev/", "/proc/", "/sys/", "pipe:", "socket:", "anon_inode:", "/memfd:")


@dataclass(frozen=True)
class Trace:
    """What a command did: (program, address) for each attempt to reach another machine, and the paths it wrote."""

    attempts: tuple[tuple[str, str], ...]
    written: frozenset[str]

    def written_outside(self, *places: Path | str) -> list[str]:
        """Return what was written elsewhere than in those folders."""
        inside = tuple(f"{place}/" for place in places)
        return sorted(path for path in self.written if not f"{path}/".startswith(inside))


def _may_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False).returncode == 0


needs_strace = pytest.mark.skipif(not _may_trace(), reason="no strace that may trace here; type: make system")


def bare_environment(**extra: str) -> dict[str, str]:
    """Return the environment of somebody who has set nothing of ours, with `extra` on top."""
    ours = ("MLFLOW_", "PREFECT_", "HF_", "ORT_", "XDG_", "MPLCONFIGDIR", *SWITCHES)
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | extra


def run_traced(
    command: list[str], folder: Path, environment: dict[str, str]
) -> "tuple[subprocess.CompletedProcess[str], Trace]":
    """Run a command in `folder` to its end, and return what it did."""
    log = folder / "strace.log"
    traced = ["strace", "-f", "-qq", "-y", "-s", "300", "--seccomp-bpf", "-e", f"trace={SYSCALLS}", "-o", str(log)]
    done = subprocess.run([*traced, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    with log.open(errors="replace") as lines:
        trace = read_log(_whole(lines), folder)
    log.unlink()
    return done, trace


def _whole(lines: Iterable[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (process, call, arguments, result); a call that another one interrupted in the log is put together."""
    begun: dict[str, str] = {}
    for line in map(str.rstrip, lines):
        if match := _BEGUN.match(line):
            begun[match[1]] = match[2]
            continue
        resumed = _RESUMED.match(line)
        whole = f"{resumed[1]} {begun.pop(resumed[1], '')}{resumed[2]}" if resumed else line
        if match := _CALL.match(whole):
            yield match[1], match[2], match[3], match[4] + match[5]


def read_log(calls: Iterable[tuple[str, str, str, str]], folder: Path) -> Trace:
    """Return what the calls did, each as (process, call, arguments, result), made in `folder`."""
    programs: dict[str, str] = {}
    attempts, written = [], set()
    for process, call, arguments, result in calls:
        if call in {"connect", "sendto", "sendmsg", "sendmmsg"}:
            if (match := _ADDRESS.search(arguments)) and not _LOOPBACK.match(address := match[1] or match[2]):
                attempts.append((programs.get(process, "?"), address))
        elif result.startswith("-"):
            continue
        elif call == "execve":
            programs[process] = Path(_PATHS.findall(arguments)[0]).name
        elif call in {"clone", "clone3", "fork", "vfork"}:
            # The child may have started its program before its parent's call returns: vfork waits for that.
            programs.setdefault(result.split()[0], programs.get(process, "?"))
        elif path := _written(call, arguments, result, folder):
            written.add(path)
    return Trace(tuple(attempts), frozenset(written))


def _written(call: str, arguments: str, result: str, folder: Path) -> str | None:
    """Return the path that a call that succeeded made or may write to."""
    if call in {"open", "openat", "openat2"}:
        if not re.search("O_CREAT|O_WRONLY|O_RDWR", arguments):
            return None
        path = result.partition("<")[2].removesuffix(">")
    else:
        path = str(folder / _PATHS.findall(arguments)[-1])
    return None if path.startswith(_KERNELS) else path
