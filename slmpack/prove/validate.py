"""Validate: the logged model is what its interface promises, read and loaded as a stranger would: by its URI.

MLflow accepts models that cannot answer, whose requirements are loose, or that only load where they were made; so
its small files are looked at (`logged_files`), and then its own input example is predicted in a process of its own.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.open_templates import judge_templates
from slmpack.errors import CheckError
from slmpack.log.interfaces import check_answer
from slmpack.machine.child import run_in_child
from slmpack.machine.forks import MLFLOW, forked_with
from slmpack.machine.hardware import device_of, provider_here
from slmpack.machine.limits import limit_seconds
from slmpack.machine.side_by_side import side_by_side
from slmpack.machine.store import log_folder
from slmpack.progress import report
from slmpack.prove.clean_environment.check import check_clean_environment, check_resolution
from slmpack.prove.logged_files import CHECKS, read_logged_files, refusal
from slmpack.prove.onnx_graph import check_graph
from slmpack.prove.parity.cache import known_parity
from slmpack.records import Interface, LoggedModel, Provider, Record, Target
from slmpack.reports import Check, CleanEnvironment, ValidationReport
from slmpack.source.mlflow_errors import final_errors

if TYPE_CHECKING:
    pass

PREDICT_LIMIT_SECONDS = 1800.0
ANSWER_TOKENS = 16


class PredictRequest(Record):
    """What the process is to load and from which server; `listed` is whether the flavour answers in a list."""

    tracking_uri: str
    registry_uri: str
    uri: str
    interface: Interface
    listed: bool
    model_config_override: dict[str, int | str]


def validate_model(model: LoggedModel, workspace: Path, waive_template: str | None = None) -> ValidationReport:
    """Check the logged model against its interface; its weights are read only to predict.

    Args:
        waive_template: the reason for a chat template that depends on what a message says.

    Raises:
        CheckError: a check that does not hold: its name, what was found, what is expected.
    """
    with final_errors(CheckError, f"to read {model.uri}"):
        files = read_logged_files(model, workspace)
    template = judge_templates(
        model.package.path, model.name, waive_template, model.package.snapshot.base_template, CheckError
    )
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
        clean_environment=environment.checks,
        packages=environment.packages,
        device=device_of(provider),
        template=template,
    )


def _environment_of(model: LoggedModel, provider: Provider, workspace: Path) -> CleanEnvironment:
    """Try the model in an environment of its own requirements; those for another machine are looked up only."""
    if provider == model.package.target.provider:
        return check_clean_environment(model, workspace)
    return CleanEnvironment(checks=(check_resolution(model, workspace),))


def _parity_of(model: LoggedModel, workspace: Path) -> tuple[Check, ...]:
    """Compare tokenizer and template with the source's; a checkpoint that is logged as it is has its own."""
    if model.package.target is Target.TRANSFORMERS:
        return ()
    return known_parity(model.package, workspace)


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
            raise refusal("prediction", f"{_answer_shown(answer)} for one row", "a list of one answer")
        (answer,) = answer
    if info.signature is None or info.signature.outputs is None:
        raise refusal("prediction", "no output schema", "the interface's")
    return Check(name="prediction", found=check_answer(answer, info.signature.outputs))


def _answer_shown(answer: object) -> str:
    return f"a list of {len(answer)}" if isinstance(answer, list) else type(answer).__name__
