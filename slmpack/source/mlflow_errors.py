"""MLflow's and the file system's errors: which are final, and what they say in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slmpack.errors import SlmpackError

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException


# MLflow's error codes that asking again does not change. A connection that fails is INTERNAL_ERROR, and BAD_REQUEST
# is also what its database says when two writers set the same tag at once.
FINAL_CODES = frozenset(
    {
        "CUSTOMER_UNAUTHORIZED",
        "ENDPOINT_NOT_FOUND",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "NOT_IMPLEMENTED",
        "PERMISSION_DENIED",
        "QUOTA_EXCEEDED",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_LIMIT_EXCEEDED",
        "UNAUTHENTICATED",
    }
)


FINAL_ERRNOS = frozenset(
    {errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EROFS}
)


@contextmanager
def final_errors(failure: type[SlmpackError], doing: str) -> Iterator[None]:
    """Turn what MLflow or a file system refuses for good into `failure`; what may be the network's passes as it is."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in FINAL_CODES:
            raise
        raise failure(f"MLflow refused {doing}: {one_line(error)}") from error
    except OSError as error:
        if error.errno not in FINAL_ERRNOS:
            raise
        raise failure(f"{doing} failed: {error}", "", "free or allow what the message names") from error


def one_line(error: "MlflowException") -> str:
    """Return what MLflow says, in one line and not endless."""
    return " ".join(error.message.split())[:500]


def is_absent(error: "MlflowException") -> bool:
    """Tell whether MLflow says that a thing does not exist; for an alias it says that the parameter is invalid."""
    if error.error_code == "INVALID_PARAMETER_VALUE":
        return "not found" in error.message
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")
