"""The share of cores: affinity, a cgroup's quota, and what children are given."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from child_functions import Marker, Number, count_threads, count_threads_in_a_fork
from places import HARNESS

from slmpack.errors import BuildError
from slmpack.machine.child import run_in_child
from slmpack.machine.cores import share_of_cores, threads_of_children
from slmpack.machine.environments import run_to_log

ALL = len(os.sched_getaffinity(0))


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    (tmp_path / "proc").write_text("0::/pod/container\n")
    (tmp_path / "cgroups" / "pod" / "container").mkdir(parents=True)
    return tmp_path


def share(cgroups: Path) -> int:
    return share_of_cores(cgroups / "proc", cgroups / "cgroups")


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", ALL), ("100000 100000", 1), ("50000 100000", 1)])
def test_a_quota_of_the_own_cgroup_counts(cgroups: Path, limit: str, cores: int) -> None:
    (cgroups / "cgroups" / "pod" / "container" / "cpu.max").write_text(f"{limit}\n")
    assert share(cgroups) == cores


def test_a_quota_of_an_enclosing_cgroup_counts(cgroups: Path) -> None:
    (cgroups / "cgroups" / "pod" / "cpu.max").write_text("100000 100000\n")
    assert share(cgroups) == 1


@pytest.mark.parametrize(("quota", "cores"), [("-1", ALL), ("100000", 1)])
def test_a_quota_of_version_1_counts(cgroups: Path, quota: str, cores: int) -> None:
    (cgroups / "proc").write_text("4:cpu,cpuacct:/pod\n")
    folder = cgroups / "cgroups" / "cpu" / "pod"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert share(cgroups) == cores


@pytest.mark.parametrize("function", [count_threads, count_threads_in_a_fork])
def test_a_child_computes_with_the_threads_that_it_is_given(
    function: Callable[[Marker], Number], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HARNESS), prepend=os.pathsep)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def count() -> int:
        counted, _ = run_in_child(
            function, Marker(path=tmp_path), log=tmp_path / "log", limit_seconds=600, failure=BuildError, doing="it"
        )  # fmt: skip
        return counted.value

    with threads_of_children(1) as end:
        assert count() == 1
        end()
        assert count() == ALL
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with threads_of_children(2):
        assert count() == 1


def test_a_process_of_another_environment_computes_with_the_threads_that_it_is_given(tmp_path: Path) -> None:
    with threads_of_children(1):
        code = run_to_log(["sh", "-c", "echo $OMP_NUM_THREADS"], {}, tmp_path, tmp_path / "log", 600)
    assert (code, (tmp_path / "log").read_text()) == (0, "1\n")
