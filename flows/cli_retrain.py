"""`slmpack retrain`: its options, and the run of its flow."""

import argparse
import logging
import sys
from typing import Any, NamedTuple

from flows import texts
from flows.cli_lines import FAILED, OK, begin, complain
from flows.cli_options import OptionsT, add_licence_options, add_record_options, read_licences, read_record
from flows.cli_parser import (
    CommandParser,
    add_target_option,
    add_trust_policy_option,
    add_workspace_option,
    use_trust_policy,
)
from flows.display import Display
from flows.temporary_server import prefect_server
from slmpack.chats.dataset import DataPolicy, least_chats
from slmpack.errors import SlmpackError, UsageError
from slmpack.log.chat_artifacts import is_artifact
from slmpack.log.mlflow_server import check_characters, check_name, require_registry
from slmpack.machine.expected import translated
from slmpack.machine.surroundings import typed_path
from slmpack.publish.options import PackageOptions
from slmpack.publish.request import check_requests
from slmpack.publish.summary import BEYOND_CONTRACT, summary_lines
from slmpack.records import Record, Target
from slmpack.retrain.evaluate import RetrainOutcome, RetrainPolicy, describe_retraining
from slmpack.retrain.training.settings import TrainSettings
from slmpack.source.hub import require_hub
from slmpack.source.resolve import DEFAULT_SOURCE

OPTIONS: dict[type[Record], dict[str, str]] = {
    TrainSettings: {
        "epochs": "N",
        "rank": "R",
        "learning_rate": "X",
        "batch_size": "N",
        "batches_per_step": "N",
        "max_length": "N",
        "seed": "N",
        "save_minutes": "X",
    },
    RetrainPolicy: {"min_gain": "X", "max_forgetting": "X"},
    DataPolicy: {"held_out_share": "X", "max_bad_share": "X"},
    PackageOptions: {"force": "", "waive_quality": "REASON", "waive_template": "REASON", "signing_key": "KEY"},
}


def retrain_options(parser: CommandParser) -> None:
    """Add the command's options; numbers are checked by the records that hold them."""
    parser.add_argument("base", nargs="?", default=DEFAULT_SOURCE, metavar="BASE", help="any source of `package`")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help=f"{texts.DATA} There must be {least_chats(DataPolicy())}.",
    )
    parser.add_argument("--name", help=texts.NAME)
    for record, options in OPTIONS.items():
        add_record_options(parser, record, options)
    add_licence_options(parser)
    add_target_option(parser, action="append")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_workspace_option(parser)
    add_trust_policy_option(parser)
    parser.set_defaults(run=_retrain)


class RetrainOptions(NamedTuple):
    """What the options say, as the flow takes it."""

    training: TrainSettings
    retrain_policy: RetrainPolicy
    data_policy: DataPolicy
    options: PackageOptions


def read_options(parsed: argparse.Namespace) -> RetrainOptions:
    """Return the settings of the training, the policies and the options of the packages.

    Raises:
        UsageError: a number, the name or the waiver is out of its bounds, or there is no such file of chats.
    """
    if parsed.name is not None:
        check_characters(parsed.name)
    options = RetrainOptions(
        _read(TrainSettings, parsed),
        _read(RetrainPolicy, parsed),
        _read(DataPolicy, parsed),
        _read(PackageOptions, parsed, licences=read_licences(parsed)),
    )
    if not is_artifact(parsed.data) and not typed_path(parsed.data).exists():
        raise UsageError(f"--data: there is no {parsed.data}", "a file or a folder of chats", "check the path")
    check_requests(_targets(parsed), options.options, None, parsed.workspace)
    return options


def _targets(parsed: argparse.Namespace) -> list[Target]:
    return list(dict.fromkeys(parsed.target or [Target.CPU_INT4]))


def _retrain(parsed: argparse.Namespace) -> int:
    use_trust_policy(parsed)
    options = read_options(parsed)
    begin(f"retraining {parsed.base} on {parsed.data}, which has to hold {least_chats(options.data_policy)}")
    outcome = retrain(parsed, options)
    return OK if outcome.reason is None else complain(outcome.reason, FAILED)


def run_retrain(parsed: argparse.Namespace, display: Display, options: RetrainOptions) -> RetrainOutcome:
    """Run the flow here and return what became of it.

    Raises:
        SlmpackError: it came to no end of its own.
    """
    if parsed.name is not None:
        check_name(parsed.name)
    require_registry()  # before Prefect starts its server
    require_hub(parsed.base)
    display.doing("starting Prefect")
    with prefect_server():
        from flows.retrain_model import retrain_model

    logging.captureWarnings(True)
    state: Any = retrain_model(
        parsed.data,
        parsed.base,
        parsed.name,
        *options[:3],
        _targets(parsed),
        options.options,
        parsed.workspace,
        return_state=True,
    )
    outcome: RetrainOutcome | Exception = state.result(raise_on_failure=False)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def retrain(parsed: argparse.Namespace, options: RetrainOptions) -> RetrainOutcome:
    """Retrain with a display; an expected failure is an outcome, bad usage is not."""
    with Display() as display:
        try:
            with translated():
                outcome = run_retrain(parsed, display, options)
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
        figures = f"; perplexity {outcome.figures.summary}" if outcome.figures else ""
        return [f"{outcome.name or 'retraining'}: {outcome.status}{' before' if outcome.settled else ''}{figures}"]
    lines = [describe_retraining(outcome)]
    for target in outcome.targets:
        lines += [f"{target.target}: {line}" for line in summary_lines(target)[:3]]
    return lines


def _read(record: type[OptionsT], parsed: argparse.Namespace, **rest: Any) -> OptionsT:
    return read_record(record, parsed, OPTIONS[record], **rest)
