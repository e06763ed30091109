"""Runs inside the clean environment: loads a logged model there and asks it its own input example.

    python -I consumer.py fetch request.json      downloads what the request names as "source"
    python -I consumer.py ask request.json        without a network: loads it and asks

Both write the file that the request names as "result": the answer and what that took, or what went wrong.

It is run as a file, by an interpreter that has the model's requirements and nothing else, so it imports the standard
library and MLflow only. What it and its libraries print is the log.

The network is closed by the kernel: a namespace of the process's own, in which there is only the loopback, and whose
counters count every attempt to leave it, by any library. Where the kernel does not allow that, as in many
containers, Python's own sockets are refused, and what libraries in C do is not seen.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import socket
import struct
import sys
import threading
import time
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

Result = dict[str, Any]


class NetworkError(RuntimeError):
    """The model used the network when it was loaded or answered."""


# Source: Linux's sched.h, sockios.h and if.h.
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
FLAGS = "16sH14x"  # of an `ifreq`
# What the kernel counts of a namespace: packets and connections that found no way out, and datagrams to a port of this
# machine where nobody listens, as those to a resolver on the loopback are.
COUNTERS = {"/proc/self/net/snmp": ("Ip.OutNoRoutes", "Udp.NoPorts"), "/proc/self/net/snmp6": ("Ip6OutNoRoutes",)}


def close_network() -> str | None:
    """Leave this process no network but the loopback; return why that cannot be, None if it is so.

    A process that has threads cannot do this without privileges, so it comes first.
    """
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no network namespaces"
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            return f"no network namespace ({os.strerror(ctypes.get_errno())})"
        _keep_ids(user, group)
    with contextlib.suppress(OSError), socket.socket() as probe:  # without it, the loopback is unreachable as well
        flags = struct.unpack(FLAGS, fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack(FLAGS, b"lo", 0)))[1]
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack(FLAGS, b"lo", flags | IFF_UP))
    return None


def _keep_ids(user: int, group: int) -> None:
    """Have the user and group of before in a namespace of users; files know them either way."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError):
            Path("/proc/self", name).write_text(text)


def count_attempts() -> int:
    """Return how often something in this process's namespace tried to reach another machine."""
    total = 0
    for path, names in COUNTERS.items():
        with contextlib.suppress(OSError):  # a kernel without IPv6
            counted = _counters(Path(path).read_text().splitlines())
            total += sum(counted.get(name, 0) for name in names)
    return total


def _counters(lines: list[str]) -> dict[str, int]:
    """Read the kernel's two layouts: `Ip: NAME ...` above `Ip: NUMBER ...`, and `NAME NUMBER`."""
    counted: dict[str, int] = {}
    for titles, values in pairwise(lines):
        group, *names = titles.split()
        if group.endswith(":") and values.startswith(f"{group} ") and not names[0].lstrip("-").isdigit():
            counted |= {f"{group[:-1]}.{name}": int(each) for name, each in zip(names, values.split()[1:], strict=True)}
    return counted | {
        words[0]: int(words[1]) for words in map(str.split, lines) if len(words) == 2 and words[1].isdigit()
    }


def fetch(request: dict[str, Any]) -> Result:
    """Download by URI, as any consumer would, with what is installed here."""
    try:
        _refuse_strangers(request["forbidden"])
        from mlflow.artifacts import download_artifacts

        return {"folder": download_artifacts(request["source"], dst_path=request["into"])}
    except Exception as error:
        return _failure("downloading the model", error)


def ask(request: dict[str, Any], not_closed: str | None) -> Result:
    """Load and ask; return the answer, or the step that failed and why.

    Args:
        request: what to load and how.
        not_closed: why there is a network all the same; None: there is none.
    """
    answer = _answer(request)
    if not_closed is None and (attempts := count_attempts()):
        error = NetworkError(f"{attempts} attempts to reach another machine, by a library")
        return answer if "step" in answer else _failure("loading and asking the model without a network", error)
    return answer | {"not_closed": not_closed}


def _answer(request: dict[str, Any]) -> Result:
    step = "looking around"
    try:
        _refuse_strangers(request["forbidden"])
        step = "loading the model"
        started = time.perf_counter()
        model = _load(request)
        loaded = time.perf_counter()
        step = "asking the model its input example"
        answer = model.predict(model.input_example)
        answered = time.perf_counter()
        return {"answer": answer, "load_seconds": loaded - started, "answer_seconds": answered - loaded}
    except Exception as error:
        return _failure(step, error)


def _failure(step: str, error: Exception) -> Result:
    traceback.print_exception(error)
    return {"step": step, "kind": type(error).__name__, "message": " ".join(str(error).split())}


def _refuse_strangers(names: list[str]) -> None:
    """Refuse modules that the model must do without: one would hide that a requirement is missing."""
    for name in names:
        if importlib.util.find_spec(name):
            raise ImportError(f"{name} can be imported here")


def _load(request: dict[str, Any]) -> Any:
    """Load with nothing but the model's own files, which lie on this machine."""
    import mlflow.pyfunc

    sys.addaudithook(_refuse_network)
    return mlflow.pyfunc.load_model(request["source"], model_config=request["model_config"])


def _refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse what goes through Python's sockets. Source: CPython's table of audit events."""
    if event in {"socket.connect", "socket.getaddrinfo"}:
        raise NetworkError(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[0]!r}")


def _leave_with_parent() -> None:
    """End when the parent is gone: the kernel then closes our standard input."""

    def wait() -> NoReturn:
        os.read(0, 1)  # not sys.stdin, whose lock a thread may not hold while the interpreter ends
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    step, path = sys.argv[1:]
    still_open = close_network() if step == "ask" else None
    _leave_with_parent()
    given = json.loads(Path(path).read_text())
    Path(given["result"]).write_text(json.dumps(ask(given, still_open) if step == "ask" else fetch(given)))
