"""Errors of the Hugging Face Hub's client, in words of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from slmpack.errors import SourceError, UsageError

_UNAUTHORISED, _FORBIDDEN = 401, 403


@contextmanager
def translated(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub's refusals into ours; what may be the network's fault (timeouts, 5xx) stays what it is."""
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is no repository's name", "hf://OWNER/NAME[@REVISION]") from error
    except GatedRepoError as error:
        raise SourceError(
            f"{repository} is gated and the Hub refuses its files",
            "an account that accepted its licence",
            "accept it on the model's page and set HF_TOKEN to a token of that account",
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"the Hub shows no repository {repository}",
            "one that exists and that you may read",
            "check the name, or set HF_TOKEN if it is private",
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(
            f"{repository} has no revision {revision}", "a branch, a tag or a commit", "look at its history on the Hub"
        ) from error
    except LocalEntryNotFoundError as error:
        if is_offline_mode():
            raise not_cached(repository, revision) from error
        raise
    except HfHubHTTPError as error:
        if error.response.status_code in (_UNAUTHORISED, _FORBIDDEN):
            raise SourceError(
                f"the Hub refuses {repository} ({error.response.status_code})",
                "a token that may read it",
                "set HF_TOKEN to a valid one",
            ) from error
        raise


def not_cached(repository: str, revision: str | None) -> SourceError:
    """Return the error for what the cache does not have, and the client may not download."""
    at = f" at {revision}" if revision else ""
    return SourceError(
        f"the Hub client is offline (HF_HUB_OFFLINE) and its cache has no whole {repository}{at}",
        "a model that was downloaded before",
        "unset HF_HUB_OFFLINE, or name a source that is on this machine",
    )
