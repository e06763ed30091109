"""Certificates: whose key it is, in the words of an authority that a trust policy names.

    PEM text, or what is in a signature --> Chain: the signer's certificate, then those between it and a root
    Chain --> may it sign now? --> does it lead to these roots? --> whose is it?

model-signing 1.1.1 (`_signing/sign_certificate.py`) looks at a chain as of the day on which the signer's certificate
began. So it never sees that one has expired, and it takes a certificate whose extended usages leave out signatures.
Both are checked here, as of now: a signature does not prove when it was made.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from slmpack.plain_text import one_line

CURVES = ("secp256r1", "secp384r1", "secp521r1")  # Source: model-signing 1.1.1, `_signing/sign_ec_key.py`
LONGEST_CHAIN = 10  # certificates
MAIL, ADDRESS = "email:", "URI:"  # before a subject's alternative name, as OpenSSL writes them
SIGNING_USAGES = {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}


class Chain(NamedTuple):
    """The signer's certificate first, then others up to a root, which need not be among them."""

    certificates: tuple[x509.Certificate, ...]

    @property
    def leaf(self) -> x509.Certificate:
        """The signer's certificate."""
        return self.certificates[0]

    @property
    def fingerprint(self) -> str:
        """The sha256 of the signer's certificate in DER, as `openssl x509 -fingerprint -sha256` has it."""
        return fingerprint_of(self.leaf)

    @property
    def shown(self) -> str:
        """The subject as a trust policy names it, on one line."""
        return one_line(self.leaf.subject.rfc4514_string()) or "no subject"

    def identities(self) -> frozenset[str]:
        """Return the names that the certificate is for: its subject, mail addresses and URIs."""
        try:
            others = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            others = x509.SubjectAlternativeName([])
        mails = (f"{MAIL}{each}" for each in others.get_values_for_type(x509.RFC822Name))
        addresses = (f"{ADDRESS}{each}" for each in others.get_values_for_type(x509.UniformResourceIdentifier))
        return frozenset([self.leaf.subject.rfc4514_string(), *mails, *addresses])

    def unfit(self, now: datetime) -> str | None:
        """Return why it may sign nothing at that time, whoever vouches for it; None if it may."""
        for each in self.certificates:
            if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
                end = each.not_valid_after_utc
                begin = f"is not valid before {each.not_valid_before_utc:%Y-%m-%d %H:%M}"
                what = f"expired on {end:%Y-%m-%d}" if end < now else begin
                return f"which {what}" if each is self.leaf else f"whose issuer {Chain((each,)).shown} {what}"
        return None if _may_sign(self.leaf) else "which has no key usage for signatures"

    def broken(self, roots: Iterable[x509.Certificate], now: datetime) -> str | None:
        """Return why it does not lead to one of `roots` at that time; None if it does."""
        from OpenSSL import crypto

        store = crypto.X509Store()
        store.set_time(now)
        for root in roots:
            store.add_cert(crypto.X509.from_cryptography(root))
        leaf, *others = (crypto.X509.from_cryptography(each) for each in self.certificates)
        try:
            crypto.X509StoreContext(store, leaf, others).verify_certificate()
        except crypto.X509StoreContextError as error:
            return str(error)
        return None

    def pem(self) -> tuple[bytes, bytes]:
        """Return the signer's certificate, and the others: itself where there is none, since the library wants one."""
        leaf, *others = (each.public_bytes(serialization.Encoding.PEM) for each in self.certificates)
        return leaf, b"".join(others) or leaf


def chain_in(pem: bytes) -> Chain | None:
    """Return the certificates in PEM text, beside whatever else is there; None if it has none.

    Raises:
        ValueError: one of them cannot be read, or cannot be the signer's.
    """
    return _checked(x509.load_pem_x509_certificates(pem)) if b"-----BEGIN CERTIFICATE-----" in pem else None


def chain_of(certificates: Iterable[bytes]) -> Chain:
    """Return the chain of certificates in DER.

    Raises:
        ValueError: as `chain_in`.
    """
    return _checked([x509.load_der_x509_certificate(each) for each in certificates])


def roots_in(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of authorities in PEM text.

    Raises:
        ValueError: there is none, or one is no root: somebody else issued it.
    """
    roots = tuple(x509.load_pem_x509_certificates(pem))
    for each in roots:
        if each.issuer != each.subject:
            raise ValueError(f"{Chain((each,)).shown} is no root")
    return roots


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the sha256 of a certificate in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def subject_of(text: str) -> str:
    """Return a subject of a policy in the one form in which `Chain.identities` has it.

    Raises:
        ValueError: it is neither a distinguished name of RFC 4514 nor a mail address or URI with what it is before it.
    """
    if text.startswith((MAIL, ADDRESS)):
        return text
    if not text:
        raise ValueError(text)
    return x509.Name.from_rfc4514_string(text).rfc4514_string()


def _checked(certificates: list[x509.Certificate]) -> Chain:
    """Return the chain, once everything that is read of it later could be read."""
    if not 1 <= len(certificates) <= LONGEST_CHAIN:
        raise ValueError(f"{len(certificates)} certificates")
    chain = Chain(tuple(certificates))
    key = chain.leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ValueError("a certificate for a key of another kind")
    chain.identities()
    return chain


def _may_sign(certificate: x509.Certificate) -> bool:
    """Say whether its usages have signatures. Source: RFC 5280, 4.2.1.3 and 4.2.1.12; one that is there restricts."""
    found = {type(each.value): each.value for each in certificate.extensions}
    usage, extended = found.get(x509.KeyUsage), found.get(x509.ExtendedKeyUsage)
    if isinstance(usage, x509.KeyUsage) and not usage.digital_signature:
        return False
    if isinstance(extended, x509.ExtendedKeyUsage):
        return bool(SIGNING_USAGES & set(extended))
    return usage is not None
