"""The command line: package, verify, retrain, rollback, sbom, chat, serve, promote, sign, keys, targets,
list, show, open, diff.

`main` starts a second process that runs the command (see `supervise`), by `run`. Each command has its options and its
run in `cli_package`, `cli_retrain`, `cli_chat`, `cli_serve`, `cli_sign` or `cli_views`, its examples in `cli_examples`.

Progress and errors go to stderr; stdout has the answer, or with `--json` one object a target. Exit codes:

    0    every target is published or unchanged
    1    one was refused, failed or is unproved; the source, model, alias or name is not there; a server is away
    2    bad usage: no such command or option, a value that can never be right, a file of an option that is not there
    130  interrupted
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from flows.cli_examples import EXAMPLES, shown_below
from flows.cli_lines import FAILED, OK, USAGE, complain
from flows.cli_parser import CommandParser
from flows.cli_version import VersionAction
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
    given = sys.argv[1:] if arguments is None else arguments
    if given in (["--version"], ["-V"]):  # a second process would take longer than the answer
        sys.exit(run(given))
    sys.exit(supervise(given))


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
    from slmpack.machine.surroundings import default_workspace
    from slmpack.plain_text import harmless
    from slmpack.redaction import redacted

    try:
        log = log_folder(default_workspace()) / "last-error.log"
        log.unlink(missing_ok=True)  # it may be a link
        log.write_text(harmless(redacted("".join(traceback.format_exception(error)))))
    except (OSError, WorkspaceError):
        return ""
    return f"; the whole error is in {log}"


def _late(module: str, function: str) -> Callable[[CommandParser], None]:
    """Return what adds a command's options by a function of `flows`, imported when that command is parsed."""

    def add(parser: CommandParser) -> None:
        getattr(import_module(f"flows.{module}"), function)(parser)

    return add


def _targets_options(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a target on stdout")
    parser.set_defaults(run=_targets)


COMMANDS = {
    "package": ("build a model for a target, prove it, publish it", _late("cli_package", "package_options")),
    "verify": ("prove a logged model again on this machine, then publish it", _late("cli_package", "verify_options")),
    "rollback": ("give the alias back to the version proved before", _late("cli_package", "rollback_options")),
    "sbom": (
        "the bill of materials of a published version, as CycloneDX JSON on stdout",
        _late("cli_sbom", "sbom_options"),
    ),
    "chat": ("ask a published model; the answer streams to stdout", _late("cli_chat", "chat_options")),
    "serve": ("answer requests in OpenAI's form for published models", _late("cli_serve", "serve_options")),
    "retrain": (
        "train on chats, and package what is better than what is in use",
        _late("cli_retrain", "retrain_options"),
    ),
    "promote": ("give an alias such as production to a proved version", _late("cli_sign", "promote_options")),
    "sign": ("sign a published version with another key, or for the first time", _late("cli_sign", "sign_options")),
    "keys": ("make a key that signs versions, or show its public half", _late("cli_sign", "keys_options")),
    "targets": ("what each target is, and what this machine can do for it", _targets_options),
    "list": ("the published versions: those in use, or all of one model", _late("cli_views", "list_options")),
    "show": ("what is known of one published version, in 30 lines", _late("cli_views", "show_options")),
    "open": ("the page of a published version, in a browser", _late("cli_views", "open_options")),
    "diff": ("how two versions of a model differ", _late("cli_views", "diff_options")),
}


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = CommandParser(
        prog="slmpack",
        description="Package small language models for a piece of hardware, proved.",
        **shown_below(*(lines[0] for lines in EXAMPLES.values())),
    )
    parser.add_argument("-V", "--version", action=VersionAction, help="slmpack's release, and what it works with here")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (help_text, options) in COMMANDS.items():
        below = shown_below(*EXAMPLES[name])
        commands.add_parser(name, help=help_text, options=options, **below).set_defaults(command=name)
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
    from slmpack.machine.target_support import all_support, describe_support

    for support in all_support():
        sys.stdout.write(f"{support.model_dump_json() if parsed.json else describe_support(support)}\n")
    return OK


if __name__ == "__main__":
    main()
