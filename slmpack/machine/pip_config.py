"""Package index: pip's settings (indexes, proxy, certificates), translated for uv.

uv does not read pip's configuration. So this module reads it from pip and gives it to uv by environment variables,
since an index's URL may hold a password.
"""

import ast
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from slmpack.errors import CheckError
from slmpack.machine.surroundings import typed_path
from slmpack.records import Record


class UvSettings(Record):
    """Where uv looks for packages: its arguments, and the variables of its environment."""

    arguments: tuple[str, ...]
    environment: dict[str, str]


def read_pip_config(python: str) -> dict[str, str]:
    """Ask pip for the options of `pip install`: its files and PIP_* variables, merged as it merges them.

    Raises:
        CheckError: pip cannot read its own configuration.
    """
    command = [python, "-P", "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:  # an environment made without it, so there is no setting to hand on
        return {}
    if done.returncode:
        reason = " ".join(done.stderr.split())[:300]
        raise CheckError(
            f"pip config list: {reason}", "a configuration that pip can read", "correct the file that it names"
        )
    return parse_pip_config(done.stdout)


def parse_pip_config(listing: str) -> dict[str, str]:
    """Return option -> value of what `pip config list` prints; `install` wins over `global`, PIP_* over both.

    An empty value is none. Source: pip's `ConfigOptionParser`.
    """
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        if match := re.fullmatch(r"(:env:|[^.]+)\.([a-z0-9-]+)=(['\"].*)", line):
            section, option, value = match.groups()
            if section in sections and (text := str(ast.literal_eval(value)).strip()):
                sections[section][option.removeprefix("default-")] = text
    return sections["global"] | sections["install"] | sections[":env:"]


def settings_for_uv(pip: dict[str, str]) -> UvSettings:
    """Translate pip's options; a relative path in them is one from where we are.

    pip takes the best version that any index has, uv by default the best of the first index that has the package.
    """
    arguments = ["--index-strategy", "unsafe-best-match"]
    if pip.get("no-index", "").lower() in {"1", "true", "yes", "on", "y", "t"}:
        arguments.append("--no-index")
    for option in ("only-binary", "no-binary"):
        for name in re.split(r"[\s,]+", pip.get(option, "").strip()):
            arguments += [f"--{option}", name] if name else []
    return UvSettings(arguments=tuple(arguments), environment=_uv_variables(pip))


def _uv_variables(pip: dict[str, str]) -> dict[str, str]:
    """Source: the environment variables in uv's reference, and `uv pip install --help` (uv 0.13)."""
    cert = pip.get("cert", "") and _absolute(pip["cert"])
    proxy = pip.get("proxy", "")
    variables = {
        "UV_DEFAULT_INDEX": _absolute(pip["index-url"]) if "index-url" in pip else "",
        "UV_EXTRA_INDEX_URL": " ".join(map(_absolute, pip.get("extra-index-url", "").split())),
        "UV_FIND_LINKS": ",".join(map(_absolute, pip.get("find-links", "").split())),
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
        "UV_KEYRING_PROVIDER": "subprocess" if pip.get("keyring-provider") in {"subprocess", "import"} else "",
        "UV_HTTP_TIMEOUT": pip.get("timeout", ""),
        "UV_HTTP_RETRIES": pip.get("retries", ""),
        "SSL_CERT_DIR" if cert and Path(cert).is_dir() else "SSL_CERT_FILE": cert,
        "SSL_CLIENT_CERT": pip.get("client-cert", "") and _absolute(pip["client-cert"]),
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
    }
    return {name: value for name, value in variables.items() if value}


def _absolute(place: str) -> str:
    """Return a path as an absolute one, since uv runs elsewhere; a URL stays as it is."""
    return place if urlsplit(place).scheme else str(typed_path(place))
