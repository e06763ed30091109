"""How arguments are read: options added when they are needed, errors in one line, and what was probably meant."""

import argparse
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from flows import texts
from flows.cli_lines import USAGE, complain

WORKSPACE_HELP = "work files (default: slmpack in XDG_CACHE_HOME, else in ~/.cache)"

Choice = TypeVar("Choice", bound=StrEnum)


class CommandParser(argparse.ArgumentParser):
    """A parser whose options are added when it parses: those of the other commands, and their imports, cost nothing.

    Attributes:
        late: the last word, where it may be left out: argparse does not find it behind an option.
    """

    def __init__(self, *args: Any, options: Callable[["CommandParser"], None] | None = None, **named: Any) -> None:
        super().__init__(*args, **named)
        self._options = options
        self.late: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._options is None:
            return super().parse_known_args(args, namespace)
        self._options(self)
        self._options = None
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown and self.late and getattr(parsed, self.late) is None and not str(unknown[0]).startswith("--"):
            setattr(parsed, self.late, unknown.pop(0))
        if unknown:
            self.error(self._unknown(str(unknown[0])))
        return parsed, unknown

    def _unknown(self, word: str) -> str:
        from slmpack.suggest import did_you_mean

        if not word.startswith("-"):
            return f"found {word!r} beyond what {self.prog} takes"
        name = word.partition("=")[0]
        known = [each for each in self._option_string_actions if each.startswith("--")]
        return "; ".join(filter(None, (f"{self.prog} has no option {name}", did_you_mean(name, known))))

    def error(self, message: str) -> NoReturn:
        """End with the exit code of bad usage."""
        sys.exit(complain(f"{message}; see `{self.prog} --help`", USAGE))


def choice(kind: type[Choice]) -> Callable[[str], Choice]:
    """Return what turns a word into one of `kind`."""

    def read(text: str) -> Choice:
        from slmpack.suggest import did_you_mean

        try:
            return kind(text)
        except ValueError:
            parts = f"found {text!r}", f"expected one of {', '.join(kind)}", did_you_mean(text, kind)
            raise argparse.ArgumentTypeError("; ".join(filter(None, parts))) from None

    return read


def add_target_option(parser: argparse.ArgumentParser, **named: Any) -> None:
    """Add `--target`, which some commands take several times."""
    from slmpack.records import Target

    parser.add_argument("--target", type=choice(Target), metavar="T", help=", ".join(Target), **named)


def add_workspace_option(parser: argparse.ArgumentParser) -> None:
    """Add `--workspace`."""
    parser.add_argument("--workspace", type=Path, metavar="DIR", help=WORKSPACE_HELP)


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets a stranger's code run."""
    parser.add_argument("--trust-code", action="store_true", help=texts.TRUST_CODE)


def add_trust_policy_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the keys which may sign."""
    parser.add_argument("--trust", type=Path, metavar="FILE", help=texts.TRUST_POLICY)


def use_trust_policy(parsed: argparse.Namespace) -> None:
    """Check the trust policy, and let every process of this command find the one that was named.

    Raises:
        UsageError: it cannot be read.
    """
    from slmpack.machine.surroundings import typed_path
    from slmpack.signing.policy import VARIABLE, find_policy

    if parsed.trust is not None:
        os.environ[VARIABLE] = str(typed_path(parsed.trust))
    find_policy()
