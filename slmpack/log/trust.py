"""Trust: whose code runs when a logged model is loaded.

A logged model is a program: `mlflow.pyfunc.load_model` runs what lies in it. Tags, manifests and `slmpack.json` can be
copied by anybody who may log a model, so they prove nothing. What counts as ours is code that is byte for byte the
wrapper of this release or of one that `wrappers.txt` lists, and a checkpoint that MLflow's own transformers flavour
loads without any code of the checkpoint's. Everything else runs only where the user said so.

    MLmodel, chat_model.py, *config.json, the names of all files  --compared--> None, or what is not ours

It stops a model with other code. It does not stop other weights, which can answer anything, nor someone who exchanges
files between this look and the load, nor an older wrapper's own faults.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from slmpack.errors import TrustError
from slmpack.log.artifacts import Artifacts
from slmpack.log.staging import PACKAGE_FOLDER, WRAPPER
from slmpack.machine.bounded_file import parse_json, read_bounded
from slmpack.machine.bounded_yaml import parse_yaml

METADATA = "MLmodel"
CODE_LOADER, CHECKPOINT_LOADER = "mlflow.pyfunc.loaders.code_model", "mlflow.transformers"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".dill", ".bin", ".pt", ".pth", ".ckpt")
# Of the flavour python_function, as `staging` leaves it. `code` is a folder that goes first on sys.path.
WRAPPED = {
    "code": None,
    "loader_module": CODE_LOADER,
    "model_code_path": WRAPPER.name,
    "artifacts": {"package": {"path": PACKAGE_FOLDER, "uri": "package"}},
}
HARMLESS_KEYS = frozenset({"config", "env", "python_version", "streamable"})
RUNS_CODE = ("auto_map", "custom_pipelines")  # in a checkpoint's configuration: classes of a file or a repository
LARGEST_READ = 1 << 20  # bytes; each of those files has some kilobytes
WRAPPERS = "wrappers.txt"

Read = Callable[[str], bytes]


def require_trusted(uri: str, names: Collection[str], read: Read) -> None:
    """Refuse a logged model that would run code which is not ours.

    Args:
        uri: as the user named it, for the error.
        names: of all its files.
        read: returns the content of a file by its name.

    Raises:
        TrustError: it would.
    """
    try:
        found = _stranger_in(names, read)
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        found = f"files that cannot be read ({type(error).__name__})"
    if found is not None:
        raise TrustError(
            f"{uri} has {found}",
            "the code of slmpack, which runs when the model is loaded",
            "if you trust its author, give --trust-code",
        )


def require_trusted_folder(uri: str, folder: Path) -> None:
    """Refuse a model in a folder of this machine as `require_trusted` does.

    Raises:
        TrustError: it would run code which is not ours.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    require_trusted(uri, names, lambda name: read_bounded(folder / name, LARGEST_READ))


def require_trusted_artifacts(uri: str, location: str) -> None:
    """Refuse a model in an artifact store as `require_trusted` does; only its small files are downloaded.

    Raises:
        TrustError: it would run code which is not ours.
    """
    artifacts = Artifacts(location)
    with TemporaryDirectory(prefix="slmpack-") as folder:
        names = artifacts.sizes().keys()
        require_trusted(uri, names, lambda name: read_bounded(artifacts.copy(name, Path(folder)), LARGEST_READ))


def _stranger_in(names: Collection[str], read: Read) -> str | None:
    """Return what of the model is not ours, in words; None if its code is."""
    flavours = parse_yaml(read(METADATA).decode())["flavors"]
    settings = flavours["python_function"]
    code = [name for name in names if name.endswith((".py", ".so", ".pyd")) and name != WRAPPER.name]
    if code or settings.get("code") is not None:
        return f"code of its own ({sorted(code)[0] if code else settings['code']!r})"
    if settings["loader_module"] == CHECKPOINT_LOADER:
        return _code_of_checkpoint(names, read)
    strange = {key for key in settings if key not in HARMLESS_KEYS | WRAPPED.keys()}
    strange |= {key for key, value in WRAPPED.items() if settings.get(key, ...) != value}
    if strange:
        return f"{sorted(map(str, strange))[0]} in its {METADATA} as slmpack does not write it"
    if sha256(read(WRAPPER.name)).hexdigest() not in known_wrappers():
        return f"a {WRAPPER.name} that is of no release of slmpack that this one knows"
    return None


def _code_of_checkpoint(names: Collection[str], read: Read) -> str | None:
    if pickles := sorted(name for name in names if name.endswith(PICKLE_SUFFIXES)):
        return f"a pickle ({pickles[0]})"
    for name in sorted(names):
        if name.endswith("config.json"):
            config = dict(parse_json(read(name)))
            if found := [key for key in RUNS_CODE if key in config]:
                return f"{found[0]} in {name}, which names code of its own"
    return None


def known_wrappers() -> frozenset[str]:
    """Return the sha256 of the wrappers that are ours: this release's, and those of releases before it."""
    lines = (files("slmpack.log") / WRAPPERS).read_text(encoding="utf-8").splitlines()
    listed = (line.split()[0] for line in lines if line and not line.startswith("#"))
    return frozenset([sha256(WRAPPER.read_bytes()).hexdigest(), *listed])


@contextmanager
def source_only() -> Iterator[None]:
    """Have Python run source files, not the bytecode that lies beside them, and leave none there.

    Bytecode beside a wrapper in a store is run in its place, and is not what was looked at.
    """
    before = sys.pycache_prefix, sys.dont_write_bytecode
    with TemporaryDirectory(prefix="slmpack-") as empty:
        sys.pycache_prefix, sys.dont_write_bytecode = empty, True
        try:
            yield
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = before
