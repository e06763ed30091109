"""MLflow as a source: a transformers model that was logged there, such as last night's fine-tune."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from slmpack.checkpoint.licence import is_placeholder, licence_text, stated_licence
from slmpack.errors import SourceError, UsageError
from slmpack.machine.bounded_file import MIB, SMALL_BYTES, read_bounded
from slmpack.records import ModelSource, Record, SourceKind
from slmpack.signing.policy import find_policy
from slmpack.signing.signature import LARGEST_SIGNATURE, SIGNATURE, STATEMENT, require_vouched, vouched_digests
from slmpack.source.absence import Absence, absence_of
from slmpack.source.files import checkpoint_files, require_own
from slmpack.source.mlmodel import read_mlmodel
from slmpack.source.model_uris import model_form, name_in_uri
from slmpack.source.names import name_of_logged

_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID/NAME"
_OF_RUN = re.compile(r"runs:/[^/]+/.+")
_ID = re.compile(r"m-[0-9a-f]{32}")
QUALITY_CHATS = "slmpack.quality_chats"  # of a logged model: the chats whose answers its packages have to keep
_FLAVOUR = "transformers"
_WEIGHTS = "model"  # the folder in a logged model


class PinnedModel(Record):
    """What a URI names today: a URI that names it for ever, an id, and the name it goes by."""

    location: str
    revision: str
    name: str
    licence: str | None


def pin(uri: str) -> PinnedModel:
    """Find what `uri` names now.

    Raises:
        UsageError: `uri` is not one of MLflow's forms, or not one that names a single model.
        SourceError: there is no such model, or it is not of the transformers flavour.
    """
    if not model_form(uri) and not _OF_RUN.fullmatch(uri):
        raise UsageError(f"{uri!r} names no single model", _FORMS, "write one of those")
    import mlflow

    client = mlflow.MlflowClient()
    with _translated(uri):
        location, name = _unmoving(client, uri)
        _require_usable(uri, _metadata_file(client, location))
        info = mlflow.models.get_model_info(location)
        _check_flavour(uri, info.flavors)
        revision = info.model_id or f"{info.run_id}/{info.artifact_path}"
        if info.model_id and (logged := _logged_model(client, info.model_id)):
            location, name = f"models:/{logged.model_id}", name or name_of_logged(logged)
    metadata = info.metadata or {}
    return PinnedModel(
        location=location,
        revision=revision,
        name=name or location.split("/")[-1],
        licence=stated_licence(metadata.get("license") or metadata.get("licence")),
    )


def chats_of(source: ModelSource) -> str | None:
    """Return the chats that a tuned model was judged by, under any of its names; None for other sources."""
    if source.kind is not SourceKind.MLFLOW:
        return None
    return chats_behind(source.location.removeprefix("models:/"))


def chats_behind(model_id: str) -> str | None:
    """Return the same for the id of a logged model; None for what is no such id, or another server's."""
    import mlflow

    logged = _logged_model(mlflow.MlflowClient(), model_id) if _ID.fullmatch(model_id) else None
    return None if logged is None else logged.tags.get(QUALITY_CHATS)


def _unmoving(client: Any, uri: str) -> tuple[str, str | None]:
    """Return a URI that will not name another model tomorrow, and the registered model's name if there is one."""
    form = model_form(uri)
    if form is None:
        return uri, None
    if form["alias"]:
        version = client.get_model_version_by_alias(form["name"], form["alias"])
        return f"models:/{version.name}/{version.version}", form["name"]
    return uri, form["name"]


def _logged_model(client: Any, model_id: str) -> Any:
    """Return the logged model, or None where the id is another server's: a model that was copied here."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _metadata_file(client: Any, location: str) -> Path:
    """Return the place of a logged model's MLmodel file here, downloaded where the artifact store is elsewhere."""
    import mlflow

    place = location
    if location.startswith("models:/m-"):  # MLflow takes no path after such a URI
        place = client.get_logged_model(location.removeprefix("models:/")).artifact_location
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{place}/MLmodel"))


def _require_usable(uri: str, path: Path) -> None:
    """Refuse an MLmodel file before MLflow reads it, if that could fill the memory or fail.

    Raises:
        SourceError: it is no regular file, is too large, is no YAML of a plain size, or of no logged model.
    """
    try:
        read_mlmodel(read_bounded(path, MIB))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(
            f"the MLmodel file of {uri} cannot be used ({reason})", "one that MLflow wrote", "log the model again"
        ) from error


def _check_flavour(uri: str, flavours: dict[str, Any]) -> None:
    if _FLAVOUR not in flavours:
        raise SourceError(
            f"{uri} has the flavours {', '.join(sorted(flavours))}",
            f"the flavour {_FLAVOUR}",
            "log it with mlflow.transformers.log_model",
        )
    flavour = flavours[_FLAVOUR]
    if "peft_adaptor" in flavour:
        raise SourceError(f"{uri} is an adapter", "a whole model", "download its peft folder and name that")
    if "model_binary" not in flavour:
        raise SourceError(
            f"{uri} was logged without its weights", "a model that holds them", "log it with save_pretrained=True"
        )


def vouched(source: ModelSource) -> dict[str, str] | None:
    """Return the sha256 of every file of a logged model, as somebody signed it whom the trust policy accepts.

    Returns:
        By the files' paths; None without a policy, and for sources that are not in MLflow.

    Raises:
        TrustError: it is not signed, or not by one who may sign its name.
        UsageError: the policy cannot be read.
    """
    import mlflow

    policy = find_policy() if source.kind is SourceKind.MLFLOW else None
    if policy is None:
        return None
    name = name_in_uri(source.text)
    with _translated(source.text), TemporaryDirectory(prefix="slmpack-") as folder:
        place = _place_of(source)
        there = mlflow.artifacts.list_artifacts(artifact_uri=place)
        if {SIGNATURE, STATEMENT} - {PurePosixPath(entry.path).name for entry in there}:
            raise policy.unsigned(source.text, name or source.text)
        signature, statement = (
            _small_file(place, each, limit, Path(folder))
            for each, limit in ((SIGNATURE, LARGEST_SIGNATURE), (STATEMENT, SMALL_BYTES))
        )
    return vouched_digests(source.text, signature, statement, policy, name)


def _small_file(place: str, name: str, most: int, folder: Path) -> bytes:
    import mlflow

    path = mlflow.artifacts.download_artifacts(artifact_uri=f"{place}/{name}", dst_path=str(folder))
    return read_bounded(Path(path), most)


def _place_of(source: ModelSource) -> str:
    """Return the URI that a path may follow."""
    import mlflow

    if source.revision != source.location.removeprefix("models:/"):
        return source.location
    return str(mlflow.MlflowClient().get_logged_model(source.revision).artifact_location)  # MLflow takes none after it


def download(source: ModelSource, into: Path, signed: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Return the files of a logged model's checkpoint, their path in the checkpoint to their path on disk.

    MLflow keeps a model and its tokenizer apart; the result has both. Files in an artifact store that is a folder of
    this machine are returned where they are, others are downloaded below `into`.

    Args:
        signed: the digests that all of its files have to have, see `vouched`; None: whichever they have.

    Raises:
        SourceError: the logged files are gone.
        TrustError: a file is not one that was signed.
    """
    import mlflow

    with _translated(source.text):
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{_place_of(source)}/MLmodel")).parent
        if not (model / _WEIGHTS).is_dir():  # MLmodel came alone: it is a temporary copy
            model = Path(mlflow.artifacts.download_artifacts(artifact_uri=source.location, dst_path=str(into)))
    if signed is not None:
        require_vouched(source.text, model, signed)
    # The model's own files come first: MLflow saves the tokenizer anew.
    tokenizer = model / "components" / "tokenizer"
    files = checkpoint_files(tokenizer, inside=model) | checkpoint_files(model / _WEIGHTS, inside=model)
    licence = model / "LICENSE.txt"
    if licence.is_file():
        require_own(licence, model)
        if not is_placeholder(licence_text(licence)):
            files.setdefault(licence.name, licence)
    return files


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn MLflow's "there is no such thing" into our error; a server that cannot be reached stays what it is."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        # An alias that does not exist is an invalid parameter to MLflow.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        reason = " ".join(error.message.split())
        absence = absence_of(uri) or Absence(reason, _FORMS, "check MLFLOW_TRACKING_URI and the name")
        raise SourceError(f"MLflow has no {uri}: {absence.found}", absence.known, absence.advice) from error
