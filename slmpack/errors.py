"""What can go wrong, by stage.

    SlmpackError            ours, and final: asking again gives the same answer
    +-- UsageError          a name, target, recipe or option that cannot be right
    +-- HardwareError       this machine lacks what the target is for
    +-- SourceError         the source does not exist, may not be read, or is not a usable checkpoint
    +-- LicenceError        the licence of the source, or of what it was made from, is refused by the policy
    +-- NetworkError        no connection can be made at all
    +-- DataError           the chats to learn from are missing, damaged, too few or one and the same
    +-- WorkspaceError      no space, or a file changed after it was stored
    +-- BuildError          the builder refused, was killed or took too long
    |   +-- RecipeError     this recipe cannot take this model, or not on this machine; another may
    +-- TrainError          training diverged, does not fit this machine, or cannot read the chats as it must
    +-- LogError            MLflow would not take the model
    +-- CheckError          the logged model is not what its interface promises
    |   +-- DamageError     a file of it has other content than when it was logged
    +-- TrustError          loading the model would run code that is not slmpack's
    +-- QualityError        the package lost too much of its source
    +-- SmokeError          the model loads but does not answer as it should
    +-- PublishError        the registry would not take the version

Any other exception may be the network's and may be retried. The message of ours is one line: what was
found; what was expected; what to do.
"""

from slmpack.plain_text import tag_text
from slmpack.reports import Quality

LONGEST_PART = 2000  # characters of what a file may say; every list of ours is shorter


class SlmpackError(Exception):
    """An expected failure; `str()` of it is the line that the user reads."""

    def __init__(self, found: str, expected: str = "", advice: str = "") -> None:
        parts = (_cut(tag_text(part)) for part in (found, expected, advice))  # uncut until secrets are out of it
        super().__init__("; ".join(filter(None, parts)))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_PART else f"{text[:LONGEST_PART]}..."


def is_failure(error: BaseException) -> bool:
    """Say whether an exception is a failure of the call: an Exception, or a panic of a Rust library, which is none."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"


class UsageError(SlmpackError):
    """A value that cannot be right, found before any work (exit code 2)."""


class HardwareError(SlmpackError):
    """This machine lacks what the target is for; found before any work."""


class SourceError(SlmpackError):
    """The source does not exist, may not be read, or is not a usable checkpoint."""


class LicenceError(SlmpackError):
    """A licence of the source's chain is refused by the policy, or is unknown and the policy refuses that."""


class NetworkError(SlmpackError):
    """No connection can be made: a name that is not resolved, a port that nobody listens on."""


class DataError(SlmpackError):
    """The chats to learn from are missing, damaged, too few, or one and the same."""


class WorkspaceError(SlmpackError):
    """The workspace has no room, or a stored file no longer has its digest."""


class BuildError(SlmpackError):
    """The builder refused the model, was killed, or took too long."""


class RecipeError(BuildError):
    """This recipe cannot take this model, or not on this machine; `auto` goes on with the next."""


class TrainError(SlmpackError):
    """Training diverged, does not fit this machine, or cannot read the chats as it must."""


class LogError(SlmpackError):
    """MLflow would not take the model."""


class CheckError(SlmpackError):
    """The logged model is not what its interface promises."""


class DamageError(CheckError):
    """A file of the logged model has other content than when it was logged."""


class TrustError(SlmpackError):
    """Loading the model would run code that is not slmpack's, and nobody said that it may."""


class QualityError(SlmpackError):
    """The package lost too much of its source; `quality` has the figures where it was measured."""

    quality: Quality | None = None


class SmokeError(SlmpackError):
    """The model loads but does not answer as it should."""


class PublishError(SlmpackError):
    """The registry would not take the version."""
