"""What every command says by itself: what it begins with, and what went wrong. Nothing heavy is imported for it."""

import sys

OK, FAILED, USAGE = 0, 1, 2


def begin(line: str) -> None:
    """Say what is being done, before what takes seconds to import."""
    sys.stderr.write(f"{line} ...\n")
    sys.stderr.flush()


def complain(message: object, code: int) -> int:
    """Write an error in one line and return the exit code."""
    from slmpack.redaction import redacted

    sys.stderr.write(redacted(f"slmpack: {' '.join(str(message).split())}\n"))
    return code
