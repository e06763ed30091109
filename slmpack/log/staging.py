"""The folder of a logged model, put together without reading or writing a weight.

    scratch/log-<id>/model/
        MLmodel, requirements.txt, conda.yaml, python_env.yaml, input_example.json, ...   written by MLflow
        requirements.lock                        every package with its hashes, see `requirements_lock`
        slmpack.json                             what another machine needs to prove the model again
        chat_model.py + artifacts/package/*      ONNX targets: hard links to the package's files
        model/* + components/tokenizer/*         transformers: hard links to the snapshot's weights

MLflow's own `log_model` writes the weights twice. Its `save_model` runs here on what is small, and the files that
are large are linked beside it: they are read-only and content-addressed, so a second name does them no harm.
"""

import json
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmpack.checkpoint.licence import stated_in_file
from slmpack.log.interfaces import input_example_of, metadata_of, signature_of, wrapper_signature_of
from slmpack.log.provenance import PROVENANCE, provenance_of
from slmpack.log.requirements import requirements_for
from slmpack.log.requirements_lock import LOCK, lock_of
from slmpack.machine.private import folder_in
from slmpack.machine.store import MANIFEST, Manifest, sha256_of
from slmpack.records import FileDigest, Interface, Package, SourceKind, Target

logger = logging.getLogger(__name__)

WRAPPER = Path(__file__).with_name("chat_model.py")
PACKAGE_FOLDER = "artifacts/package"
READ_ONLY = 0o444
DEFAULT_NEW_TOKENS = 256  # of a request that names no limit
# MLflow takes these from the working folder when a uv project is there: they are the user's, not the model's.
PROJECT_FILES = ("uv.lock", "pyproject.toml", ".python-version")


@contextmanager
def staged_model(package: Package, interface: Interface, name: str, digest: str, workspace: Path) -> Iterator[Path]:
    """Yield the folder of the model, complete but for its ids; it is gone afterwards."""
    scratch = folder_in(workspace, "scratch", f"log-{uuid.uuid4().hex}")
    try:
        folder = scratch / "model"
        facts = {"digest": digest, "target": package.target, "recipe": package.recipe, "interface": interface}
        metadata = metadata_of(interface) | {"slmpack": {key: value and str(value) for key, value in facts.items()}}
        if package.target is Target.TRANSFORMERS:
            _save_transformers(package, folder, scratch / "small", metadata, name)
        else:
            _save_onnx(package, interface, folder, metadata, name)
        for stranger in PROJECT_FILES:
            (folder / stranger).unlink(missing_ok=True)
        requirements = requirements_for(package.target)
        if package.target.provider == "cpu" and (lock := lock_of(requirements, workspace)) is not None:
            (folder / LOCK).write_text(lock)
        provenance = provenance_of(package, interface, name, requirements, digest)
        (folder / PROVENANCE).write_text(provenance.model_dump_json(indent=1) + "\n")
        yield folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save_onnx(package: Package, interface: Interface, folder: Path, metadata: dict[str, object], name: str) -> None:
    """Let MLflow save the wrapper alone, then add the package."""
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(WRAPPER),
        signature=wrapper_signature_of(interface),
        input_example=input_example_of(interface),
        pip_requirements=list(requirements_for(package.target)),
        metadata=metadata,
        model_config={
            "name": name,
            "interface": str(interface),
            "max_tokens": DEFAULT_NEW_TOKENS,
            "intra_op_num_threads": None,
            "apply_chat_template": True,
            "execution_provider": None,
        },
    )
    link_tree(package.path, folder / PACKAGE_FOLDER)
    _edit_flavor(
        folder,
        "python_function",
        set_to={
            "artifacts": {"package": {"path": PACKAGE_FOLDER, "uri": "package"}},
            "model_code_path": WRAPPER.name,  # was the path on this machine; loading looks at the name only
        },
        without=("cloudpickle_version",),  # nothing is pickled
    )


def _save_transformers(package: Package, folder: Path, small: Path, metadata: dict[str, object], name: str) -> None:
    """Let MLflow save a checkpoint folder that lacks its weights, then add them."""
    import mlflow.transformers
    from huggingface_hub import ModelCard

    weights = {file.name for file in package.files if file.name.endswith(".safetensors")}
    link_tree(package.path, small, leave_out=weights | {MANIFEST})
    licence = package.snapshot.licence or "unknown"
    mlflow.transformers.save_model(
        transformers_model=str(small),
        path=str(folder),
        task="llm/v1/chat",
        signature=signature_of(Interface.CHAT),
        input_example=input_example_of(Interface.CHAT),
        pip_requirements=list(requirements_for(package.target)),
        metadata=metadata,
        # What a pipeline does anyway; said, because a caller can override only what the model was logged with.
        model_config={"max_new_tokens": DEFAULT_NEW_TOKENS, "do_sample": True},
        model_card=ModelCard(f"---\nlicense: {json.dumps(licence)}\n---\n\n# {name}\n"),
    )
    for weight in sorted(weights):
        link_or_copy(package.path / weight, folder / "model" / weight)
    # MLflow's text names the path of the checkpoint here; the source's own licence files are in model/.
    (folder / "LICENSE.txt").write_text(stated_in_file(package.snapshot.licence))
    _edit_flavor(folder, "transformers", set_to={"source_model_name": _public_name(package, name)})


def _public_name(package: Package, name: str) -> str:
    """Return what the flavour answers as `model`, and where it looks for a tokenizer for `stop`.

    It would look in the folder that the model was saved from. A Hub id is right anywhere; `models:/name` is no Hub
    id, so that `stop` then fails with an error instead of fetching a stranger's tokenizer of the same name.
    """
    source = package.snapshot.source.base or package.snapshot.source  # an adapter's repository may lack a tokenizer
    return source.location if source.kind is SourceKind.HUB else f"models:/{name}"


def _edit_flavor(folder: Path, flavor: str, set_to: dict[str, object], without: tuple[str, ...] = ()) -> None:
    from mlflow.models import Model

    model = Model.load(str(folder))
    settings = model.flavors[flavor]
    settings.update(set_to)
    for key in without:
        settings.pop(key, None)
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model.save(str(folder / "MLmodel"))


def write_manifest(folder: Path) -> str:
    """List every file of the model with its sha256, and return the sha256 of that list.

    The files of an ONNX package are in its own manifest, which is in this one; none of them is read again.
    """
    inside = f"{PACKAGE_FOLDER}/"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    files = tuple(
        FileDigest(name=names[path], sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in paths
        if names[path] != MANIFEST and (not names[path].startswith(inside) or names[path] == inside + MANIFEST)
    )
    manifest = folder / MANIFEST
    manifest.write_text(Manifest(files=files, facts={}).model_dump_json(indent=1) + "\n")
    return sha256_of(manifest)


def link_tree(source: Path, into: Path, leave_out: set[str] | None = None) -> None:
    """Link (or copy) every file below `source` but those named in `leave_out`, keeping folders."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and name.as_posix() not in (leave_out or set()):
            link_or_copy(path, into / name)


def link_or_copy(source: Path, into: Path) -> None:
    """Give a read-only file a second name, or copy what cannot share: other file systems, files of others.

    What may still be written, or is a link to a file outside the workspace, is copied: a published model must not
    change with it. The result is read-only either way.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_symlink() and stat.S_IMODE(source.stat().st_mode) == READ_ONLY:
        try:
            os.link(source, into)
            return
        except OSError as error:  # another file system, or one without hard links
            logger.info("copying %s, which cannot be linked (%s)", source.name, error.strerror)
    shutil.copyfile(source, into)
    into.chmod(READ_ONLY)
