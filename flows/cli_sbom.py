"""`slmpack sbom`: the bill of materials of a published version, on stdout."""

import argparse
import sys

from flows import texts
from flows.cli_lines import OK, begin
from flows.cli_parser import CommandParser


def sbom_options(parser: CommandParser) -> None:
    """Add the options of `sbom`."""
    parser.add_argument("model_uri", metavar="MODEL_URI", help=texts.MODEL)
    parser.set_defaults(run=_sbom)


def _sbom(parsed: argparse.Namespace) -> int:
    from slmpack.log.restore import check_uri

    check_uri(parsed.model_uri)
    begin(f"reading the bill of materials of {parsed.model_uri}")
    from slmpack.log.mlflow_server import require_registry
    from slmpack.publish.bom.log_bom import read_bom

    require_registry()
    sys.stdout.write(read_bom(parsed.model_uri))
    return OK
