"""The package index: pip's settings reach uv."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from uv import find_uv_bin

from slmpack.errors import CheckError
from slmpack.machine.environments import reason_of_uv, run_to_log
from slmpack.machine.pip_config import parse_pip_config, read_pip_config, settings_for_uv

LISTING = """\
:env:.cert='/etc/ssl/ca.crt'
:env:.default-timeout='180'
:env:.find-links=''
freeze.timeout='10'
global.extra-index-url='\\nhttps://one.example/simple\\nfile:///srv/two/simple'
global.index-url='https://user:it=s"secret@packages.example/simple'
global.timeout='60'
global.trusted-host='one.example two.example:8443'
install.find-links='/srv/wheels'
"""


def test_pips_sections_and_variables_are_merged_as_pip_does() -> None:
    assert parse_pip_config(LISTING) == {
        "cert": "/etc/ssl/ca.crt",
        "timeout": "180",
        "extra-index-url": "https://one.example/simple\nfile:///srv/two/simple",
        "index-url": 'https://user:it=s"secret@packages.example/simple',
        "trusted-host": "one.example two.example:8443",
        "find-links": "/srv/wheels",
    }


@pytest.mark.parametrize(
    ("option", "value", "variable", "expected"),
    [
        ("index-url", "https://a.example/simple", "UV_DEFAULT_INDEX", "https://a.example/simple"),
        ("extra-index-url", "https://a.example/s\nhttps://b.example/s", "UV_EXTRA_INDEX_URL",
         "https://a.example/s https://b.example/s"),
        ("find-links", "/srv/a https://b.example/w", "UV_FIND_LINKS", "/srv/a,https://b.example/w"),
        ("find-links", "~/wheels", "UV_FIND_LINKS", str(Path.home() / "wheels")),
        ("trusted-host", "a.example\nb.example:8443", "UV_INSECURE_HOST", "a.example b.example:8443"),
        ("cert", "/etc/no-such.crt", "SSL_CERT_FILE", "/etc/no-such.crt"),
        ("cert", "/etc", "SSL_CERT_DIR", "/etc"),
        ("client-cert", "/etc/me.pem", "SSL_CLIENT_CERT", "/etc/me.pem"),
        ("proxy", "http://p.example:3128", "HTTPS_PROXY", "http://p.example:3128"),
        ("timeout", "180", "UV_HTTP_TIMEOUT", "180"),
        ("retries", "9", "UV_HTTP_RETRIES", "9"),
        ("keyring-provider", "import", "UV_KEYRING_PROVIDER", "subprocess"),
    ],
)  # fmt: skip
def test_an_option_of_pip_becomes_uvs_variable(option: str, value: str, variable: str, expected: str) -> None:
    assert settings_for_uv({option: value}).environment[variable] == expected


def test_a_relative_path_is_one_from_where_pip_would_look() -> None:
    assert settings_for_uv({"find-links": "wheels"}).environment["UV_FIND_LINKS"] == str(Path.cwd() / "wheels")


def test_what_pip_has_no_setting_for_is_left_to_uv() -> None:
    settings = settings_for_uv({})
    assert settings.environment == {}
    assert settings.arguments == ("--index-strategy", "unsafe-best-match")


@pytest.mark.parametrize(
    ("pip", "expected"),
    [
        ({"no-index": "1"}, ("--no-index",)),
        ({"no-index": "false"}, ()),
        ({"only-binary": ":all:"}, ("--only-binary", ":all:")),
        ({"no-binary": "numpy,pandas"}, ("--no-binary", "numpy", "--no-binary", "pandas")),
    ],
)
def test_an_option_of_pip_becomes_uvs_argument(pip: dict[str, str], expected: tuple[str, ...]) -> None:
    assert settings_for_uv(pip).arguments[2:] == expected


@pytest.fixture
def pip_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A configuration file that pip reads after all others."""
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    yield tmp_path / "pip.conf"


def test_pip_itself_is_asked(pip_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_file.write_text("[global]\nindex_url = https://a.example/simple\nretries = 2\n")
    monkeypatch.setenv("PIP_RETRIES", "3")
    found = read_pip_config(sys.executable)
    assert (found["index-url"], found["retries"]) == ("https://a.example/simple", "3")


def test_a_broken_configuration_of_pip_is_told(pip_file: Path) -> None:
    pip_file.write_text("nonsense\n")
    with pytest.raises(CheckError, match=rf"could not be loaded.*{pip_file}"):
        read_pip_config(sys.executable)


def test_an_environment_without_pip_has_no_settings(tmp_path: Path) -> None:
    subprocess.run([find_uv_bin(), "venv", "--quiet", "--python", sys.executable, str(tmp_path / "env")], check=True)
    assert read_pip_config(str(tmp_path / "env" / "bin" / "python")) == {}


def test_uv_obeys_the_settings(tmp_path: Path) -> None:
    """With `no-index` and a folder that has no wheels, uv finds nothing and says so."""
    settings = settings_for_uv({"no-index": "true", "find-links": str(tmp_path)})
    log = tmp_path / "log"
    command = [
        find_uv_bin(),
        "pip",
        "install",
        "--dry-run",
        "--python",
        sys.executable,
        *settings.arguments,
        "slmpack-absent",
    ]
    assert run_to_log(command, dict(os.environ) | settings.environment, tmp_path, log, 60) != 0
    assert "slmpack-absent was not found in the provided package locations" in reason_of_uv(log.read_text())
