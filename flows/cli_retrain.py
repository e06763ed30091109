"""`slmpack retrain`: its options, and the run of its flow."""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from flows.display import Display
from slmpack.chat_data import DataPolicy
from slmpack.errors import SlmpackError, UsageError
from slmpack.expected import translated
from slmpack.hub import require_hub
from slmpack.records import QualityPolicy, Record, Target
from slmpack.registry import check_characters, check_name, require_registry
from slmpack.resolve import DEFAULT_SOURCE
from slmpack.retrain import RetrainOutcome, RetrainPolicy, told_retraining
from slmpack.train_settings import TrainSettings

OPTIONS: dict[type[Record], dict[str, str]] = {
    TrainSettings: {
        "epochs": "N", "rank": "R", "learning_rate": "X", "batch_size": "N", "batches_per_step": "N", "max_length": "N",
        "seed": "N", "save_minutes": "X",
    },
    RetrainPolicy: {"min_gain": "X", "max_forgetting": "X"},
    DataPolicy: {"held_out_share": "X", "max_bad_share": "X"},
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser, target: Callable[[str], Target]) -> None:
    """Add the command's options; numbers are checked by the records that hold them."""
    parser.add_argument("base", nargs="?", default=DEFAULT_SOURCE, metavar="BASE", help="any source of `package`")
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="chats: a file, a folder, runs:/ID/PATH.jsonl, or datasets:/NAME"
    )
    parser.add_argument("--name", help="the registered model's name; taken from the base if left out")
    for record, options in OPTIONS.items():
        for name, metavar in options.items():
            field = record.model_fields[name]
            text = f"{field.description} (default: {field.default})".replace("%", "%%")
            parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
    parser.add_argument("--target", type=target, action="append", metavar="T", help=", ".join(Target))
    parser.add_argument("--force", action="store_true", help="train even if the same was trained before")
    parser.add_argument("--waive-quality", metavar="REASON", help="package below the quality policy, for this reason")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def read_options(parsed: argparse.Namespace) -> list[Any]:
    """Return the settings of the training and the policies.

    Raises:
        UsageError: a number or the name is out of its bounds.
    """
    if parsed.name is not None:
        check_characters(parsed.name)
    return [_read(record, parsed) for record in OPTIONS]


def run_retrain(parsed: argparse.Namespace, *options: Any) -> RetrainOutcome:
    """Run the flow here and return what became of it.

    Raises:
        SlmpackError: it came to no end of its own.
    """
    if parsed.name is not None:
        check_name(parsed.name)
    targets = list(dict.fromkeys(parsed.target or [Target.CPU_INT4]))
    require_registry()  # before Prefect starts its server
    require_hub(parsed.base)
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
                outcome = run_retrain(parsed, *options)
        except UsageError:
            raise
        except SlmpackError as error:
            outcome = RetrainOutcome(status="failed", name=parsed.name, reason=" ".join(str(error).split()))
        display.say(told_retraining(outcome))
    if parsed.json:
        sys.stdout.write(outcome.model_dump_json() + "\n")
    return outcome


def _read(record: type[Record], parsed: argparse.Namespace) -> Any:
    given = {name: value for name in OPTIONS[record] if (value := getattr(parsed, name)) is not None}
    try:
        return record.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise UsageError(f"{option} {first['input']}", first["msg"].removeprefix("Input should be "),
                         "see `slmpack retrain --help`") from error  # fmt: skip
