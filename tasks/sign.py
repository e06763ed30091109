"""Sign: with which key, and a version that was published without it."""

from typing import Any

from prefect import task
from prefect.blocks.system import Secret

from slmpack.errors import UsageError
from slmpack.publish import sign
from slmpack.publish.find import PublishedLookup
from slmpack.publish.request import Request
from slmpack.signing.keys import ADVICE, EXPECTED, SECRET, SigningKey, is_secret, parse_key, read_key
from tasks.policies import LOCAL, REMOTE


@task(**LOCAL)
def require_signing_key(request: Request) -> None:
    """Look for the key before anything expensive; it is not held."""
    key_of(request)


@task(task_run_name="sign {found.name} {found.version}", **REMOTE)
def sign_found(found: PublishedLookup, request: Request) -> None:
    """Sign a version that the same request published before, unless it is signed by the key; retried."""
    key = key_of(request)
    if key is not None and sign.needs_signing(found, key):
        sign.sign_again(f"models:/{found.name}/{found.version}", key)


def key_of(request: Request) -> SigningKey | None:
    """Return the key that signs what the request publishes; its reference is all that parameters and records hold.

    Raises:
        UsageError: there is none under that name, or it is no such key.
    """
    reference = request.options.signing_key
    if reference is None:
        return None
    return _from_block(reference.removeprefix(SECRET)) if is_secret(reference) else read_key(reference)


def _from_block(name: str) -> SigningKey:
    try:
        block: Any = Secret.load(name)
    except ValueError as error:
        raise UsageError(f"Prefect has no secret block {name} with a signing key", EXPECTED, ADVICE) from error
    return parse_key(str(block.get()).encode(), f"the secret block {name}")
