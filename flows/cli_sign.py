"""`slmpack keys`, `sign` and `promote`: keys, signatures for versions that are there, and aliases that people give."""

import argparse
import getpass
import os
import sys
from pathlib import Path

from flows import texts
from flows.cli_lines import OK, begin
from flows.cli_parser import CommandParser, add_trust_option, add_trust_policy_option, use_trust_policy

ACTIONS = {"new": "write a new private key to FILE", "show": "print the public key of FILE, and what it is called"}


def keys_options(parser: CommandParser) -> None:
    """Add the words of `keys`."""
    shown = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
    parser.add_argument("action", choices=ACTIONS, help=shown)
    parser.add_argument("file", type=Path, metavar="FILE", help="of the private key, in PEM")
    parser.set_defaults(run=_keys)


def sign_options(parser: CommandParser) -> None:
    """Add the options of `sign`."""
    parser.add_argument("model_uri", metavar="MODEL_URI", help="models:/NAME/VERSION or models:/NAME@ALIAS, published")
    parser.add_argument("--signing-key", required=True, metavar="KEY", help=texts.SIGNING_KEY)
    parser.set_defaults(run=_sign)


def promote_options(parser: CommandParser) -> None:
    """Add the options of `promote`."""
    parser.add_argument("name", metavar="NAME", help=texts.PUBLISHED_NAME)
    parser.add_argument("--from", dest="source", required=True, metavar="ALIAS", help=texts.PROMOTED_SOURCE)
    parser.add_argument("--to", dest="alias", required=True, metavar="ALIAS", help=texts.PROMOTED_ALIAS)
    parser.add_argument("--approver", metavar="NAME", help="who approves (default: the user of MLflow, else of here)")
    parser.add_argument("--accept-waiver", action="store_true", help=texts.ACCEPT_WAIVER)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_trust_option(parser)
    add_trust_policy_option(parser)
    parser.set_defaults(run=_promote)


def _keys(parsed: argparse.Namespace) -> int:
    from slmpack.machine.surroundings import typed_path
    from slmpack.signing.keys import new_key, read_key

    path = typed_path(parsed.file)
    key = new_key(path) if parsed.action == "new" else read_key(str(path))
    if parsed.action == "new":
        sys.stderr.write(f"wrote {path}, which only you can read; its public half, for trust policies:\n")
    if key.subject is not None:
        sys.stderr.write(f"certificate {key.subject}\n")
    sys.stderr.write(f"fingerprint {key.fingerprint}\n")
    sys.stderr.flush()
    sys.stdout.write(key.public_pem())
    return OK


def _sign(parsed: argparse.Namespace) -> int:
    from slmpack.errors import UsageError
    from slmpack.log.restore import check_uri
    from slmpack.signing.keys import read_key

    if check_uri(parsed.model_uri)["name"] is None:
        raise UsageError(f"{parsed.model_uri!r} names no version", "models:/NAME/VERSION or models:/NAME@ALIAS")
    key = read_key(parsed.signing_key)
    begin(f"signing {parsed.model_uri}")
    from flows.display import Display
    from slmpack.log.mlflow_server import require_registry
    from slmpack.publish.sign import sign_again

    with Display() as display:
        display.doing("comparing its files with what was logged")
        require_registry()
        number = sign_again(parsed.model_uri, key)
        display.say(f"signed: {parsed.model_uri}, version {number}, by {key.shown}")
    return OK


def _promote(parsed: argparse.Namespace) -> int:
    from slmpack.publish.promote import check_promotion, describe_promotion, plan_promotion, promote

    check_promotion(parsed.name, parsed.source, parsed.alias)
    use_trust_policy(parsed)
    approver = _user() if parsed.approver is None else parsed.approver
    begin(f"promoting {parsed.name} {parsed.source} to {parsed.alias}")
    from flows.display import Display
    from slmpack.log.mlflow_server import require_registry

    with Display() as display:
        display.doing("comparing its files with what was logged")
        require_registry()
        plan = plan_promotion(parsed.name, parsed.source, parsed.alias, accept_waiver=parsed.accept_waiver)
        promotion = promote(plan, approver, trust_code=parsed.trust_code)
        display.say(describe_promotion(promotion))
    if parsed.json:
        sys.stdout.write(promotion.model_dump_json() + "\n")
    return OK


def _user() -> str:
    """Return who types this: the user that MLflow knows, else that of this machine."""
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return user
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"
