"""The command line: `slmpack package`, `slmpack verify`, `slmpack retrain`, `slmpack rollback`, `chat`, `targets`.

`main` starts a second process that runs the command (see `supervise`), by `run`. Each command has its options and its
run in `cli_package`, `cli_retrain` or `cli_chat`.

Progress and errors go to stderr; stdout has the answer, or with `--json` one object a target. Exit codes:

    0    every target is published or unchanged
    1    one was refused, failed or is unproved; the source, model, alias or name is not there; a server is away
    2    bad usage: no such command or option, a value that can never be right, a file of an option that is not there
    130  interrupted
"""

import argparse
import os
import sys
from typing import NoReturn

from flows.cli_lines import FAILED, OK, USAGE, complain
from flows.cli_parser import CommandParser
from flows.supervise import INTERRUPTED, supervise

# The library is imported where it is used: a command's first line comes before the imports that take seconds, and the
# process that a person starts needs none of it.

# What Prefect and MLflow tell the console is for those who debug them; a run's log has Prefect's all the same.
QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "slmpack",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command, in a process of its own, and end this one with the contract's exit code."""
    sys.exit(supervise(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command here and return its exit code; INTERRUPTED after a KeyboardInterrupt."""
    os.environ.update(QUIET)  # before the libraries that read them are imported
    try:
        if (code := _unknown_command(arguments)) is not None:
            return code
        return _run(command_parser().parse_args(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(parsed: argparse.Namespace) -> int:
    from slmpack.errors import UsageError
    from slmpack.machine.expected import expected_error
    from slmpack.machine.surroundings import prepare_home

    try:
        if parsed.run is not _targets:  # which needs no folder
            prepare_home(getattr(parsed, "workspace", None))
        code: int = parsed.run(parsed)
    except UsageError as error:
        return complain(error, USAGE)
    except Exception as error:
        return complain(expected_error(error) or _unforeseen(error), FAILED)
    return code


def _unforeseen(error: Exception) -> str:
    return f"{type(error).__name__}: {error}; nothing was published{_kept_at(error)}"


def _kept_at(error: Exception) -> str:
    """Keep the whole error in a file and say where, if there is a folder for it."""
    import traceback

    from slmpack.errors import WorkspaceError
    from slmpack.machine.store import log_folder
    from slmpack.plain_text import harmless
    from slmpack.publish.request import default_workspace
    from slmpack.redaction import redacted

    try:
        log = log_folder(default_workspace()) / "last-error.log"
        log.unlink(missing_ok=True)  # it may be a link
        log.write_text(harmless(redacted("".join(traceback.format_exception(error)))))
    except (OSError, WorkspaceError):
        return ""
    return f"; the whole error is in {log}"


def _package_options(parser: CommandParser) -> None:
    from flows.cli_package import package_options

    package_options(parser)


def _verify_options(parser: CommandParser) -> None:
    from flows.cli_package import verify_options

    verify_options(parser)


def _rollback_options(parser: CommandParser) -> None:
    from flows.cli_package import rollback_options

    rollback_options(parser)


def _chat_options(parser: CommandParser) -> None:
    from flows.cli_chat import chat_options

    chat_options(parser)


def _retrain_options(parser: CommandParser) -> None:
    from flows.cli_retrain import retrain_options

    retrain_options(parser)


def _targets_options(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a target on stdout")
    parser.set_defaults(run=_targets)


COMMANDS = {
    "package": ("build a model for a target, prove it, publish it", _package_options),
    "verify": ("prove a logged model again on this machine, then publish it", _verify_options),
    "rollback": ("give the alias back to the version proved before", _rollback_options),
    "chat": ("ask a published model; the answer streams to stdout", _chat_options),
    "retrain": ("train on chats, and package what is better than what is in use", _retrain_options),
    "targets": ("what each target is, and what this machine can do for it", _targets_options),
}


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = CommandParser(prog="slmpack", description="Package small language models for a piece of hardware, proved.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (help_text, options) in COMMANDS.items():
        commands.add_parser(name, help=help_text, options=options).set_defaults(command=name)
    return parser


def _unknown_command(arguments: list[str]) -> int | None:
    """Return the exit code for a command that there is not; None for any other."""
    from slmpack.suggest import did_you_mean

    word = next((each for each in arguments if not each.startswith("-")), None)
    if word is None or word in COMMANDS:
        return None
    advice = did_you_mean(word, COMMANDS, "see `slmpack --help`")
    return complain(f"no command {word}; slmpack has {', '.join(COMMANDS)}; {advice}", USAGE)


def _targets(parsed: argparse.Namespace) -> int:
    from slmpack.machine.target_support import describe_support, offers

    for offer in offers():
        sys.stdout.write(f"{offer.model_dump_json() if parsed.json else describe_support(offer)}\n")
    return OK


if __name__ == "__main__":
    main()
