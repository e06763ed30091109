"""Token: a private key that never leaves the hardware, named by its URI of RFC 7512.

    pkcs11:token=NAME;object=KEY?module-path=/usr/lib/.../MODULE.so

The module is the vendor's library, which is loaded into this process. The PIN is in the variable PASSWORD, or in the
file that `pin-source` names; never in the URI, which Prefect keeps.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from slmpack.errors import UsageError
from slmpack.signing.keys import PASSWORD, SigningKey, fingerprint_of, public_pem

FORM = "pkcs11:token=NAME;object=KEY?module-path=/PATH/OF/MODULE.so"
INSTALL = "install it: pip install 'slmpack[pkcs11]'"


class TokenKey(SigningKey):
    """A key in a token, of which only the public half is here."""

    def __init__(self, uri: str, public: Any) -> None:
        self._uri, self._public = uri, public
        self.fingerprint = fingerprint_of(public)

    @contextmanager
    def signing(self, config: Any) -> Iterator[Any]:
        """Yield the configuration; the token is asked for the signature.

        Raises:
            UsageError: it does not sign.
        """
        try:
            yield config.use_pkcs11_signer(pkcs11_uri=_with_pin(self._uri))
        except Exception as error:  # PyKCS11 has errors of its own
            raise _refused(self._uri, error) from error

    def public_pem(self) -> str:
        """Return the public key."""
        return public_pem(self._public)


def token_key(uri: str) -> TokenKey:
    """Return the key that a URI names.

    Raises:
        UsageError: it names none, has the PIN in it, or PyKCS11 is not installed.
    """
    if "pin-value" in uri:
        raise UsageError("the URI of the signing key has a PIN in it", FORM, f"set {PASSWORD} to the PIN")
    try:
        from model_signing._signing.sign_pkcs11 import Signer
    except ImportError as error:
        raise UsageError(f"{uri} without PyKCS11, which asks tokens", FORM, INSTALL) from error
    try:
        signer: Any = Signer(_with_pin(uri))
        return TokenKey(uri, signer.public_key())
    except Exception as error:  # PyKCS11 has errors of its own
        raise _refused(uri, error) from error


def _with_pin(uri: str) -> str:
    """Return the URI as the library takes it, with the PIN of the variable."""
    pin = os.environ.get(PASSWORD)
    if not pin or "pin-source" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}pin-value={quote(pin, safe='')}"


def _refused(uri: str, error: Exception) -> UsageError:
    return UsageError(f"{uri} gives no key that signs ({error})", FORM, f"check token, object, module and {PASSWORD}")
