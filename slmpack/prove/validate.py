"""Validate: the logged model is what its interface promises, read and loaded as a stranger would: by its URI.

MLflow accepts models that cannot answer, whose requirements are loose, or that only load where they were made; so
the small files of the model are looked at here, and then its own input example is predicted in a process of its own.
"""

import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from slmpack.errors import CheckError
from slmpack.log.artifacts import Artifacts
from slmpack.log.interfaces import check_answer, gets_whole_requests, input_example_of, metadata_of, signature_of
from slmpack.log.provenance import PROVENANCE
from slmpack.log.requirements import PACKAGES, PIN
from slmpack.log.trust import CODE_LOADER, PICKLE_SUFFIXES
from slmpack.machine.bounded_file import parse_json, read_bounded
from slmpack.machine.bounded_yaml import parse_yaml
from slmpack.machine.child import run_in_child
from slmpack.machine.forks import MLFLOW, forked_with
from slmpack.machine.hardware import device_of, provider_here
from slmpack.machine.limits import limit_seconds
from slmpack.machine.side_by_side import side_by_side
from slmpack.machine.store import log_folder
from slmpack.machine.surroundings import home_folder
from slmpack.progress import report
from slmpack.prove.clean_environment.check import check_clean_environment, check_resolution
from slmpack.prove.onnx_graph import check_graph
from slmpack.prove.parity.cache import known_parity
from slmpack.records import Interface, LoggedModel, Provider, Record, Target
from slmpack.reports import Check, ValidationReport
from slmpack.source.mlflow_errors import final_errors, one_line

if TYPE_CHECKING:
    from mlflow.models import Model

PREDICT_LIMIT_SECONDS = 1800.0
ANSWER_TOKENS = 16
LOADERS = {Target.TRANSFORMERS: "mlflow.transformers"}
PICKLE_KEYS = ("python_model", "cloudpickle_version", "pickled_model")
TEXT_FILES = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt")
ADVICE = "log the model again"


@dataclass(frozen=True)
class LoggedFiles:
    """What is read of the logged model: its metadata, the names of all its files, the text of the small ones."""

    model: LoggedModel
    metadata: "Model"
    names: tuple[str, ...]
    texts: dict[str, str]
    workspace: Path


class PredictRequest(Record):
    """What the process is to load and from which server; `listed` is whether the flavour answers in a list."""

    tracking_uri: str
    registry_uri: str
    uri: str
    interface: Interface
    listed: bool
    model_config_override: dict[str, int | str]


def validate_model(model: LoggedModel, workspace: Path) -> ValidationReport:
    """Check the logged model against its interface; its weights are read only to predict.

    Raises:
        CheckError: a check that does not hold: its name, what was found, what is expected.
    """
    with final_errors(CheckError, f"to read {model.uri}"):
        files = _read(model, workspace)
    checks = []
    for done, check in enumerate(CHECKS, start=1):
        checks.append(check(files))
        report("validate", done, len(CHECKS) + 1, "checks")
    provider = provider_here(model.package.target)
    if model.package.target is not Target.TRANSFORMERS:  # before anything loads it: what a graph may not do
        checks.append(check_graph(model.package.path, log_folder(workspace) / f"graph-{model.model_id}.log"))
    prediction, parity, environment = side_by_side(
        lambda: _check_prediction(model, provider, workspace),
        lambda: _parity_of(model, workspace),
        lambda: _environment_of(model, provider, workspace),
    )
    report("validate", len(CHECKS) + 1, len(CHECKS) + 1, "checks")
    return ValidationReport(
        model=model,
        checks=(*checks, prediction),
        parity=parity,
        clean_environment=environment,
        device=device_of(provider),
    )


def _environment_of(model: LoggedModel, provider: Provider, workspace: Path) -> tuple[Check, ...]:
    """Try the model in an environment of its own requirements; those for another machine are looked up only."""
    if provider == model.package.target.provider:
        return check_clean_environment(model, workspace)
    return (check_resolution(model, workspace),)


def _parity_of(model: LoggedModel, workspace: Path) -> tuple[Check, ...]:
    """Compare tokenizer and template with the source's; a checkpoint that is logged as it is has its own."""
    if model.package.target is Target.TRANSFORMERS:
        return ()
    return known_parity(model.package, workspace)


def _read(model: LoggedModel, workspace: Path) -> LoggedFiles:
    from mlflow.models import Model

    artifacts = Artifacts(model.uri)
    names = tuple(artifacts.sizes())
    if missing := sorted(set(TEXT_FILES) - set(names)):
        raise _refusal("files", f"{', '.join(missing)} missing", "the files that MLflow writes with every model")
    with TemporaryDirectory() as folder:
        read = [name for name in (*TEXT_FILES, PROVENANCE) if name in names]
        texts = {name: _text(name, artifacts.copy(name, Path(folder))) for name in read}
    metadata = Model.from_dict(_parsed("MLmodel", texts["MLmodel"]))
    return LoggedFiles(model=model, metadata=metadata, names=names, texts=texts, workspace=workspace)


def _text(name: str, path: Path) -> str:
    try:
        return read_bounded(path).decode()
    except (OSError, ValueError) as error:
        raise _refusal("files", f"{name} cannot be read ({error})", "a text of a plain size") from error


def _parsed(name: str, content: str) -> Any:
    try:
        return parse_json(content.encode()) if name.endswith(".json") else parse_yaml(content)
    except ValueError as error:
        raise _refusal("files", f"{name} cannot be read ({error})", "YAML or JSON of a plain size") from error


def _refusal(name: str, found: str, expected: str) -> CheckError:
    return CheckError(f"{name}: {found}", expected, ADVICE)


def _check_files(files: LoggedFiles) -> Check:
    """Check that the package or checkpoint is whole."""
    folder = "model" if files.model.package.target is Target.TRANSFORMERS else "artifacts/package"
    expected = {f"{folder}/{file.name}" for file in files.model.package.files}
    if missing := sorted(expected - set(files.names)):
        raise _refusal("files", f"{', '.join(missing)} missing", f"the {len(expected)} files of the package")
    return Check(name="files", found=f"{len(files.names)}")


def _check_signature(files: LoggedFiles) -> Check:
    expected, found = signature_of(files.model.interface), files.metadata.signature
    if found != expected:
        shown = "none" if found is None else f"inputs {str(found.inputs)[:150]}"
        raise _refusal("signature", shown, f"the signature of {files.model.interface}, exactly")
    if files.model.package.target is not Target.TRANSFORMERS and not gets_whole_requests(found):
        raise _refusal("signature", "MLflow drops what is not in it", "requests that reach the wrapper as they are")
    return Check(name="signature", found=f"that of {files.model.interface}")


def _check_example(files: LoggedFiles) -> Check:
    """Check that the example is there, has the interface's fields, and passes MLflow's enforcement of the signature."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import validate_schema

    if files.metadata.saved_input_example_info is None:
        raise _refusal("input example", "none", "one that the model can answer")
    try:
        example = files.metadata.load_input_example(files.model.uri)
    except (MlflowException, OSError, ValueError) as error:
        raise _refusal("input example", f"it cannot be read ({type(error).__name__})", "a JSON object") from error
    expected = input_example_of(files.model.interface)
    if not isinstance(example, dict) or example.keys() != expected.keys():
        fields = ", ".join(map(str, example)) if isinstance(example, dict) else type(example).__name__
        raise _refusal("input example", f"an example with {fields}", f"one with {', '.join(expected)}")
    try:
        validate_schema(example, signature_of(files.model.interface).inputs)
    except MlflowException as error:
        raise _refusal("input example", one_line(error), "an example that fits the signature") from error
    return Check(name="input example", found=", ".join(example))


def _check_no_pickle(files: LoggedFiles) -> Check:
    """Nothing is unpickled at load: the wrapper is source code, the weights are ONNX or safetensors."""
    expected = LOADERS.get(files.model.package.target, CODE_LOADER)
    for flavor, settings in files.metadata.flavors.items():
        if keys := [key for key in PICKLE_KEYS if settings.get(key) is not None]:
            raise _refusal("no pickle", f"{', '.join(keys)} in flavour {flavor}", "models-from-code")
    loader = files.metadata.flavors.get("python_function", {}).get("loader_module")
    if loader != expected:
        raise _refusal("no pickle", f"loader {loader}", f"loader {expected}")
    if pickles := [name for name in files.names if name.endswith(PICKLE_SUFFIXES)]:
        raise _refusal("no pickle", ", ".join(pickles), "no file of a pickled format")
    return Check(name="no pickle", found=f"loader {loader}")


def _check_requirements(files: LoggedFiles) -> Check:
    """Every line is an exact pin, and they are the pins that the model was logged with: none more, none less."""
    lines = [line.strip() for line in files.texts["requirements.txt"].splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if loose := [line for line in found if not PIN.fullmatch(line)]:
        raise _refusal("requirements", f"{loose[0]!r}", "name==version on every line")
    names = {line.partition("==")[0] for line in found}
    if missing := sorted(set(PACKAGES[files.model.package.target]) - names):
        raise _refusal("requirements", f"without {', '.join(missing)}", "all that the target needs")
    if different := sorted(set(found) ^ set(files.model.requirements)):
        raise _refusal("requirements", f"{different[0]} in one of file and record", "the versions that were installed")
    return Check(name="requirements", found=", ".join(found))


def _check_metadata(files: LoggedFiles) -> Check:
    found = files.metadata.metadata or {}
    for key, value in metadata_of(files.model.interface).items():
        if found.get(key) != value:
            raise _refusal("metadata", f"{key} is {found.get(key)!r}", f"{key} {value!r}")
    digest = found.get("slmpack", {}).get("digest")
    if digest != files.model.digest:
        raise _refusal("metadata", f"digest {digest}", f"digest {files.model.digest}")
    return Check(name="metadata", found=str(found.get("task", "no task")))


def _check_no_leak(files: LoggedFiles) -> Check:
    """Nothing of this machine: a path in the model would break it elsewhere, and tells what is nobody's business."""
    private = _private_words(files)
    for name, content in files.texts.items():
        parsed = content.splitlines() if name.endswith(".txt") else _parsed(name, content)
        for place, text in _leaves(parsed, name):
            if found := next((word for word in private if word in text), None):
                raise _refusal("no leak", f"{found} in {place}", "nothing of the machine that built it")
            if re.match(r"(file:|[A-Za-z]:[\\/]|~|/)", text) or re.search(r"@ *file:|(^| )-e ", text):
                raise _refusal("no leak", f"the path {text[:100]} in {place}", "no absolute path")
    return Check(name="no leak", found=f"{len(files.texts)} files")


def _private_words(files: LoggedFiles) -> list[str]:
    """Return what names this machine or its user; words too short to mean anything are left out."""
    package = files.model.package
    words = [
        str(files.workspace),
        str(package.path),
        str(package.snapshot.path),
        str(home_folder()),
        socket.gethostname(),
    ]
    source = package.snapshot.source
    public = f"{files.model.name} localhost {'' if source.is_local else source.location}"
    return [word for word in words if len(word) > 3 and word not in public]


def _leaves(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Yield every string in parsed YAML with where it is; the signature's own JSON has none of ours."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place} {key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, place)


CHECKS: tuple[Callable[[LoggedFiles], Check], ...] = (
    _check_signature,
    _check_example,
    _check_no_pickle,
    _check_requirements,
    _check_metadata,
    _check_no_leak,
    _check_files,
)


def _check_prediction(model: LoggedModel, provider: Provider, workspace: Path) -> Check:
    """Predict the model's own example in a process of its own, offline and without pickles."""
    import mlflow

    is_transformers = model.package.target is Target.TRANSFORMERS
    override: dict[str, int | str] = {"max_new_tokens": ANSWER_TOKENS}
    if not is_transformers:
        override = {"max_tokens": ANSWER_TOKENS, "execution_provider": provider}
    request = PredictRequest(
        tracking_uri=mlflow.get_tracking_uri(),
        registry_uri=mlflow.get_registry_uri(),
        uri=model.uri,
        interface=model.interface,
        listed=is_transformers or model.interface is Interface.PROMPT,
        model_config_override=override,
    )
    check, _ = run_in_child(
        predict_example,
        request,
        log=log_folder(workspace) / f"validate-{model.model_id}.log",
        limit_seconds=limit_seconds(PREDICT_LIMIT_SECONDS, model.package.size_bytes),
        failure=CheckError,
        doing="the prediction of the input example",
    )
    return check


@forked_with(*MLFLOW)
def predict_example(request: PredictRequest) -> Check:
    """Run in a child: load by URI, predict the input example, look at the answer.

    Raises:
        CheckError: the answer is not one of the interface.
    """
    os.environ.update(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    import mlflow
    from mlflow.models import get_model_info

    mlflow.set_tracking_uri(request.tracking_uri)
    mlflow.set_registry_uri(request.registry_uri)
    info: Any = get_model_info(request.uri)
    model = mlflow.pyfunc.load_model(request.uri, model_config=request.model_config_override)
    answer = model.predict(model.input_example)
    if request.listed:  # a prompt model answers in a column, MLflow's transformers flavour in a list
        if not isinstance(answer, list) or len(answer) != 1:
            raise _refusal("prediction", f"{_answer_shown(answer)} for one row", "a list of one answer")
        (answer,) = answer
    if info.signature is None or info.signature.outputs is None:
        raise _refusal("prediction", "no output schema", "the interface's")
    return Check(name="prediction", found=check_answer(answer, info.signature.outputs))


def _answer_shown(answer: object) -> str:
    return f"a list of {len(answer)}" if isinstance(answer, list) else type(answer).__name__
