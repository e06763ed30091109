"""`slmpack retrain`: its options, and the run of its flow."""

import argparse
import logging
import sys
from typing import Any, TypeVar

from pydantic import ValidationError

from flows.cli_lines import FAILED, OK, begin, complain
from flows.cli_parser import CommandParser, add_target_option, add_workspace_option
from flows.display import Display
from slmpack.chats.dataset import DataPolicy, least_chats
from slmpack.errors import SlmpackError, UsageError
from slmpack.log.chat_artifacts import is_artifact
from slmpack.log.mlflow_server import check_characters, check_name, require_registry
from slmpack.machine.expected import translated
from slmpack.machine.surroundings import typed_path
from slmpack.publish.summary import BEYOND_CONTRACT, summary_lines
from slmpack.records import QualityPolicy, Record, Target
from slmpack.retrain.evaluate import RetrainOutcome, RetrainPolicy, told_retraining
from slmpack.retrain.training.settings import TrainSettings
from slmpack.source.hub import require_hub
from slmpack.source.resolve import DEFAULT_SOURCE

Options = TypeVar("Options", bound=Record)

OPTIONS: dict[type[Record], dict[str, str]] = {
    TrainSettings: {
        "epochs": "N", "rank": "R", "learning_rate": "X", "batch_size": "N", "batches_per_step": "N", "max_length": "N",
        "seed": "N", "save_minutes": "X",
    },
    RetrainPolicy: {"min_gain": "X", "max_forgetting": "X"},
    DataPolicy: {"held_out_share": "X", "max_bad_share": "X"},
}  # fmt: skip


def retrain_options(parser: CommandParser) -> None:
    """Add the command's options; numbers are checked by the records that hold them."""
    parser.add_argument("base", nargs="?", default=DEFAULT_SOURCE, metavar="BASE", help="any source of `package`")
    parser.add_argument(
        "--data", required=True, metavar="FILE",
        help=f"chats: a file, a folder, runs:/ID/PATH.jsonl, or datasets:/NAME; {least_chats(DataPolicy())}",
    )  # fmt: skip
    parser.add_argument("--name", help="the registered model's name; taken from the base if left out")
    for record, options in OPTIONS.items():
        for name, metavar in options.items():
            field = record.model_fields[name]
            text = f"{field.description} (default: {field.default})".replace("%", "%%")
            parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
    add_target_option(parser, action="append")
    parser.add_argument("--force", action="store_true", help="train even if the same was trained before")
    parser.add_argument("--waive-quality", metavar="REASON", help="package below the quality policy, for this reason")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_workspace_option(parser)
    parser.set_defaults(run=_retrain)


def read_options(parsed: argparse.Namespace) -> tuple[TrainSettings, RetrainPolicy, DataPolicy]:
    """Return the settings of the training and the policies.

    Raises:
        UsageError: a number or the name is out of its bounds, or there is no such file of chats.
    """
    if parsed.name is not None:
        check_characters(parsed.name)
    options = _read(TrainSettings, parsed), _read(RetrainPolicy, parsed), _read(DataPolicy, parsed)
    if not is_artifact(parsed.data) and not typed_path(parsed.data).exists():
        raise UsageError(f"--data: there is no {parsed.data}", "a file or a folder of chats", "check the path")
    return options


def _retrain(parsed: argparse.Namespace) -> int:
    options = read_options(parsed)
    begin(f"retraining {parsed.base} on {parsed.data}, which has to hold {least_chats(options[-1])}")
    outcome = retrain(parsed, *options)
    return OK if outcome.reason is None else complain(outcome.reason, FAILED)


def run_retrain(parsed: argparse.Namespace, display: Display, *options: Any) -> RetrainOutcome:
    """Run the flow here and return what became of it.

    Raises:
        SlmpackError: it came to no end of its own.
    """
    if parsed.name is not None:
        check_name(parsed.name)
    targets = list(dict.fromkeys(parsed.target or [Target.CPU_INT4]))
    require_registry()  # before Prefect starts its server
    require_hub(parsed.base)
    display.doing("starting Prefect")
    from flows.retrain_model import retrain_model

    logging.captureWarnings(True)
    state: Any = retrain_model(
        parsed.data, parsed.base, parsed.name, *options, targets, QualityPolicy(),
        parsed.waive_quality, parsed.force, parsed.workspace, return_state=True,
    )  # fmt: skip
    outcome: RetrainOutcome | Exception = state.result(raise_on_failure=False)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def retrain(parsed: argparse.Namespace, *options: Any) -> RetrainOutcome:
    """Retrain with a display; an expected failure is an outcome, bad usage is not."""
    with Display() as display:
        try:
            with translated():
                outcome = run_retrain(parsed, display, *options)
        except UsageError:
            raise
        except SlmpackError as error:
            outcome = RetrainOutcome(status="failed", name=parsed.name, reason=" ".join(str(error).split()))
        for line in closing_lines(outcome):
            display.say(line)
    if parsed.json:
        sys.stdout.write(outcome.model_dump_json(exclude={"targets": {"__all__": {"speed": BEYOND_CONTRACT}}}) + "\n")
    return outcome


def closing_lines(outcome: RetrainOutcome) -> list[str]:
    """Return what a retraining ends with; a reason is not in it, since the command's last line is the reason."""
    if outcome.reason is not None:
        figures = f"; perplexity {outcome.figures.told}" if outcome.figures else ""
        return [f"{outcome.name or 'retraining'}: {outcome.status}{' before' if outcome.settled else ''}{figures}"]
    lines = [told_retraining(outcome)]
    for target in outcome.targets:
        lines += [f"{target.target}: {line}" for line in summary_lines(target)[:3]]
    return lines


def _read(record: type[Options], parsed: argparse.Namespace) -> Options:
    given = {name: value for name in OPTIONS[record] if (value := getattr(parsed, name)) is not None}
    try:
        return record.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise UsageError(f"{option} {first['input']}", first["msg"].removeprefix("Input should be "),
                         "see `slmpack retrain --help`") from error  # fmt: skip
