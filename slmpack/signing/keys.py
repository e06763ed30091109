"""Keys: elliptic-curve keys, which sign models and check who signed.

    new_key        a private key of the curve P-256, in a file that its owner alone may read
    read_key       a private key from FILE or env:NAME, with its certificates if they are there; one in a token
    read_public    a public key

Neither a message nor `repr` shows a private key. A key is called by its fingerprint: the sha256 of its public half in
PEM, which is also what a signature names. One that comes with a certificate is called by that certificate's.
Source: OpenSSF model-signing 1.1.1, `_signing/sign_ec_key.py`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from slmpack.errors import UsageError
from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.private import require_secret
from slmpack.machine.surroundings import typed_path
from slmpack.signing.certificates import CURVES, Chain, chain_in
from slmpack.signing.in_memory import in_memory

FORMS = "FILE, env:NAME, pkcs11:..., or in a Prefect run secret:BLOCK"
VARIABLE, SECRET, TOKEN = "env:", "secret:", "pkcs11:"
PASSWORD = "SLMPACK_KEY_PASSWORD"  # noqa: S105 - the variable's name
LARGEST_KEY = 1 << 16  # bytes; a key of the largest curve has under a kilobyte, a certificate two
ADVICE = "make one: slmpack keys new FILE"
EXPECTED = "an EC private key in PEM of the curve P-256, P-384 or P-521"
_CHAIN, _CHAIN_ADVICE = (
    "the key's own certificate first, then its issuers'",
    "docs/trust.md says how they are put together",
)


class SigningKey(ABC):
    """What signs: a private key that is read, or one that never leaves its token.

    Attributes:
        fingerprint: of its certificate if it has one, else of its public half.
        subject: of the certificate; None without one.
    """

    fingerprint: str
    subject: str | None = None

    @abstractmethod
    def signing(self, config: Any) -> Any:
        """Return, as a context manager, the library's configuration `config` with what signs by this key."""

    @abstractmethod
    def public_pem(self) -> str:
        """Return the public key."""

    @property
    def signs_as(self) -> str | Chain:
        """What its signatures name: the key's fingerprint, or the certificates."""
        return self.fingerprint

    @property
    def shown(self) -> str:
        """What to call it in a sentence."""
        whose = "the key" if self.subject is None else f"the certificate {self.subject},"
        return f"{whose} {self.fingerprint[:12]}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fingerprint[:12]})"


class PrivateKey(SigningKey):
    """A private key, held in memory only.

    Attributes:
        chain: the certificates that say whose it is; None without them.
    """

    def __init__(self, private: ec.EllipticCurvePrivateKey, chain: Chain | None = None) -> None:
        self._private, self.chain = private, chain
        self.fingerprint = fingerprint_of(private.public_key()) if chain is None else chain.fingerprint
        self.subject = None if chain is None else chain.shown

    @contextmanager
    def signing(self, config: Any) -> Iterator[Any]:
        """Yield the configuration; the library reads the key from memory meanwhile."""
        with in_memory(self.pem()) as private:
            if self.chain is None:
                yield config.use_elliptic_key_signer(private_key=private)
                return
            own, others = self.chain.pem()
            with in_memory(own) as certificate, in_memory(others) as chain:
                yield config.use_certificate_signer(
                    private_key=private, signing_certificate=certificate, certificate_chain=[chain]
                )

    @property
    def signs_as(self) -> str | Chain:
        return self.chain or self.fingerprint

    def pem(self) -> bytes:
        """Return the private key without a password; for the library that signs, and nobody else."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def public_pem(self) -> str:
        """Return the public key."""
        return public_pem(self._private.public_key())


def new_key(path: Path) -> PrivateKey:
    """Write a new private key to a file, encrypted where the variable PASSWORD has a password.

    Raises:
        UsageError: there is such a file already, or it cannot be written.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    password = os.environ.get(PASSWORD, "").encode()
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", "the name of a new file", "name another") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})", "the name of a new file") from error
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    return PrivateKey(private)


def read_key(reference: str) -> SigningKey:
    """Return the private key that `reference` names.

    Args:
        reference: the path of a file in PEM; `env:` and the name of a variable that holds the PEM text; or the URI of
            a key in a PKCS#11 token. Certificates in the same text, the key's own first, go into the signature.

    Raises:
        UsageError: there is none, others may read it, it is no such key, or its certificate is another key's or cannot
            sign.
    """
    if reference.startswith(TOKEN):
        from slmpack.signing.token import token_key

        return token_key(reference)
    if reference.startswith(VARIABLE):
        name = reference.removeprefix(VARIABLE)
        if not (text := os.environ.get(name)):
            raise UsageError(f"the variable {name} of the signing key is not set", EXPECTED, "set it, or name a file")
        return parse_key(text.encode(), f"the variable {name}")
    if is_secret(reference):
        raise UsageError(f"{reference} outside of a Prefect run", FORMS, "name a file")
    return parse_key(_private_content(typed_path(reference)), reference)


def checked_reference(reference: str) -> str:
    """Return `reference` as any folder understands it, once the key that it names can be read.

    Raises:
        UsageError: it cannot; one in a Prefect block is looked at by the run that signs.
    """
    if is_secret(reference):
        return reference
    read_key(reference)
    return reference if reference.startswith((VARIABLE, TOKEN)) else str(typed_path(reference))


def is_secret(reference: str) -> bool:
    """Say whether `reference` names a block of Prefect's."""
    return reference.startswith(SECRET)


def _private_content(path: Path) -> bytes:
    try:
        require_secret(path, f"the signing key {path}")
        return read_bounded(path, LARGEST_KEY)
    except OSError as error:
        raise UsageError(f"the signing key {path} cannot be read ({error.strerror})", EXPECTED, ADVICE) from error


def parse_key(pem: bytes, name: str) -> PrivateKey:
    """Return the private key in PEM text; an encrypted one is opened by the password in the variable PASSWORD.

    Args:
        pem: the key, and the certificates that say whose it is, its own first; they may be left out.
        name: of the text, for the error; the text itself is not shown.

    Raises:
        UsageError: it is no such key, the password is missing or wrong, or its certificate is another key's or cannot
            sign.
    """
    private = _private_in(pem, name)
    try:
        chain = chain_in(pem)
    except ValueError as error:
        raise UsageError(f"{name} has a certificate that cannot be used ({error})", _CHAIN, _CHAIN_ADVICE) from error
    if chain is not None:
        if chain.leaf.public_key() != private.public_key():
            raise UsageError(f"{name} has the certificate {chain.shown}, of another key", _CHAIN, _CHAIN_ADVICE)
        if unfit := chain.unfit(datetime.now(UTC)):
            raise UsageError(f"{name} has the certificate {chain.shown}, {unfit}", _CHAIN, _CHAIN_ADVICE)
    return PrivateKey(private, chain)


def _private_in(pem: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    password = os.environ.get(PASSWORD, "").encode() or None
    try:
        try:
            private = serialization.load_pem_private_key(pem, password)
        except TypeError:  # a password for a key that has none; or none for one that has
            if password is None:
                raise UsageError(f"{name} is encrypted", "its password", f"set {PASSWORD}") from None
            private = serialization.load_pem_private_key(pem, None)
    except ValueError as error:
        wrong = f", or the password in {PASSWORD} is wrong" if password else ""
        raise UsageError(f"{name} holds no private key that can be read{wrong}", EXPECTED, ADVICE) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name not in CURVES:
        raise UsageError(f"{name} holds a key of another kind", EXPECTED, ADVICE)
    return private


def read_public(pem: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Return the public key in PEM text.

    Raises:
        UsageError: there is none.
    """
    try:
        public = serialization.load_pem_public_key(pem)
    except ValueError as error:
        raise UsageError(f"{name} holds no public key", "an EC public key in PEM", "slmpack keys show FILE") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in CURVES:
        raise UsageError(f"{name} holds a key of another kind", "an EC public key in PEM", "slmpack keys show FILE")
    return public


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as PEM text."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def fingerprint_of(key: ec.EllipticCurvePublicKey) -> str:
    """Return the sha256 of a public key's PEM text in hexadecimal."""
    return sha256(public_pem(key).encode()).hexdigest()
