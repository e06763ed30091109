"""A PKCS#11 token in software: SoftHSM, from Debian's softhsm2, with one key in it."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "1234"
CONFIG = "SOFTHSM2_CONF"

needs_token = pytest.mark.skipif(
    shutil.which("softhsm2-util") is None or not MODULE.exists() or find_spec("PyKCS11") is None,
    reason="no SoftHSM or no PyKCS11: apt-get install softhsm2, pip install 'slmpack[pkcs11]'",
)


def make_token(folder: Path, key: Path, label: str) -> str:
    """Make a token in `folder` with the private key of the file `key`; return the key's URI.

    The variable CONFIG has to name the file `softhsm2.conf` there.
    """
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
    environment = os.environ | {CONFIG: str(folder / "softhsm2.conf")}
    for command in (
        ["--init-token", "--free", "--label", "slmpack", "--pin", PIN, "--so-pin", "5678"],
        ["--import", str(key), "--token", "slmpack", "--label", label, "--id", "a1", "--pin", PIN],
    ):
        subprocess.run(["softhsm2-util", *command], env=environment, check=True, capture_output=True)
    return f"pkcs11:token=slmpack;object={label}?module-path={MODULE}"
