"""Trust policies: which key may sign which models, until when, and which file counts."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from slmpack.errors import TrustError, UsageError
from slmpack.signing.keys import SigningKey, new_key
from slmpack.signing.policy import VARIABLE, find_policy, read_policy

URI, NAME = "models:/smollm2-135m/1", "smollm2-135m"
TODAY = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    made = new_key(tmp_path / "release.pem")
    (tmp_path / "release.pub").write_text(made.public_pem())
    return made


def write_policy(folder: Path, more: str = "", names: str = '["smollm2-*"]') -> Path:
    path = folder / "trust.toml"
    path.write_text(f'[trust.keys.release]\npublic_key = "release.pub"\nnames = {names}\n{more}')
    return path


def test_a_key_may_sign_the_names_that_the_policy_gives_it(key: SigningKey, tmp_path: Path) -> None:
    policy = read_policy(write_policy(tmp_path, "not_after = 2026-11-27\n"))
    assert policy.signer_of(URI, NAME, key.fingerprint, TODAY).id == "release"


@pytest.mark.parametrize(
    ("more", "names", "message"),
    [
        (
            "not_after = 2026-11-26",
            '["smollm2-*"]',
            "release, which expired on 2026-11-26; a key or certificate that may sign",
        ),
        (
            'revoked = "stolen"',
            '["smollm2-*"]',
            r"release, which is revoked \(stolen\); a key or certificate that may sign .*none",
        ),
        (
            "",
            '["phi-*", "smollm2"]',
            "release, which may not sign smollm2-135m; a key or certificate that may sign smollm2-135m",
        ),
    ],
)
def test_an_expired_a_revoked_and_another_models_key_are_refused_by_name(
    more: str, names: str, message: str, key: SigningKey, tmp_path: Path
) -> None:
    policy = read_policy(write_policy(tmp_path, more, names))
    with pytest.raises(TrustError, match=f"{URI} is signed by the key {message}"):
        policy.signer_of(URI, NAME, key.fingerprint, TODAY)


def test_a_key_that_the_policy_does_not_have_is_refused(key: SigningKey, tmp_path: Path) -> None:
    other = new_key(tmp_path / "other.pem").fingerprint
    policy = read_policy(write_policy(tmp_path))
    with pytest.raises(TrustError, match=rf"does not have \({other[:12]}\); a signature by release"):
        policy.signer_of(URI, NAME, other)


def test_a_key_may_stand_in_the_policy_itself(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(f"[trust.keys.release]\npublic_key = '''\n{key.public_pem()}'''\nnames = ['*']\n")
    assert read_policy(path).signer_of(URI, NAME, key.fingerprint).id == "release"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trust", "cannot be read"),
        ("", "has no table of keys or certificates"),
        ("trust = 3", "has no table of keys or certificates"),
        ("[trust.keys]", "has no table of keys or certificates"),
        ("[trust]\nkey = 1", "has no table of keys or certificates"),
        (
            "[trust]\nunsigned = 'accept'\n[trust.keys.a]\npublic_key = 'x'\nnames = []",
            "has no table of keys or certificates",
        ),
        ("[trust.keys.a]\nnames = ['*']", "public_key of the key a in .* is not one"),
        ("[trust.keys.a]\npublic_key = 'release.pub'\nnames = '*'", "names of the key a in .* is not one"),
        ("[trust.keys.a]\npublic_key = 'release.pub'\nnames = ['*']\nafter = 1", "after of the key a in"),
        ("[trust.keys]\na = 1", "its value of the key a in .* is not one"),
        ("[trust.keys.a]\npublic_key = 'nothing.pub'\nnames = ['*']", "nothing.pub cannot be read"),
        ("[trust.keys.a]\npublic_key = 'release.pem'\nnames = ['*']", "public_key of the key a in .* no public key"),
        ("[trust.keys.a]\npublic_key = 'trust.toml'\nnames = ['*']", "public_key of the key a in .* no public key"),
    ],
)
def test_what_is_no_policy_is_refused_in_a_line(text: str, message: str, key: SigningKey, tmp_path: Path) -> None:
    (tmp_path / "trust.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_policy(tmp_path / "trust.toml")


def test_a_policy_that_others_may_write_is_none(key: SigningKey, tmp_path: Path) -> None:
    path = write_policy(tmp_path)
    path.chmod(0o666)
    with pytest.raises(UsageError, match="others may write the trust policy"):
        read_policy(path)


def test_the_named_file_counts_then_the_variable_the_folder_and_the_settings(
    key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(name: str, file: str) -> Path:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "release.pub").write_text(key.public_pem())
        return write_policy(tmp_path / name).rename(tmp_path / name / file)

    named, variable = folder("named", "a.toml"), folder("variable", "b.toml")
    here, settings = folder("here", "slmpack.toml"), folder("settings/slmpack", "slmpack.toml")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv(VARIABLE, str(variable))

    def found(path: Path | None = None) -> Path | None:
        policy = find_policy(path)
        return None if policy is None else policy.path

    assert found(named) == named
    assert found() == variable
    monkeypatch.delenv(VARIABLE)
    assert found() == here
    here.write_text("[other]\nx = 1\n")  # settings of another kind are no policy
    assert found() == settings
    settings.unlink()
    assert found() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing.toml"))
    with pytest.raises(UsageError, match=r"nothing\.toml cannot be read"):
        find_policy()
    monkeypatch.setenv(VARIABLE, "")
    here.write_text("[trust")
    assert found() is None
