"""Hub: models of the Hugging Face Hub, or of a mirror that speaks its API.

The Hub's own client does the work, in its own cache, so its settings (`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
`HF_HOME`) hold, broken downloads resume, and what another program has downloaded is not downloaded again.
"""

import glob
import logging
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from slmpack.checkpoint.headers import INDEX, WEIGHTS, missing_shard, no_weights, read_index
from slmpack.checkpoint.inspect import CONFIG, relevant_names
from slmpack.checkpoint.licence import licence_of, licence_of_card, licence_of_files, licence_text
from slmpack.checkpoint.open_templates import is_template_file
from slmpack.errors import SourceError
from slmpack.machine.private import replace_text
from slmpack.machine.store import require_space
from slmpack.progress import report
from slmpack.records import ModelSource, Record
from slmpack.source.adapter import ADAPTER_CONFIG, is_adapter_file, names_of, require_weights
from slmpack.source.files import require_small_sizes
from slmpack.source.hub_errors import not_cached, translated

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10
CARD_FACTS = ("license", "license_name")


class Pinned(Record):
    """What a branch, a tag or a commit of a repository is now.

    Attributes:
        licence: what its card states, else its licence file.
        files: the paths of its files; offline, of those that the cache has.
    """

    commit: str
    licence: str | None
    files: frozenset[str]


def pin(repository: str, revision: str | None) -> Pinned:
    """Return what `revision` of a model repository is now.

    Costs one request, two more where only a licence file tells the licence; none with `HF_HUB_OFFLINE`, when the Hub
    client's cache answers.

    Raises:
        UsageError: `repository` cannot be a repository's name.
        SourceError: there is no such repository or revision, or it may not be read.
    """
    from huggingface_hub import HfApi, is_offline_mode

    with translated(repository, revision):
        if is_offline_mode():
            return _cached(repository, revision)
        info = HfApi().model_info(repository, revision=revision or "main")
    if info.sha is None:
        raise SourceError(f"the Hub names no commit for {repository}", "a commit", "ask the operator of HF_ENDPOINT")
    files = frozenset(item.rfilename for item in info.siblings or ())
    licence = licence_of_card({name: info.card_data.get(name) for name in CARD_FACTS}) if info.card_data else None
    return Pinned(commit=info.sha, licence=licence or _licence_in(repository, info.sha, files), files=files)


def _licence_in(repository: str, commit: str, files: frozenset[str]) -> str | None:
    """Return what the licence files of a repository say whose card states none; None where they may not be read."""
    try:
        return licence_of_files(files, lambda name: licence_text(small_file(repository, commit, name)))
    except (SourceError, OSError):
        return None


def require_hub(source: str) -> None:
    """Connect once to what answers for the Hub, if `source` is of it, a proxy if there is one for it.

    Raises:
        OSError: no connection can be made; see `expected`.
    """
    from huggingface_hub import constants, is_offline_mode

    if not source.startswith("hf://") or is_offline_mode():
        return
    hub = urlsplit(constants.ENDPOINT)
    proxy = None if proxy_bypass(hub.netloc) else getproxies().get(hub.scheme, getproxies().get("all"))
    way = urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}") if proxy else hub
    port = way.port or (443 if way.scheme == "https" else 80)
    try:
        socket.create_connection((way.hostname or "", port), CONNECT_SECONDS).close()
    except TimeoutError as error:
        raise ConnectionError(f"ConnectTimeout: host='{hub.hostname}'") from error
    except OSError as error:
        through = f" through the proxy {way.hostname}:{port}" if proxy else ""
        raise ConnectionError(f"host='{hub.hostname}{through}': {error}") from error


def _cached(repository: str, revision: str | None) -> Pinned:
    """Return what the cache has for a branch, a tag or a commit."""
    from huggingface_hub import try_to_load_from_cache

    for name in (CONFIG, ADAPTER_CONFIG):
        path = try_to_load_from_cache(repository, name, revision=revision or "main")
        if isinstance(path, str):
            folder = Path(path).parent  # <cache>/models--owner--name/snapshots/<commit>/config.json
            return Pinned(commit=folder.name, licence=licence_of(folder), files=frozenset(names_of(folder)))
    raise not_cached(repository, revision)


def small_file(repository: str, commit: str, name: str) -> Path:
    """Return the place of one small file of a repository in the Hub client's cache, fetched unless it is there.

    Raises:
        SourceError: it may not be read, is too large, or is not cached and the client is offline.
    """
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        is_offline_mode,
        try_to_load_from_cache,
    )

    with translated(repository, commit):
        if not isinstance(try_to_load_from_cache(repository, name, revision=commit), str) and not is_offline_mode():
            size = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit)).size
            require_small_sizes({name: size or 0}, repository)
        return Path(hf_hub_download(repository, name, revision=commit))


def template_folder(source: ModelSource) -> Path | None:
    """Return the folder in the Hub client's cache with the templates of a repository; None if that costs too much.

    Raises:
        SourceError: the repository may not be read, or has no safetensors.
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return None
    with translated(source.location, source.revision):
        names = sorted(filter(is_template_file, _needed_sizes(source) or ()))
    paths = [small_file(source.location, source.revision, name) for name in names]
    return paths[0].parents[names[0].count("/")] if paths else None


def download(source: ModelSource) -> Path:
    """Download the files that a snapshot needs into the Hub client's cache; return the folder they are in.

    No request is made when the cache has them all.

    Raises:
        SourceError: the repository may not be read, has no safetensors, or is not cached and the client is offline.
        WorkspaceError: there is no room for the weights.
    """
    from huggingface_hub import is_offline_mode, snapshot_download

    with translated(source.location, source.revision):
        sizes = _needed_sizes(source)
        if sizes is None:  # offline, and another program filled the cache: take what is there, its checks follow
            return Path(snapshot_download(source.location, revision=source.revision, local_files_only=True))
        total = sum(sizes.values())
        # Gated repositories answer metadata to anybody, and a mirror may hold the token: the first file will tell.
        folder = snapshot_download(
            source.location,
            revision=source.revision,
            allow_patterns=[glob.escape(name) for name in sizes],
            local_files_only=is_offline_mode(),
            tqdm_class=_progress_class(total, total - _require_room(source, sizes)),
        )
    report("fetch", total, total, "bytes")
    _remember_branch(source, Path(folder))
    return Path(folder)


def _remember_branch(source: ModelSource, folder: Path) -> None:
    """Note in the cache which commit the branch was, as the client does when it downloads a branch by its name.

    Without it, the branch cannot be resolved offline. Source: huggingface_hub's guide, "Understand caching", refs.
    """
    branch = source.text.removeprefix("hf://").partition("@")[2] or "main"
    if branch != source.revision:
        note = folder.parents[1] / "refs" / branch
        note.parent.mkdir(parents=True, exist_ok=True)
        replace_text(note, source.revision)


def _needed_sizes(source: ModelSource) -> dict[str, int] | None:
    """Return the files that a snapshot needs and their sizes in bytes; None where offline nobody knows them."""
    from huggingface_hub import HfApi, get_cached_repo_tree, is_offline_mode
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        tree: Iterable[object] = get_cached_repo_tree(source.location, revision=source.revision)
    except CachedRepoTreeNotFoundError:
        if is_offline_mode():
            return None
        tree = HfApi().list_repo_tree(source.location, recursive=True, revision=source.revision)
    sizes = {item.path: item.size for item in tree if isinstance(item, RepoFile)}
    if source.base is not None:
        require_weights(sizes, source.location)
        return _bounded({name: size for name, size in sizes.items() if is_adapter_file(name)}, source)
    if WEIGHTS not in sizes and INDEX not in sizes:
        raise no_weights(source.location, list(sizes))
    _bounded({name: size for name, size in sizes.items() if name == INDEX}, source)
    index = f"{INDEX} of {source.location}"
    needed = relevant_names(sizes, lambda: read_index(small_file(source.location, source.revision, INDEX), index))
    for name in sorted(needed - sizes.keys()):
        raise missing_shard(index, name)
    return _bounded({name: sizes[name] for name in needed}, source)


def _bounded(sizes: dict[str, int], source: ModelSource) -> dict[str, int]:
    """Return the files, none of which is larger than what it is called can be.

    Raises:
        SourceError: one is.
    """
    require_small_sizes(sizes, source.location)
    return sizes


def _require_room(source: ModelSource, sizes: dict[str, int]) -> int:
    """Return how many bytes are not in the cache yet, having made sure that they fit."""
    from huggingface_hub import constants, try_to_load_from_cache

    needed = sum(
        size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(source.location, name, revision=source.revision), str)
    )
    if needed:
        require_space(Path(constants.HF_HUB_CACHE), needed, f"the download of {source.location}")
    return needed


def _progress_class(total: int, cached: int) -> type[Any]:
    """Return what the Hub's client takes for a progress bar: it draws nothing and reports bytes.

    The client makes one bar for the bytes that arrive and one for the bytes that are written, as well as one for
    files; the furthest of the byte bars is the truth.
    """
    furthest = cached
    guard = threading.Lock()

    class Bar:
        def __init__(self, *_args: Any, **options: Any) -> None:
            self.n: float = 0
            self.total = options.get("total")
            self.format_dict: dict[str, Any] = {"rate": None}
            self._counts_bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            with guard:
                self.n += n or 0
                if self._counts_bytes and cached + self.n > furthest:
                    furthest = min(int(cached + self.n), total)
                    report("fetch", furthest, total, "bytes")

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def _nothing(self, *_args: Any, **_options: Any) -> None:
            pass

        close = refresh = set_description = set_description_str = set_postfix_str = _nothing

    return Bar
