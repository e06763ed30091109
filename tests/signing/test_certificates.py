"""Certificates: a signature holds if it is by one that leads to a root of the policy, for a subject that it names."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from authority import CODE, SIGNATURES, SUBJECT, WEB_SERVER, Authority, Issued, issued, usage
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from slmpack.errors import TrustError, UsageError
from slmpack.signing.keys import PrivateKey, parse_key, read_key
from slmpack.signing.policy import TrustPolicy, read_policy
from slmpack.signing.signature import SIGNATURE, STATEMENT, check_files, digests_in, sign_files

URI, NAME = "models:/small/1", "small"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def signer(authority: Authority) -> Issued:
    return authority.issue()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that is not signed."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / STATEMENT).write_text(json.dumps({"subject": [{"name": NAME, "digest": {}}]}))
    return folder


def policy_of(folder: Path, root: str, more: str = "", subjects: str = f'["{SUBJECT}"]') -> TrustPolicy:
    (folder / "ca.pem").write_text(root)
    names = "" if "names" in more else "names = ['small']\n"
    text = f"[trust.certificates.ci]\nroots = 'ca.pem'\nsubjects = {subjects}\n{names}{more}\n"
    (folder / "trust.toml").write_text(text)
    return read_policy(folder / "trust.toml")


def sign(model: Path, pem: str) -> None:
    (model / SIGNATURE).write_bytes(sign_files(NAME, digests_in(model), parse_key(pem.encode(), "it")))


def sign_unfit(model: Path, signer: Issued) -> None:
    """Sign as somebody does who is not stopped: with a fit certificate's signature and another's certificates."""
    sign(model, signer.key_pem())
    bundle = json.loads((model / SIGNATURE).read_text())
    certificates = [
        {"rawBytes": base64.b64encode(each.public_bytes(Encoding.DER)).decode()} for each in signer.certificates
    ]
    bundle["verificationMaterial"] = {"x509CertificateChain": {"certificates": certificates[:-1]}, "tlogEntries": []}
    (model / SIGNATURE).write_text(json.dumps(bundle))


def test_a_certificate_that_leads_to_a_root_of_the_policy_is_accepted(
    model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    sign(model, signer.pem())
    found = check_files(URI, NAME, model, policy_of(tmp_path, authority.root.root()))
    assert (found.id, found.shown) == ("ci", "a certificate of ci")


def test_the_librarys_own_command_accepts_it_as_well(
    model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    sign(model, signer.pem())
    (tmp_path / "ca.pem").write_text(authority.root.root())
    command = [sys.executable, "-m", "model_signing", "verify", "certificate", str(model)]
    options = ["--signature", str(model / SIGNATURE), "--certificate_chain", str(tmp_path / "ca.pem")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, "Verification succeeded" in done.stdout + done.stderr) == (0, True), done.stderr


def test_a_certificate_right_below_the_root_needs_no_other(model: Path, authority: Authority, tmp_path: Path) -> None:
    signer = Issued(authority.between.key, authority.between.certificates)
    policy = policy_of(tmp_path, signer.root(), subjects='["CN=Example Root 2"]')
    with pytest.raises(UsageError, match="which has no key usage for signatures"):
        sign(model, signer.pem())
    own = issued(SUBJECT, authority.root, SIGNATURES)
    sign(model, own.pem())
    policy = policy_of(tmp_path, own.root())
    assert check_files(URI, NAME, model, policy).id == "ci"


@pytest.mark.parametrize(
    ("subjects", "is_accepted"),
    [
        ('["CN=release, O=Example"]'.replace(", ", ","), True),
        ('["email:ada@example.org"]', True),
        ('["CN=other", "URI:https://example.org/release"]', True),
        ('["email:ada@example.com"]', False),
        ('["O=Example,CN=release"]', False),
        ("[]", False),
    ],
)
def test_a_subject_is_a_distinguished_name_a_mail_address_or_a_uri(
    subjects: str, is_accepted: bool, model: Path, authority: Authority, tmp_path: Path
) -> None:
    names = x509.RFC822Name("ada@example.org"), x509.UniformResourceIdentifier("https://example.org/release")
    sign(model, authority.issue(SUBJECT, SIGNATURES, CODE, x509.SubjectAlternativeName(names)).pem())
    policy = policy_of(tmp_path, authority.root.root(), subjects=subjects)
    if is_accepted:
        assert check_files(URI, NAME, model, policy).id == "ci"
    else:
        with pytest.raises(TrustError, match=f"by the certificate {SUBJECT}, which is no subject of ci; a signature"):
            check_files(URI, NAME, model, policy)


REFUSED: dict[str, tuple[Callable[[Authority], Issued], str]] = {
    "another root": (lambda _: Authority().issue(), "which does not lead to the roots of ci"),
    "another subject": (lambda one: one.issue("CN=test,O=Example"), "CN=test,O=Example, which is no subject of ci"),
    "no subject": (lambda one: one.issue(""), "the certificate no subject, which is no subject of ci"),
    "an expired one": (lambda one: one.issue(begin=-30, days=29), r"CN=release,O=Example, which expired on \d{4}-"),
    "one for later": (lambda one: one.issue(begin=2), r"CN=release,O=Example, which is not valid before \d{4}-"),
    "no usage for signatures": (
        lambda one: one.issue(SUBJECT, usage("key_agreement")), "which has no key usage for signatures"
    ),
    "no usage at all": (
        lambda one: one.issue(SUBJECT, x509.BasicConstraints(ca=False, path_length=None)),
        "which has no key usage for signatures",
    ),
    "a web server's": (lambda one: one.issue(SUBJECT, SIGNATURES, WEB_SERVER), "which has no key usage for signatures"),
    "another usage beside code": (
        lambda one: one.issue(SUBJECT, usage("key_agreement"), CODE), "which has no key usage for signatures"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_every_other_certificate_is_refused_by_name(
    case: str, model: Path, authority: Authority, tmp_path: Path
) -> None:
    issue, message = REFUSED[case]
    sign_unfit(model, issue(authority))
    with pytest.raises(TrustError, match=message) as refused:
        check_files(URI, NAME, model, policy_of(tmp_path, authority.root.root()))
    assert str(refused.value).startswith(f"{URI} is signed by the certificate ")
    assert "\n" not in str(refused.value)


def test_a_certificate_without_those_between_it_and_the_root_is_refused(
    model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    sign(
        model, signer.key_pem() + signer.chain()[: signer.chain().index("-----END") + len("-----END CERTIFICATE-----")]
    )
    with pytest.raises(TrustError, match=r"does not lead to the roots of ci \(unable to get local issuer certificate"):
        check_files(URI, NAME, model, policy_of(tmp_path, authority.root.root()))


def test_an_issuer_that_expired_is_refused(model: Path, authority: Authority, signer: Issued, tmp_path: Path) -> None:
    sign(model, signer.pem())
    policy = policy_of(tmp_path, authority.root.root())
    chain = parse_key(signer.pem().encode(), "it").chain
    assert chain is not None
    later = datetime.now(UTC) + timedelta(days=2500)
    with pytest.raises(TrustError, match=f"certificate {SUBJECT}, which expired on"):
        policy.signer_of(URI, NAME, chain, later)
    long = authority.issue(days=4000)
    chain = parse_key(long.pem().encode(), "it").chain
    assert chain is not None
    with pytest.raises(TrustError, match=f"certificate {SUBJECT}, whose issuer CN=Example Root 2 expired on"):
        policy.signer_of(URI, NAME, chain, later)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "names = ['phi-*']",
            "a certificate of ci, which may not sign small; a key or certificate that may sign small",
        ),
        ("not_after = 2026-01-01", "a certificate of ci, which expired on 2026-01-01"),
        ("revoked = 'the authority was lost'", r"a certificate of ci, which is revoked \(the authority was lost\)"),
    ],
)
def test_an_entry_says_for_which_names_and_until_when(
    more: str, message: str, model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    sign(model, signer.pem())
    with pytest.raises(TrustError, match=f"{URI} is signed by {message}"):
        check_files(URI, NAME, model, policy_of(tmp_path, authority.root.root(), more))


@pytest.mark.parametrize("which", [0, 1])
def test_a_certificate_and_an_issuer_are_revoked_by_fingerprint(
    which: int, model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    sign(model, signer.pem())
    revoked = Issued(signer.key, signer.certificates[which:]).fingerprint.upper()
    written = ":".join(revoked[at : at + 2] for at in range(0, 64, 2))  # as OpenSSL writes it
    policy = policy_of(tmp_path, authority.root.root(), f'revoked_certificates = {{"{written}" = "lost"}}')
    with pytest.raises(TrustError, match=f"the certificate {SUBJECT}, which is revoked \\(lost\\)"):
        check_files(URI, NAME, model, policy)


def test_of_several_entries_one_that_accepts_is_enough(
    model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    sign(model, signer.pem())
    policy_of(tmp_path, authority.root.root(), "names = ['phi-*']")
    text = (tmp_path / "trust.toml").read_text()
    other = text.replace(".ci", ".night").replace("phi-*", "sm*")
    (tmp_path / "trust.toml").write_text(text + other)
    assert check_files(URI, NAME, model, read_policy(tmp_path / "trust.toml")).id == "night"


def test_a_key_alone_is_not_accepted_for_a_certificate_nor_the_other_way_round(
    model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    key = parse_key(signer.key_pem().encode(), "it")
    (tmp_path / "keys.toml").write_text(f"[trust.keys.a]\npublic_key = '''{key.public_pem()}'''\nnames = ['*']\n")
    sign(model, signer.pem())
    with pytest.raises(TrustError, match="and the policy names no roots of certificates; a signature by a"):
        check_files(URI, NAME, model, read_policy(tmp_path / "keys.toml"))
    sign(model, signer.key_pem())
    with pytest.raises(TrustError, match="by a key that the policy does not have"):
        check_files(URI, NAME, model, policy_of(tmp_path, authority.root.root()))


def test_a_signature_by_another_key_beside_our_certificates_is_refused(
    model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    sign_unfit(model, Issued(authority.issue().key, signer.certificates))
    with pytest.raises(TrustError, match="is not of a certificate of ci, which it names"):
        check_files(URI, NAME, model, policy_of(tmp_path, authority.root.root()))


def test_files_that_changed_are_told_by_name(model: Path, authority: Authority, signer: Issued, tmp_path: Path) -> None:
    sign(model, signer.pem())
    (model / "MLmodel").write_text("flavors: {other: {}}\n")
    with pytest.raises(TrustError, match="has another MLmodel"):
        check_files(URI, NAME, model, policy_of(tmp_path, authority.root.root()))


@pytest.mark.parametrize("certificates", [[], [{"rawBytes": "AAAA"}], [{}], "x", [{"rawBytes": "A" * 3000}] * 5000])
def test_certificates_that_are_none_are_refused_in_a_line(
    certificates: object, model: Path, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    sign(model, signer.pem())
    bundle = json.loads((model / SIGNATURE).read_text())
    bundle["verificationMaterial"]["x509CertificateChain"]["certificates"] = certificates
    (model / SIGNATURE).write_text(json.dumps(bundle))
    with pytest.raises(TrustError, match="is none that can be read"):
        check_files(URI, NAME, model, policy_of(tmp_path, authority.root.root()))


def test_a_key_with_its_certificates_is_read_from_a_file_and_a_variable(
    authority: Authority, signer: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "release.pem").write_text(signer.pem())
    (tmp_path / "release.pem").chmod(0o600)
    monkeypatch.setenv("THE_KEY", signer.chain() + signer.key_pem())  # in whichever order
    for reference in (str(tmp_path / "release.pem"), "env:THE_KEY"):
        key = read_key(reference)
        assert (key.fingerprint, key.subject) == (signer.fingerprint, SUBJECT)
    assert isinstance(key, PrivateKey)


def test_an_unfit_certificate_is_refused_when_its_key_is_read(authority: Authority, signer: Issued) -> None:
    other = authority.issue()
    texts = {
        signer.key_pem() + other.chain(): f"it has the certificate {SUBJECT}, of another key; the key's own",
        signer.key_pem() + signer.chain(1): "it has the certificate CN=Example Root 2, of another key",
        authority.issue(begin=-9, days=8).pem(): f"it has the certificate {SUBJECT}, which expired on",
        authority.issue(SUBJECT, usage("key_agreement")).pem(): "which has no key usage for signatures",
        signer.key_pem() + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": "that cannot be used",
        signer.chain(): "it holds no private key that can be read",
    }
    for text, message in texts.items():
        with pytest.raises(UsageError, match=message):
            parse_key(text.encode(), "it")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roots = 'ca.pem'\nsubjects = ['CN=a']", "names of the certificates ci in .* is not one"),
        ("roots = 'ca.pem'\nnames = ['*']", "subjects of the certificates ci in .* is not one"),
        ("subjects = ['CN=a']\nnames = ['*']", "roots of the certificates ci in .* is not one"),
        ("roots = 'no.pem'\nsubjects = ['CN=a']\nnames = ['*']", "no.pem cannot be read"),
        (
            "roots = 'trust.toml'\nsubjects = ['CN=a']\nnames = ['*']",
            "roots of the certificates ci in .*cannot be used",
        ),
        ("roots = 'leaf.pem'\nsubjects = ['CN=a']\nnames = ['*']", f"cannot be used \\({SUBJECT} is no root\\)"),
        ("roots = 'ca.pem'\nsubjects = ['release']\nnames = ['*']", "subjects of the certificates ci in .* cannot be"),
        ("roots = 'ca.pem'\nsubjects = ['']\nnames = ['*']", "subjects of the certificates ci in .* cannot be used"),
        (
            "roots = 'ca.pem'\nsubjects = ['CN=a']\nnames = ['*']\nrevoked_certificates = {'3f' = 'lost'}",
            "revoked_certificates of the certificates ci in .* cannot be used",
        ),
        ("roots = 'ca.pem'\nsubjects = ['CN=a']\nnames = ['*']\nusage = 'any'", "usage of the certificates ci in"),
    ],
)
def test_an_entry_that_is_none_is_refused_in_a_line(
    text: str, message: str, authority: Authority, signer: Issued, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(authority.root.root())
    (tmp_path / "leaf.pem").write_text(signer.chain())
    (tmp_path / "trust.toml").write_text(f"[trust.certificates.ci]\n{text}\n")
    with pytest.raises(UsageError, match=message):
        read_policy(tmp_path / "trust.toml")
