"""Signatures: they hold for exactly the files that were signed, under the name and the key that they were signed by."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slmpack.errors import TrustError
from slmpack.signing.keys import PrivateKey, new_key
from slmpack.signing.policy import TrustPolicy, read_policy
from slmpack.signing.signature import SIGNATURE, STATEMENT, check_files, digests_in, sign_files

URI, NAME = "models:/small/1", "small"


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    return new_key(tmp_path / "release.pem")


@pytest.fixture
def policy(key: PrivateKey, tmp_path: Path) -> TrustPolicy:
    (tmp_path / "release.pub").write_text(key.public_pem())
    (tmp_path / "trust.toml").write_text("[trust.keys.release]\npublic_key = 'release.pub'\nnames = ['small']\n")
    return read_policy(tmp_path / "trust.toml")


@pytest.fixture
def model(key: PrivateKey, tmp_path: Path) -> Path:
    """A signed folder."""
    folder = tmp_path / "model"
    (folder / "artifacts" / "package").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / "manifest.json").write_text("{}\n")
    (folder / "artifacts" / "package" / "model.onnx.data").write_bytes(bytes(range(256)) * 1000)
    (folder / STATEMENT).write_text(json.dumps({"subject": [{"name": NAME, "digest": {}}]}))
    sign(folder, key)
    return folder


def sign(folder: Path, key: PrivateKey, name: str = NAME) -> None:
    (folder / SIGNATURE).write_bytes(sign_files(name, digests_in(folder), key))


def test_a_signed_folder_is_accepted_and_its_signer_named(model: Path, policy: TrustPolicy) -> None:
    assert check_files(URI, NAME, model, policy).id == "release"


def test_the_librarys_own_command_accepts_it_as_well(model: Path, policy: TrustPolicy) -> None:
    key = policy.path.with_name("release.pub")
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        str(model),
        "--signature",
        str(model / SIGNATURE),
    ]
    done = subprocess.run([*command, "--public_key", str(key)], capture_output=True, text=True, check=False)
    assert (done.returncode, "Verification succeeded" in done.stdout + done.stderr) == (0, True), done.stderr
    (model / "MLmodel").write_text("flavors: {other: {}}\n")
    done = subprocess.run([*command, "--public_key", str(key)], capture_output=True, text=True, check=False)
    assert done.returncode != 0


def test_what_mlflow_writes_beside_a_model_that_was_loaded_does_no_harm(model: Path, policy: TrustPolicy) -> None:
    (model / "registered_model_meta").write_text("model_name: small\n")
    assert check_files(URI, NAME, model, policy).id == "release"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _hide(model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "config").touch()


def _link(model: Path) -> None:
    (model / "MLmodel").rename(model.parent / "M")
    (model / "MLmodel").symlink_to(model.parent / "M")


def _exchange(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the list of files in a signature, which stays as it was."""
    bundle = json.loads(path.read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(payload)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    path.write_text(json.dumps(bundle))


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit of the weights": (
        lambda model: _flip(model / "artifacts/package/model.onnx.data"),
        "has another artifacts/package/model.onnx.data",
    ),
    "an extra file": (lambda model: (model / "libx.so").touch(), "does not have libx.so, which was added"),
    "an extra file in a hidden folder": (_hide, "does not have .git/config"),
    "a second signature below": (
        lambda model: (model / "artifacts" / SIGNATURE).touch(), "does not have artifacts/model.sig"
    ),
    "a missing file": (lambda model: (model / "manifest.json").unlink(), "has manifest.json, which is missing"),
    "a link in place of a file": (_link, "MLmodel is a link"),
    "a linked folder": (lambda model: (model / "more").symlink_to(model.parent), "more is a link"),
    "another statement": (
        lambda model: (model / STATEMENT).write_text('{"subject": [{"name": "small"}]}'), "has another provenance.json"
    ),
    "no statement": (lambda model: (model / STATEMENT).unlink(), "cannot be read"),
    "no signature": (lambda model: (model / SIGNATURE).unlink(), "is not signed; a signature by release"),
    "a list of files that was changed": (
        lambda model: _exchange(model / SIGNATURE, lambda payload: payload.update(x=1)), "not of the key release"
    ),
    "a signature that is no JSON": (lambda model: (model / SIGNATURE).write_text("{"), "is none that can be read"),
    "a signature of 20 MB": (lambda model: (model / SIGNATURE).write_bytes(b" " * 20_000_000), "cannot be read"),
    "a signature nested deep": (
        lambda model: (model / SIGNATURE).write_text("[" * 100_000), "is none that can be read"
    ),
    "a signature without its envelope": (
        lambda model: (model / SIGNATURE).write_text(
            json.dumps({k: v for k, v in json.loads((model / SIGNATURE).read_text()).items() if k != "dsseEnvelope"})
        ),
        "does not hold",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_change_is_refused_by_name(attack: str, model: Path, policy: TrustPolicy) -> None:
    change, message = ATTACKS[attack]
    change(model)
    with pytest.raises(TrustError, match=message) as refused:
        check_files(URI, NAME, model, policy)
    assert "\n" not in str(refused.value)


def test_a_signature_by_another_key_that_names_ours_is_refused(
    model: Path, policy: TrustPolicy, tmp_path: Path
) -> None:
    ours = json.loads((model / SIGNATURE).read_text())["verificationMaterial"]
    sign(model, new_key(tmp_path / "other.pem"))
    with pytest.raises(TrustError, match="is signed by a key that the policy does not have"):
        check_files(URI, NAME, model, policy)
    forged = json.loads((model / SIGNATURE).read_text()) | {"verificationMaterial": ours}
    (model / SIGNATURE).write_text(json.dumps(forged))
    with pytest.raises(TrustError, match="is not of the key release, which it names"):
        check_files(URI, NAME, model, policy)


def test_a_model_under_another_name_than_it_was_signed_for_is_refused(model: Path, key: PrivateKey) -> None:
    public = key.public_pem()
    (model.parent / "all.toml").write_text(f"[trust.keys.release]\npublic_key = '''{public}'''\nnames = ['*']\n")
    with pytest.raises(TrustError, match="models:/large/1 is signed as a version of small; one of large"):
        check_files("models:/large/1", "large", model, read_policy(model.parent / "all.toml"))


def test_a_signature_of_another_model_does_not_hold(model: Path, key: PrivateKey, policy: TrustPolicy) -> None:
    signature = (model / SIGNATURE).read_bytes()
    (model / "MLmodel").write_text("model_id: another\n")
    sign(model, key)
    assert check_files(URI, NAME, model, policy).id == "release"
    (model / SIGNATURE).write_bytes(signature)
    with pytest.raises(TrustError, match="has another MLmodel"):
        check_files(URI, NAME, model, policy)


def test_nothing_of_a_private_key_is_left_on_the_disk_or_in_a_signature(key: PrivateKey, model: Path) -> None:
    secret = base64.b64decode("".join(key.pem().decode().splitlines()[1:-1]))[36:68]  # the number itself, 32 bytes
    for path in model.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert secret not in content
        assert base64.b64encode(secret)[:40] not in content
