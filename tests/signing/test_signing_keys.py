"""Signing keys: made, read from a file or a variable, and refused in a line that shows nothing of them."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from slmpack.errors import UsageError
from slmpack.signing.keys import PASSWORD, checked_reference, fingerprint_of, new_key, read_key, read_public


def test_a_new_key_is_its_owners_alone_and_read_again(tmp_path: Path) -> None:
    made = new_key(tmp_path / "release.pem")
    read = read_key(str(tmp_path / "release.pem"))
    assert stat.S_IMODE((tmp_path / "release.pem").stat().st_mode) == 0o600
    assert (read.fingerprint, read.public_pem()) == (made.fingerprint, made.public_pem())
    assert made.fingerprint == fingerprint_of(read_public(made.public_pem().encode(), "it"))
    assert repr(made) == f"PrivateKey({made.fingerprint[:12]})"


def test_a_key_is_read_from_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = new_key(tmp_path / "release.pem")
    monkeypatch.setenv("THE_KEY", (tmp_path / "release.pem").read_text())
    assert read_key("env:THE_KEY").fingerprint == made.fingerprint
    assert checked_reference("env:THE_KEY") == "env:THE_KEY"


def test_an_encrypted_key_needs_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "open sesame")
    made = new_key(tmp_path / "release.pem")
    assert b"ENCRYPTED" in (tmp_path / "release.pem").read_bytes()
    assert read_key(str(tmp_path / "release.pem")).fingerprint == made.fingerprint
    monkeypatch.setenv(PASSWORD, "closed sesame")
    with pytest.raises(UsageError, match=f"or the password in {PASSWORD} is wrong"):
        read_key(str(tmp_path / "release.pem"))
    monkeypatch.delenv(PASSWORD)
    with pytest.raises(UsageError, match=f"release.pem is encrypted; its password; set {PASSWORD}"):
        read_key(str(tmp_path / "release.pem"))


def test_a_password_does_not_stand_in_the_way_of_a_key_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new_key(tmp_path / "release.pem")
    monkeypatch.setenv(PASSWORD, "open sesame")
    assert read_key(str(tmp_path / "release.pem")).fingerprint == made.fingerprint


def test_a_new_key_never_replaces_one(tmp_path: Path) -> None:
    made = new_key(tmp_path / "release.pem")
    with pytest.raises(UsageError, match=r"release\.pem is there already"):
        new_key(tmp_path / "release.pem")
    with pytest.raises(UsageError, match="cannot be written"):
        new_key(tmp_path / "nowhere" / "release.pem")
    assert read_key(str(tmp_path / "release.pem")).fingerprint == made.fingerprint


def test_what_is_no_private_key_of_ours_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return key.private_bytes(*form).decode()

    kinds = {
        "SECRET-WORDS": "holds no private key that can be read",
        pem(rsa.generate_private_key(65537, 2048)): "holds a key of another kind",
        pem(ec.generate_private_key(ec.SECP256K1())): "holds a key of another kind",
    }
    for text, message in kinds.items():
        monkeypatch.setenv("THE_KEY", text)
        with pytest.raises(UsageError, match=f"the variable THE_KEY {message}; an EC private key") as refused:
            read_key("env:THE_KEY")
        assert text not in str(refused.value)


def test_a_key_that_others_may_read_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    new_key(tmp_path / "release.pem")
    (tmp_path / "release.pem").chmod(0o644)
    with pytest.raises(UsageError, match=r"others may read or write the signing key .*release.pem \(mode 0644\)"):
        checked_reference(str(tmp_path / "release.pem"))
    with pytest.raises(UsageError, match=r"nothing.pem cannot be read \(No such file"):
        checked_reference(str(tmp_path / "nothing.pem"))
    with pytest.raises(UsageError, match="the variable NO_SUCH_KEY of the signing key is not set"):
        checked_reference("env:NO_SUCH_KEY")
    with pytest.raises(UsageError, match="secret:release outside of a Prefect run"):
        read_key("secret:release")
    assert checked_reference("secret:release") == "secret:release"  # the run that signs looks for it


def test_a_relative_path_is_understood_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_key(tmp_path / "release.pem")
    monkeypatch.chdir(tmp_path)
    assert checked_reference("release.pem") == str(tmp_path / "release.pem")
