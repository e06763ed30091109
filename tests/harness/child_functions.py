"""What the tests of `slmpack.machine.child` run in a process of its own."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from slmpack import progress
from slmpack.errors import SourceError
from slmpack.machine.forks import MLFLOW, forked_with
from slmpack.records import Record


class Number(Record):
    value: int


class Marker(Record):
    path: Path


class Sum(Record):
    numbers: Path
    into: Path


class Names(Record):
    names: tuple[str, ...]


class Surroundings(Record):
    folder: Path
    variable: str | None
    parent: int
    group: int
    title: str
    writes_bytecode: bool
    drawn: tuple[float, float]


def double(number: Number) -> Number:
    print("noise on stdout")
    os.write(1, b"native noise on stdout\n")
    progress.report("double", 1, 1, "numbers")
    return Number(value=2 * number.value)


def refuse(number: Number) -> Number:
    raise SourceError(f"{number.value}", "an even number", "double it")


def stumble(number: Number) -> Number:
    return Number(value=1 // number.value)


def add_up(request: Sum) -> Number:
    total = sum(map(int, request.numbers.read_text().split()))
    (request.into / "sum.txt").write_text(str(total))
    return Number(value=total)


def be_killed(number: Number) -> Number:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def hold_memory(number: Number) -> Number:
    block = bytearray(os.urandom(1 << 20) * number.value)
    time.sleep(3)  # whoever measures it looks several times meanwhile
    return Number(value=len(block))


def start_grandchild_and_wait(marker: Marker) -> Marker:
    """Write both process ids, then wait to be ended."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    marker.path.with_suffix(".part").write_text(f"{os.getpid()} {grandchild.pid}")
    marker.path.with_suffix(".part").rename(marker.path)
    time.sleep(600)
    return marker


@forked_with()
def double_in_a_fork(number: Number) -> Number:
    return double(number)


@forked_with()
def refuse_in_a_fork(number: Number) -> Number:
    return refuse(number)


@forked_with()
def stumble_in_a_fork(number: Number) -> Number:
    return stumble(number)


@forked_with()
def be_killed_in_a_fork(number: Number) -> Number:
    return be_killed(number)


@forked_with()
def hold_memory_in_a_fork(number: Number) -> Number:
    return hold_memory(number)


class Texts(Record):
    arguments: str
    argument: str


@forked_with()
def start_grandchild_and_wait_in_a_fork(marker: Marker) -> Marker:
    return start_grandchild_and_wait(marker)


@forked_with("made_up_module")
def double_without_a_module(number: Number) -> Number:
    return double(number)


def read_own_arguments(marker: Marker) -> Texts:
    """Say what every user of the machine sees of a child, and what it was given."""
    return Texts(arguments=" ".join(psutil.Process().cmdline()), argument=str(marker.path))


@forked_with("numpy")
def look_around_in_a_fork(marker: Marker) -> Surroundings:
    """Say what a fork finds: nothing of its server's but the modules."""
    import numpy

    return Surroundings(
        folder=Path.cwd(), variable=os.environ.get("PIP_SLMPACK_TEST"), parent=os.getppid(), group=os.getpgrp(),
        title=" ".join(psutil.Process().cmdline()), writes_bytecode=not sys.dont_write_bytecode,
        drawn=(random.random(), float(numpy.random.random())),
    )  # fmt: skip


def count_threads(_: Marker) -> Number:
    import torch

    return Number(value=torch.get_num_threads())


@forked_with("torch")
def count_threads_in_a_fork(marker: Marker) -> Number:
    return count_threads(marker)


@forked_with(*MLFLOW)
def name_stores_of_mlflow(_: Marker) -> Names:
    """Return which of MLflow's stores the child finds imported, before it calls MLflow."""
    stores = ("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
    return Names(names=tuple(name for name in stores if name in sys.modules))


@forked_with("pandas")
def name_threads_of_the_server(_: Marker) -> Names:
    tasks = Path(f"/proc/{os.getppid()}/task")
    return Names(names=tuple((task / "comm").read_text().strip() for task in tasks.iterdir()))
