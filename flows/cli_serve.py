"""`slmpack serve`: the OpenAI API over proved versions."""

import argparse
import logging
import sys

from flows.cli_lines import OK, begin, end_by_itself
from flows.cli_parser import (
    CommandParser,
    add_trust_option,
    add_trust_policy_option,
    add_workspace_option,
    use_trust_policy,
)

OPTIONS = {
    "host": "ADDRESS",
    "port": "N",
    "api_key_file": "FILE",
    "without_key": "",
    "slots": "N",
    "context": "N",
    "threads": "N",
    "queue": "N",
    "follow": "",
    "body_bytes": "N",
    "body_seconds": "S",
    "stop_seconds": "S",
    "log_prompts": "",
    "trace": "EXPERIMENT",
    "trace_texts": "",
}


def serve_options(parser: CommandParser) -> None:
    """Add the options of `serve`."""
    from flows.cli_options import add_record_options
    from slmpack.serve.options import ServeOptions

    parser.add_argument(
        "model_uris", metavar="MODEL_URI", nargs="+", help="such as models:/smollm2-135m-instruct@cpu-int4"
    )
    add_record_options(parser, ServeOptions, OPTIONS)
    add_workspace_option(parser)
    add_trust_option(parser)
    add_trust_policy_option(parser)
    parser.set_defaults(run=_serve)


def _serve(parsed: argparse.Namespace) -> int:
    from flows.cli_options import read_record
    from slmpack.log.ask import check_model
    from slmpack.serve.options import ServeOptions

    for uri in parsed.model_uris:
        check_model(uri)
    use_trust_policy(parsed)
    models = len(set(parsed.model_uris))
    options = read_record(ServeOptions, parsed, OPTIONS, trust_code=parsed.trust_code, models=models)
    begin(f"loading {', '.join(parsed.model_uris)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from slmpack.machine.private import workspace_of
    from slmpack.serve.downloads import temporary_downloads
    from slmpack.serve.serve import serve

    workspace = workspace_of(parsed.workspace)
    with temporary_downloads(workspace):
        serve(parsed.model_uris, options, workspace, _tell, lambda _: end_by_itself())
    return OK


def _tell(line: str) -> None:
    from slmpack.plain_text import tag_text

    sys.stderr.write(f"{tag_text(line)}\n")
    sys.stderr.flush()
