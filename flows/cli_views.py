"""`slmpack list`, `show`, `open` and `diff`: what the registry has, what a version is, and how two of them differ."""

import argparse
import os
import sys
from collections.abc import Sequence

from flows.cli_lines import OK, begin
from flows.cli_parser import CommandParser, add_workspace_option

JSON = "one JSON object on stdout"
VERSION = "NAME@ALIAS or NAME/VERSION, also with models:/ before it"


def list_options(parser: CommandParser) -> None:
    """Add the options of `list`."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="all versions of this model (default: what has an alias, of all)"
    )
    parser.add_argument("--json", action="store_true", help=JSON)
    parser.late = "name"
    parser.set_defaults(run=_list)


def _list(parsed: argparse.Namespace) -> int:
    from slmpack.log.mlflow_server import check_characters

    if parsed.name is not None:
        check_characters(parsed.name)
    begin("reading the registry")
    from slmpack.log.mlflow_server import is_without_a_store
    from slmpack.publish.view.listing import Listing, list_versions, listing_lines, notes_on
    from slmpack.publish.view.words import json_text

    if parsed.name is None and is_without_a_store():  # MLflow would begin one here
        listing = Listing(versions=())
    else:
        _require_registry()
        listing = list_versions(parsed.name)
    _write([json_text(listing)] if parsed.json else listing_lines(listing))
    _say(notes_on(listing, parsed.name))
    return OK


def show_options(parser: CommandParser) -> None:
    """Add the options of `show`."""
    parser.add_argument("version", metavar="VERSION", help=VERSION)
    parser.add_argument("--json", action="store_true", help=JSON)
    parser.set_defaults(run=_show)


def diff_options(parser: CommandParser) -> None:
    """Add the options of `diff`."""
    parser.add_argument("before", metavar="A", help=f"the older one: {VERSION}")
    parser.add_argument("now", metavar="B", help="the newer one, of the same model")
    parser.add_argument("--json", action="store_true", help=JSON)
    parser.set_defaults(run=_diff)


def _show(parsed: argparse.Namespace) -> int:
    from slmpack.publish.named_version import version_uri

    begin(f"reading {version_uri(parsed.version)}")
    from slmpack.publish.view.sheet import sheet_lines
    from slmpack.publish.view.version import view_version
    from slmpack.publish.view.words import json_text

    _require_registry()
    view = view_version(parsed.version)
    _write([json_text(view)] if parsed.json else sheet_lines(view))
    return OK


def open_options(parser: CommandParser) -> None:
    """Add the options of `open`."""
    parser.add_argument("version", metavar="VERSION", help=VERSION)
    add_workspace_option(parser)
    parser.set_defaults(run=_open)


def _open(parsed: argparse.Namespace) -> int:
    from slmpack.publish.named_version import version_uri

    begin(f"reading {version_uri(parsed.version)}")
    from slmpack.machine.private import workspace_of
    from slmpack.publish.view.local_page import write_page

    _require_registry()
    page = write_page(parsed.version, workspace_of(parsed.workspace))
    _write([str(page)])
    if not _shows(page.as_uri()):
        _say(["found no browser here; open that file in one"])
    return OK


def _shows(address: str) -> bool:
    """Have a browser show a page, and say whether there is one; those of terminals, which would take ours, are none."""
    if not any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")) and sys.platform != "darwin":
        return False
    import webbrowser

    return webbrowser.open(address)


def _diff(parsed: argparse.Namespace) -> int:
    from slmpack.publish.named_version import require_one_name, version_uri

    before, now = version_uri(parsed.before), version_uri(parsed.now)
    require_one_name(before, now)
    begin(f"reading {before} and {now}")
    from slmpack.publish.view.difference import compare_versions, difference_lines
    from slmpack.publish.view.version import view_version
    from slmpack.publish.view.words import json_text

    _require_registry()
    difference = compare_versions(view_version(before), view_version(now))
    _write([json_text(difference)] if parsed.json else difference_lines(difference))
    return OK


def _require_registry() -> None:
    """Refuse to look where there is no registry.

    Raises:
        SourceError: MLflow would begin one in the working folder.
    """
    from slmpack.errors import SourceError
    from slmpack.log.mlflow_server import is_without_a_store, require_registry

    if is_without_a_store():
        raise SourceError(
            "there is no registry: MLFLOW_TRACKING_URI is not set, and no mlflow.db is in this folder",
            "a registry that has the version",
            "set it to the address of the MLflow server",
        )
    require_registry(writes=False)


def _write(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _say(lines: Sequence[str]) -> None:
    from slmpack.plain_text import tag_text

    sys.stderr.write("".join(f"{tag_text(line)}\n" for line in lines))
