"""The files in deploy/: what they name is there, and what they type is what the command line takes."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from image_file import DEPLOY, command, healthcheck, one, settings, stages
from places import PROJECT

from flows.cli import command_parser
from flows.cli_serve import OPTIONS
from slmpack import telemetry
from slmpack.serve.app import OPEN_PATHS
from slmpack.serve.options import ServeOptions

LINE = re.compile(r"([A-Za-z0-9_.-]+)==(\S+)")
FORBIDDEN = {"torch", "transformers", "prefect", "mlflow", "accelerate", "peft"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Return the versions of a file whose lines are all comments or NAME==VERSION."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    return {canonical(each[1]): each[2] for each in found if each}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def deployment() -> Any:
    return documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]


def container() -> Any:
    (found,) = deployment()["containers"]
    return found


def compose() -> Any:
    return documents("compose.yaml")[0]


def unit() -> dict[str, list[str]]:
    """Return the settings of the systemd unit; one may have several values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "slmpack-serve.service").read_text(encoding="utf-8").splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def typed() -> dict[str, list[str]]:
    """Return the words behind `slmpack` in each file."""
    program, *words = unit()["ExecStart"][0].split()
    assert program == "/opt/slmpack/bin/slmpack"
    return {
        "kubernetes.yaml": [*command(), *container()["args"]],
        "compose.yaml": [*command(), *compose()["services"]["serve"]["command"]],
        "slmpack-serve.service": words,
    }


# ------------------------------------------------------------------------------------------ versions


def test_every_version_is_the_one_that_the_tests_ran_with() -> None:
    pinned, tested = pins(DEPLOY / "requirements-serve.txt"), pins(PROJECT / "constraints.txt")
    assert {name: tested.get(name) for name in pinned} == pinned
    assert not FORBIDDEN & pinned.keys()


def test_the_image_installs_nothing_that_is_not_pinned() -> None:
    runs = [each.text for each in stages()[0] if each.name == "RUN" and " install " in each.text]
    ways = ("--no-deps --no-compile -r requirements-serve.txt", "-c constraints.txt setuptools", "--no-index")
    assert runs
    assert not [text for text in runs if not any(way in text for way in ways)]


# ------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize("name", sorted(typed()))
def test_what_a_file_types_is_what_the_command_takes(name: str) -> None:
    parsed = command_parser().parse_args(typed()[name])
    given = {field: value for field in OPTIONS if (value := getattr(parsed, field)) is not None}
    options = ServeOptions.model_validate(given)
    assert (options.host, options.port) == ("0.0.0.0", 8000)
    assert options.api_key_file is not None
    assert not options.without_key
    assert options.follow


@pytest.mark.parametrize("name", sorted(typed()))
def test_answers_have_time_to_end_before_the_process_is_killed(name: str) -> None:
    seconds = command_parser().parse_args(typed()[name]).stop_seconds
    until_killed = {
        "kubernetes.yaml": deployment()["terminationGracePeriodSeconds"] - 5,  # preStop
        "compose.yaml": float(compose()["services"]["serve"]["stop_grace_period"].removesuffix("s")),
        "slmpack-serve.service": float(unit()["TimeoutStopSec"][0]),
    }[name]
    assert float(seconds) + 10 <= until_killed


def test_the_words_around_the_entry_point_parse() -> None:
    assert command_parser().parse_args([*command(), "models:/a@b", "--without-key"]).port == "8000"
    assert one("CMD").words == ["--help"]


# ------------------------------------------------------------------------------------------ ports, paths, users


def test_all_files_agree_about_the_port() -> None:
    port = one("EXPOSE").text
    assert f"http://127.0.0.1:{port}/health" in healthcheck()[-1]
    assert container()["ports"] == [{"name": "http", "containerPort": int(port)}]
    assert documents("kubernetes.yaml")[1]["spec"]["ports"][0]["targetPort"] == "http"
    assert compose()["services"]["serve"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_probes_ask_paths_that_need_no_key() -> None:
    probes = [container()[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {probe["path"] for probe in probes} == {"/ready", "/health"} <= OPEN_PATHS
    assert {probe["port"] for probe in probes} == {"http"}


def test_nothing_runs_as_root_or_may_become_it() -> None:
    user, group = one("USER").text.split(":")
    assert int(user) > 0
    of_pod, of_container = deployment()["securityContext"], container()["securityContext"]
    assert (of_pod["runAsNonRoot"], of_pod["runAsUser"], of_pod["fsGroup"]) == (True, int(user), int(group))
    assert (of_container["allowPrivilegeEscalation"], of_container["readOnlyRootFilesystem"]) == (False, True)
    assert of_container["capabilities"] == {"drop": ["ALL"]}
    service = compose()["services"]["serve"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    strict = {"DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "CapabilityBoundingSet": ""}
    assert {name: unit()[name] for name in strict} == {name: [value] for name, value in strict.items()}


def test_what_is_written_to_is_a_place_that_can_be_written() -> None:
    mounted = {mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")}
    assert mounted == {"/tmp"}
    assert [each.split(":")[0] for each in compose()["services"]["serve"]["tmpfs"]] == ["/tmp"]
    assert all(settings()[name].startswith("/tmp/") for name in ("HOME", "XDG_CACHE_HOME"))


def test_keys_come_from_secrets_that_only_the_server_reads() -> None:
    keys = typed()
    at = {name: words[words.index("--api-key-file") + 1] for name, words in keys.items()}
    (volume,) = (each["secret"] for each in deployment()["volumes"] if each["name"] == "keys")
    (mount,) = (each["mountPath"] for each in container()["volumeMounts"] if each["name"] == "keys")
    assert (at["kubernetes.yaml"], volume["defaultMode"]) == (f"{mount}/keys", 0o440)
    assert at["compose.yaml"] == "/run/secrets/keys"
    assert compose()["services"]["serve"]["secrets"] == ["keys"]
    assert unit()["LoadCredential"][0].split(":")[0] == Path(at["slmpack-serve.service"]).name


def test_nothing_is_sent_home_from_the_image_or_the_unit() -> None:
    quiet = {name: value for name, value in telemetry.SWITCHES.items() if not name.startswith("PREFECT_")}
    assert quiet.items() <= settings().items()
    of_unit = dict(word.split("=", 1) for line in unit()["Environment"] for word in line.split())
    assert quiet.items() <= of_unit.items()


def test_an_image_is_built_from_files_that_are_sent_to_the_engine() -> None:
    sent = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [word for each in stages()[0] if each.name == "COPY" for word in each.words[:-1]]
    assert set(sources) == sent
    assert not [name for name in sources if not (PROJECT / name).exists()]


# ------------------------------------------------------------------------------------------ programs that check them


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_knows_every_setting_of_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "slmpack-serve.service").read_text(encoding="utf-8")
    copy = tmp_path / "slmpack-serve.service"
    copy.write_text(text.replace("/opt/slmpack/bin/slmpack", "/bin/true"))  # it has to be there
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_make_image_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make
    for name in ("sh", "echo"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        [make, "--no-print-directory", "image"], cwd=PROJECT, env=os.environ | {"PATH": str(tmp_path), "MAKEFLAGS": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not re.match(r"make(\[\d+\])?: ", line)]
    assert lines == ["slmpack: found no docker or podman that answers; expected one to build the image; install or "
                     "start it, and type the same again"]  # fmt: skip
