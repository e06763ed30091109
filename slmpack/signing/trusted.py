"""Trusted: whom an entry of a trust policy accepts, for which models and until when.

TrustedKey             one public key
TrustedCertificates    whoever has a certificate of an authority, for one of the subjects that are named
"""

from abc import abstractmethod
from datetime import date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field

from slmpack.records import Record
from slmpack.signing.certificates import Chain, fingerprint_of, roots_in


class Signer(Record):
    """An entry of the policy.

    Attributes:
        id: the name that the policy gives it.
        names: of registered models that it may sign; `*` stands for any characters.
        not_after: the last day on which it is accepted, in UTC.
        revoked: why it is not accepted any more.
    """

    id: str
    names: tuple[str, ...]
    not_after: date | None = None
    revoked: str | None = None

    @property
    @abstractmethod
    def shown(self) -> str:
        """What to call it in a sentence."""

    @abstractmethod
    def pem(self) -> str:
        """Return what a signature is checked by."""

    @abstractmethod
    def verifying(self, config: Any, trusted: Path) -> Any:
        """Return the library's configuration `config` with what checks a signature by the file `trusted`."""

    def may_sign(self, name: str) -> bool:
        """Say whether it may sign versions of the registered model `name`."""
        return any(fnmatchcase(name, pattern) for pattern in self.names)

    def is_valid(self, day: date) -> bool:
        """Say whether it is accepted on that day."""
        return self.revoked is None and (self.not_after is None or day <= self.not_after)

    def objection(self, name: str, day: date) -> str | None:
        """Return why a version of `name` is not accepted by it on that day; None if it is."""
        if self.revoked is not None:
            return f"{self.shown}, which is revoked ({self.revoked})"
        if not self.is_valid(day):
            return f"{self.shown}, which expired on {self.not_after}"
        return None if self.may_sign(name) else f"{self.shown}, which may not sign {name}"


class TrustedKey(Signer):
    """A public key that may sign.

    Attributes:
        public_key: in PEM.
    """

    public_key: str

    @property
    def shown(self) -> str:
        return f"the key {self.id}"

    def pem(self) -> str:
        return self.public_key

    def verifying(self, config: Any, trusted: Path) -> Any:
        return config.use_elliptic_key_verifier(public_key=trusted)


class TrustedCertificates(Signer):
    """Certificates that may sign.

    Attributes:
        roots: the authorities' own certificates, in PEM.
        subjects: whose certificates are accepted, each as `Chain.identities` has it.
        revoked_certificates: why single ones are not accepted, by fingerprint: a signer's, or an issuer's.
    """

    roots: str
    subjects: tuple[str, ...]
    revoked_certificates: dict[str, str] = Field(default={})

    @property
    def shown(self) -> str:
        return f"a certificate of {self.id}"

    def pem(self) -> str:
        return self.roots

    def verifying(self, config: Any, trusted: Path) -> Any:
        return config.use_certificate_verifier(certificate_chain=[trusted])

    def distance(self, name: str, chain: Chain, now: datetime) -> tuple[int, str] | None:
        """Return how far a chain comes with this entry, and why no further; None if it is accepted."""
        whose = f"the certificate {chain.shown}"
        broken = chain.broken(roots_in(self.roots.encode()), now)
        revoked = [self.revoked_certificates.get(fingerprint_of(each)) for each in chain.certificates]
        found = (
            broken and f"{whose}, which does not lead to the roots of {self.id} ({broken})",
            None if chain.identities() & set(self.subjects) else f"{whose}, which is no subject of {self.id}",
            next((f"{whose}, which is revoked ({reason})" for reason in revoked if reason is not None), None),
            self.objection(name, now.date()),
        )
        return next(((rank, text) for rank, text in enumerate(found) if text), None)
