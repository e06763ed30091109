"""Surroundings: what a process needs from its environment before Prefect, MLflow or the Hub client are imported.

Proxies of a company network are not for servers on this machine, a user without an entry in passwd has no name, and a
home folder that is missing or read-only cannot hold caches. Each is put right here, for this process and its children;
what the user set is only added to.
"""

import gc
import getpass
import os
from pathlib import Path

from slmpack import telemetry
from slmpack.plain_text import make_logs_harmless

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PLACES = ("XDG_CACHE_HOME", "PREFECT_HOME")
TEMPORARY_PREFECT = (
    "SLMPACK_TEMPORARY_PREFECT"  # set where PREFECT_API_URL leads to a server that ends with the command
)
NO_PROXY = ("NO_PROXY", "no_proxy")  # Python prefers the second, curl and uv the first


def prepare() -> None:
    """Set what every process of ours and every child of it needs."""
    telemetry.switch_off()
    make_logs_harmless()
    spare_loopback()
    name_user()


def collect_garbage_seldom() -> None:
    """Let Prefect and MLflow be imported without a search through all their objects for every few of them.

    None of them is garbage, and the search takes a sixth of the time. A child that computes keeps Python's own habit.
    """
    gc.set_threshold(50_000, 20, 100)


def spare_loopback() -> None:
    """Let nothing for this machine go through a proxy; the user's own exceptions stay."""
    given = {name: os.environ[name] for name in NO_PROXY if name in os.environ}
    for name in NO_PROXY:
        hosts = given.get(name, next(iter(given.values()), ""))  # one alone would hide the other
        listed = [host.strip() for host in hosts.split(",") if host.strip()]
        if "*" not in listed:
            os.environ[name] = ",".join([*listed, *(host for host in LOOPBACK if host not in listed)])


def name_user() -> None:
    """Give a user without an entry in passwd a name: MLflow, torch and others ask for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def prepare_home(workspace: Path | None) -> None:
    """Move the caches of our dependencies elsewhere if the home folder cannot hold them.

    Args:
        workspace: where to; None: below `XDG_CACHE_HOME` or `PREFECT_HOME`.

    Raises:
        WorkspaceError: there is no home folder, and no other place is named; or that place cannot be written.
    """
    name_font_cache(workspace)
    if (reason := _why_home_unusable()) is None:
        return
    place = workspace or next((Path(os.environ[name]) / "slmpack" for name in PLACES if os.environ.get(name)), None)
    if place is None and not home_folder().is_absolute():
        raise _homeless(reason)
    if place is not None:
        _move_home(typed_path(place))


def name_font_cache(workspace: Path | None) -> None:
    """Have Matplotlib, which draws the pages' curves, keep its list of fonts among the work files."""
    if _why_home_unusable() is None:
        place = cache_folder() / "slmpack" if workspace is None else typed_path(workspace)
        os.environ.setdefault("MPLCONFIGDIR", str(place / "matplotlib"))


def _move_home(place: Path) -> None:
    from slmpack.machine.private import folder_in  # pydantic, which the process that starts others does without

    require_writable(place / "home")
    home = folder_in(place, "home")
    for name, folder in (("PREFECT_HOME", ".prefect"), ("XDG_CACHE_HOME", ".cache"), ("MPLCONFIGDIR", ".matplotlib")):
        os.environ.setdefault(name, str(home / folder))
    if not home_folder().is_dir() or home_folder() == Path("/"):  # another may have the user's settings
        os.environ["HOME"] = str(home)


def cache_folder() -> Path:
    """Return the user's folder for caches: `XDG_CACHE_HOME`, else `~/.cache`.

    Raises:
        WorkspaceError: there is neither.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return typed_path(cache)
    place = home_folder() / ".cache"
    if (reason := _why_home_unusable()) and not may_write(place):
        raise _homeless(reason)
    return place


def _homeless(reason: str) -> Exception:
    from slmpack.errors import WorkspaceError  # pydantic, which the process that starts others does without

    return WorkspaceError(
        reason,
        "a folder for caches and work files",
        "set HOME or XDG_CACHE_HOME, or give --workspace DIR to a command that has it",
    )


def typed_path(text: str | Path) -> Path:
    """Return the absolute path that a person typed; `~` stays where there is no home folder."""
    return Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 - Path's own raises


def default_workspace() -> Path:
    """Return the folder for work files in the user's cache.

    Raises:
        WorkspaceError: there is no such cache.
    """
    return cache_folder() / "slmpack"


def may_write(path: Path) -> bool:
    """Say whether this process may write a file, or in a folder; capabilities of a container count."""
    mode = os.W_OK | (os.X_OK if path.is_dir() else 0)
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written or made; nothing is made.

    Raises:
        WorkspaceError: it is none, or it or what it would be made in is read-only.
    """
    from slmpack.errors import WorkspaceError

    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise WorkspaceError(f"{there} is a file", "a folder for work files", "name another --workspace")
    if not may_write(there):
        raise WorkspaceError(
            f"{there} cannot be written", "a folder for work files that this user may write", "name another --workspace"
        )


def home_folder() -> Path:
    """Return the user's home folder; `~` where there is none."""
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path's own raises


def _why_home_unusable() -> str | None:
    """Say why the home folder cannot hold caches; None if it can."""
    home = home_folder()
    if not home.is_absolute():
        return "HOME is not set and this user has no entry in passwd"
    return None if may_write(home) else f"the home folder {home} cannot be written"
