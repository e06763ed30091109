"""Tokens: a key that never leaves its PKCS#11 token signs as one in a file does, and its PIN is in no record."""

import json
from pathlib import Path

import pytest
from software_token import CONFIG, PIN, make_token, needs_token

from slmpack.errors import UsageError
from slmpack.signing.keys import PASSWORD, PrivateKey, checked_reference, new_key, read_key
from slmpack.signing.policy import read_policy
from slmpack.signing.signature import SIGNATURE, STATEMENT, check_files, digests_in, sign_files

NAME = "small"


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    return new_key(tmp_path / "release.pem")


@pytest.fixture
def uri(key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of that key in a token; its PIN is in the variable."""
    monkeypatch.setenv(CONFIG, str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv(PASSWORD, PIN)
    return make_token(tmp_path, tmp_path / "release.pem", "release")


@needs_token
def test_a_key_in_a_token_signs_and_is_called_as_in_a_file(uri: str, key: PrivateKey, tmp_path: Path) -> None:
    held = read_key(uri)
    assert (held.fingerprint, held.public_pem()) == (key.fingerprint, key.public_pem())
    assert checked_reference(uri) == uri
    model = tmp_path / "model"
    model.mkdir()
    (model / STATEMENT).write_text(json.dumps({"subject": [{"name": NAME, "digest": {}}]}))
    (model / SIGNATURE).write_bytes(sign_files(NAME, digests_in(model), held))
    (tmp_path / "trust.toml").write_text(f"[trust.keys.hsm]\npublic_key = '''{key.public_pem()}'''\nnames = ['*']\n")
    assert check_files("models:/small/1", NAME, model, read_policy(tmp_path / "trust.toml")).id == "hsm"
    assert sign_files(NAME, digests_in(model), held)  # the token is asked again


@needs_token
def test_what_a_token_does_not_have_is_refused_in_a_line_without_its_pin(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {
        uri.replace("object=release", "object=other"): "Could not find any object with label other",
        uri.replace("token=slmpack", "token=other"): "gives no key that signs",
        uri.replace("libsofthsm2", "nothing"): "gives no key that signs",
        "pkcs11:nonsense": "Malformed pkcs11 URI",
    }
    for each, message in wrong.items():
        with pytest.raises(UsageError, match=message) as refused:
            read_key(each)
        assert PIN not in str(refused.value)
    monkeypatch.setenv(PASSWORD, "4321")
    with pytest.raises(UsageError, match=r"gives no key that signs .*PIN_INCORRECT") as refused:
        read_key(uri)
    assert "4321" not in str(refused.value)


def test_a_uri_with_a_pin_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"has a PIN in it; .*; set {PASSWORD} to the PIN") as refused:
        read_key("pkcs11:token=a;object=b?module-path=/usr/lib/c.so&pin-value=987654")
    assert "987654" not in str(refused.value)


def test_without_what_asks_tokens_the_error_says_what_to_install() -> None:
    try:
        import PyKCS11  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r"without PyKCS11, which asks tokens; .*; install it: pip install"):
            read_key("pkcs11:token=a;object=b")
    else:
        pytest.skip("PyKCS11 is installed")
