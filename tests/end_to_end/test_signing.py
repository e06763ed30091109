"""Signing by the command line and by Prefect: a key, a signed version, and consumers who check it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from authority import SUBJECT, Authority
from command_line import SLMPACK, environment, error_lines, objects, slmpack
from mlflow import MlflowClient
from mlflow_database import write_empty_database

from slmpack.log.tags import SIGNED_BY

pytestmark = pytest.mark.slow

NAME = "steady-phi3"
URI = f"models:/{NAME}@cpu-int4"


@pytest.fixture(scope="module")
def folder(steady_phi3: Path, workspace: Path, prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with two keys, a policy for each, and a version that the first key signed."""
    write_empty_database((folder := tmp_path_factory.mktemp("signing")) / "mlflow.db")
    for key in ("release", "other"):
        made = slmpack("keys", "new", f"{key}.pem", cwd=folder)
        assert (made.returncode, made.stdout.splitlines()[0]) == (0, "-----BEGIN PUBLIC KEY-----"), made.stderr
        (folder / f"{key}.pub").write_text(made.stdout)
        (folder / f"{key}.toml").write_text(f"[trust.keys.{key}]\npublic_key = '{key}.pub'\nnames = ['{NAME}']\n")
    done = slmpack(
        "package", str(steady_phi3), "--workspace", str(workspace), "--json", "--signing-key", "env:RELEASE_KEY",
        cwd=folder, PREFECT_API_URL=prefect_api, RELEASE_KEY=(folder / "release.pem").read_text(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert objects(done)[0]["status"] == "published"
    return folder


def signed_by(folder: Path) -> str:
    return str(MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").get_model_version(NAME, "1").tags[SIGNED_BY])


def fingerprint(folder: Path, key: str) -> str:
    done = slmpack("keys", "show", f"{key}.pem", cwd=folder)
    assert done.stdout == (folder / f"{key}.pub").read_text()
    (found,) = re.findall(r"^fingerprint ([0-9a-f]{64})$", done.stderr, re.MULTILINE)
    return str(found)


def test_the_version_is_signed_by_the_key(folder: Path) -> None:
    assert signed_by(folder) == fingerprint(folder, "release")


def test_a_chat_checks_who_signed(folder: Path) -> None:
    accepted = slmpack("chat", URI, "Hello", "--max-tokens", "3", "--trust", "release.toml", cwd=folder)
    assert accepted.returncode == 0, accepted.stderr
    refused = slmpack("chat", URI, "Hello", cwd=folder, SLMPACK_TRUST="other.toml")
    assert (refused.returncode, refused.stdout) == (1, "")
    (line,) = error_lines(refused)
    assert f"{URI} is signed by a key that the policy does not have" in line


def test_a_server_checks_who_signed(folder: Path, workspace: Path) -> None:
    done = slmpack("serve", URI, "--port", "0", "--trust", "other.toml", "--workspace", str(workspace), cwd=folder)
    assert done.returncode == 1
    assert "is signed by a key that the policy does not have" in error_lines(done)[0]


def test_the_policy_of_the_working_folder_counts_and_a_bad_one_is_bad_usage(folder: Path) -> None:
    (folder / "slmpack.toml").write_text("[trust.keys.a]\nnames = ['*']\n")
    done = slmpack("chat", URI, "Hello", cwd=folder)
    assert done.returncode == 0  # the tests' own environment says that there is no policy
    variables = {key: value for key, value in environment().items() if key != "SLMPACK_TRUST"}
    found = subprocess.run(
        [SLMPACK, "chat", URI, "Hello"], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    (folder / "slmpack.toml").unlink()
    assert found.returncode == 2
    assert "public_key of the key a in" in found.stderr


def test_the_same_request_with_another_key_is_unchanged_and_signs(
    folder: Path, steady_phi3: Path, workspace: Path, prefect_api: str
) -> None:
    request = ["package", str(steady_phi3), "--workspace", str(workspace), "--json", "--signing-key"]
    done = slmpack(*request, "other.pem", cwd=folder, PREFECT_API_URL=prefect_api)
    assert (done.returncode, objects(done)[0]["status"]) == (0, "unchanged"), done.stderr
    assert signed_by(folder) == fingerprint(folder, "other")
    back = slmpack("sign", URI, "--signing-key", "release.pem", cwd=folder)
    assert back.returncode == 0, back.stderr
    assert signed_by(folder) == fingerprint(folder, "release")


def test_a_key_with_certificates_signs_and_a_chat_checks_whose_it_is(folder: Path) -> None:
    authority = Authority()
    signer = authority.issue()
    (folder / "certified.pem").write_text(signer.pem())
    (folder / "certified.pem").chmod(0o600)
    shown = slmpack("keys", "show", "certified.pem", cwd=folder)
    assert shown.stderr == f"certificate {SUBJECT}\nfingerprint {signer.fingerprint}\n"
    done = slmpack("sign", URI, "--signing-key", "env:CERTIFIED", cwd=folder, CERTIFIED=signer.pem())
    assert (done.returncode, signed_by(folder)) == (0, signer.fingerprint), done.stderr
    (folder / "ca.pem").write_text(authority.root.root())
    for name in (NAME, "another"):
        entry = f"roots = 'ca.pem'\nsubjects = ['{SUBJECT}']\nnames = ['{name}']\n"
        (folder / f"{name}.toml").write_text(f"[trust.certificates.ci]\n{entry}")
    accepted = slmpack("chat", URI, "Hello", "--max-tokens", "3", "--trust", f"{NAME}.toml", cwd=folder)
    assert accepted.returncode == 0, accepted.stderr
    refused = slmpack("chat", URI, "Hello", "--trust", "another.toml", cwd=folder)
    assert refused.returncode == 1
    assert f"{URI} is signed by a certificate of ci, which may not sign {NAME}" in error_lines(refused)[0]
    back = slmpack("sign", URI, "--signing-key", "release.pem", cwd=folder)
    assert back.returncode == 0, back.stderr


def test_a_key_in_a_block_of_prefects_signs_and_its_text_is_in_no_record(
    folder: Path, steady_phi3: Path, workspace: Path, prefect_api: str
) -> None:
    text = (folder / "other.pem").read_text()
    program = (
        "import os\nfrom prefect.blocks.system import Secret\n"
        "Secret(value=os.environ['THE_KEY']).save('release-key', overwrite=True)\n"
    )
    saved = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(PREFECT_API_URL=prefect_api, THE_KEY=text), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert saved.returncode == 0, saved.stderr
    request = ["package", str(steady_phi3), "--workspace", str(workspace), "--json", "--signing-key"]
    done = slmpack(*request, "secret:release-key", cwd=folder, PREFECT_API_URL=prefect_api)
    assert (done.returncode, objects(done)[0]["status"]) == (0, "unchanged"), done.stderr
    assert signed_by(folder) == fingerprint(folder, "other")
    missing = slmpack(*request, "secret:nothing", cwd=folder, PREFECT_API_URL=prefect_api)
    assert missing.returncode == 2
    assert "Prefect has no secret block nothing" in error_lines(missing)[0]
