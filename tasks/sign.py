"""Sign: with which key, and a version that was published without it."""

from typing import Any

from prefect import task
from prefect.blocks.system import Secret

from slmpack.errors import UsageError
from slmpack.publish import sign
from slmpack.publish.find import PublishedLookup
from slmpack.publish.options import PackageOptions, ProofOptions
from slmpack.publish.request import Request
from slmpack.signing.keys import ADVICE, EXPECTED, SECRET, SigningKey, is_secret, parse_key, read_key
from tasks.policies import LOCAL, REMOTE


@task(**LOCAL)
def require_signing_key(request: Request) -> None:
    """Look for the key before anything expensive; it is not held."""
    key_of(request.options)


@task(task_run_name="look for the key that signs {name}", **LOCAL)
def require_accepted_key(name: str, options: PackageOptions) -> None:
    """Look whether what is tuned could be packaged afterwards, before anything expensive; the key is not held."""
    sign.require_accepted(name, key_of(options))


@task(task_run_name="sign {found.name} {found.version}", **REMOTE)
def sign_found(found: PublishedLookup, request: Request) -> None:
    """Sign a version that the same request published before, unless it is signed by the key; retried."""
    _sign_once(found.name, found.version, request.options)


@task(task_run_name="sign {name} {version}", **REMOTE)
def sign_tuned(name: str, version: int, options: PackageOptions) -> None:
    """Sign a tuned version, unless there is no key or it is signed by that; retried."""
    _sign_once(name, version, options)


def _sign_once(name: str, version: int, options: ProofOptions) -> None:
    key = key_of(options)
    if key is not None and sign.needs_signing(name, version, key):
        sign.sign_again(f"models:/{name}/{version}", key)


def key_of(options: ProofOptions) -> SigningKey | None:
    """Return the key that signs what is published; its reference is all that parameters and records hold.

    Raises:
        UsageError: there is none under that name, or it is no such key.
    """
    reference = options.signing_key
    if reference is None:
        return None
    return _from_block(reference.removeprefix(SECRET)) if is_secret(reference) else read_key(reference)


def _from_block(name: str) -> SigningKey:
    try:
        block: Any = Secret.load(name)
    except ValueError as error:
        raise UsageError(f"Prefect has no secret block {name} with a signing key", EXPECTED, ADVICE) from error
    return parse_key(str(block.get()).encode(), f"the secret block {name}")
