"""An authority of certificates: a root, what it issues, and a key with its certificates in one PEM text."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

SUBJECT = "CN=release,O=Example"
DAY = timedelta(days=1)
USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def usage(*names: str) -> x509.KeyUsage:
    """Return the extension with those usages alone."""
    return x509.KeyUsage(**{name: name in names for name in USAGES})


SIGNATURES = usage("digital_signature")
CODE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
WEB_SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and those that issued it, itself first."""

    key: ec.EllipticCurvePrivateKey
    certificates: tuple[x509.Certificate, ...]

    @property
    def fingerprint(self) -> str:
        return self.certificates[0].fingerprint(hashes.SHA256()).hex()

    def chain(self, first: int = 0) -> str:
        """Return the certificates in PEM, from one of them on, without the root."""
        return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in self.certificates[first:-1])

    def key_pem(self) -> str:
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.key.private_bytes(*form).decode()

    def pem(self) -> str:
        """Return what signs: the key, and the certificates up to the root, without it."""
        return self.key_pem() + self.chain()

    def root(self) -> str:
        return self.certificates[-1].public_bytes(serialization.Encoding.PEM).decode()


@dataclass(frozen=True)
class Authority:
    """A root, and one authority between it and the signers."""

    name: str = "Example Root"
    root: Issued = field(init=False)
    between: Issued = field(init=False)

    def __post_init__(self) -> None:
        authority = x509.BasicConstraints(ca=True, path_length=None), usage("key_cert_sign", "crl_sign")
        object.__setattr__(self, "root", issued(f"CN={self.name}", None, *authority))
        object.__setattr__(self, "between", issued(f"CN={self.name} 2", self.root, *authority))

    def issue(
        self, subject: str = SUBJECT, *extensions: x509.ExtensionType, begin: float = -1.0, days: float = 365.0
    ) -> Issued:
        """Return a signer's certificate; for digital signatures where no extension is given.

        Args:
            begin: days from now.
            days: that it is valid for from then on.
        """
        return issued(subject, self.between, *(extensions or (SIGNATURES,)), begin=begin, days=days)


def issued(
    subject: str, issuer: Issued | None, *extensions: x509.ExtensionType, begin: float = -1000.0, days: float = 3000.0
) -> Issued:
    """Return a certificate that `issuer`, or its own key, signs."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, start = x509.Name.from_rfc4514_string(subject), datetime.now(UTC) + begin * DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.certificates[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + days * DAY)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=not isinstance(extension, x509.SubjectAlternativeName))
    made = builder.sign(key if issuer is None else issuer.key, hashes.SHA256())
    return Issued(key, (made, *(() if issuer is None else issuer.certificates)))
