"""Keys and hosts: who may ask, what a file of keys must be, and where a server may listen without one."""

import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from serve_process import ServeProcess, running_server

from flows.cli import run
from flows.cli_lines import FAILED, USAGE
from slmpack.errors import UsageError
from slmpack.log.staging import staged_model
from slmpack.records import Interface, Package
from slmpack.serve.keys import Keys

KEYS = ("a-key-of-the-first-team", "another-key-0123456789abcdef")


def key_file(folder: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


# ------------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_every_key_of_a_file_is_accepted_and_nothing_else(tmp_path: Path, mode: int) -> None:
    keys = Keys.read(key_file(tmp_path, f"# the teams\n{KEYS[0]}\n\n  {KEYS[1]}\r\n", mode))
    assert all(keys.accepts(f"{kind} {key}") for key in KEYS for kind in ("Bearer", "bearer", "BEARER"))
    wrong = ["", "Bearer", "Bearer ", KEYS[0], f"Basic {KEYS[0]}", "Bearer # the teams", f"Bearer {KEYS[0]}x",
             f"Bearer {KEYS[0][:-1]}", f"Bearer {KEYS[0]} {KEYS[1]}", f"Bearer {KEYS[0].upper()}", "Bearer \xff\x00",
             f"Bearer\t{KEYS[0]}"]  # fmt: skip
    assert not [each for each in wrong if keys.accepts(each)]


def test_a_link_to_a_file_is_read_as_kubernetes_mounts_secrets(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(key_file(tmp_path, KEYS[0], 0o440))
    assert Keys.read(tmp_path / "link").accepts(f"Bearer {KEYS[0]}")


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o620, 0o666])
def test_a_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, KEYS[0], mode)
    with pytest.raises(UsageError, match=rf"others may read or write .* \(mode {mode:04o}\).*; type: chmod 600"):
        Keys.read(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "has no key"),
        ("\n# nothing\n \n", "has no key"),
        (f"{KEYS[0]}\nsecret\n", "has a key of fewer than 16 characters"),
        ("two words are not one key\n", "has a key with a space or a control character in it"),
        ("schlüssel-schlüssel-schlüssel\n".encode(), "byte 4 is not ASCII"),
        (b"\xff" * 20, "byte 0 is not ASCII"),
        (b"k" * ((1 << 20) + 1), "more than 1,048,576"),
    ],
)
def test_a_file_without_proper_keys_is_refused_and_none_is_shown(
    tmp_path: Path, content: str | bytes, found: str
) -> None:
    with pytest.raises(UsageError, match=found) as refusal:
        Keys.read(key_file(tmp_path, content))
    assert str(refusal.value).count(";") == 2  # what was found, what is expected, what to do
    assert not [word for word in ("secret", "words", "schl", KEYS[0]) if word in str(refusal.value)]


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"--api-key-file .* cannot be read"):
        Keys.read(tmp_path / name)


# ------------------------------------------------------------------------------------------ the command


def line_of(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    """Run `slmpack serve`, and return the one line that says why it does not."""
    assert run(["serve", *map(str, arguments)]) == code
    (line,) = (each for each in capsys.readouterr().err.splitlines() if not each.startswith("loading "))
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "some.example"])
def test_another_host_without_a_key_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, host: str) -> None:
    line = line_of(capsys, USAGE, tmp_path, "--host", host)
    assert line.startswith(f"slmpack: --host {host} can be reached from other machines; ")
    assert line.endswith("give --api-key-file FILE, or say --without-key")


def test_a_bad_file_of_keys_ends_the_command_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = line_of(capsys, USAGE, "models:/none@cpu-int4", "--api-key-file", key_file(tmp_path, KEYS[0], 0o644))
    assert "others may read or write" in line


def test_texts_of_traces_without_traces_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = line_of(capsys, USAGE, tmp_path, "--trace-texts")
    assert line.endswith("--trace-texts without --trace; the experiment that is traced to; add --trace EXPERIMENT")


@pytest.mark.parametrize("allowed", [[], ["--host", "0.0.0.0", "--without-key"]])
def test_a_port_that_is_taken_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, allowed: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = line_of(capsys, FAILED, tmp_path, "--port", str(port), *allowed)
    assert line.startswith(f"slmpack: port {port} of ")
    assert line.endswith("cannot be taken (Address already in use); one that is free; name another with --port; "
                         "0 takes a free one")  # fmt: skip


def test_a_host_that_is_not_this_machines_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = line_of(capsys, FAILED, tmp_path, "--host", "192.0.2.1", "--without-key", "--port", "0")
    assert line.startswith("slmpack: --host 192.0.2.1 cannot be listened at (")
    assert "; an address of this machine; " in line


@pytest.mark.parametrize("uri", ["models:/nobody@cpu-int4", "models:/nobody/7", "models:/m-" + "0" * 32])
def test_a_model_that_is_not_there_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], mlflow_store: Path, uri: str
) -> None:
    line = line_of(capsys, FAILED, uri, "--port", "0")
    assert line.startswith("slmpack: ")
    assert uri in line


def test_a_folder_that_is_no_model_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path) in line_of(capsys, FAILED, tmp_path, "--port", "0")


# ------------------------------------------------------------------------------------------ the server


@pytest.fixture(scope="module")
def server(small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("served")
    keys = key_file(folder, "\n".join(KEYS))
    arguments = ["--host", "0.0.0.0", "--api-key-file", str(keys), "--slots", "2", "--context", "512"]
    with (
        staged_model(small_package, Interface.CHAT, "small", "0" * 64, workspace) as model,
        running_server([model, *arguments], folder) as found,
    ):
        yield found


@pytest.mark.slow
def test_each_key_of_the_file_lets_a_request_in(server: ServeProcess) -> None:
    assert [server.chat(key)[0] for key in KEYS] == [200, 200]


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "", "no-such-key-0123456789", KEYS[0][:-1]])
def test_without_a_key_a_request_is_refused_as_openai_does(server: ServeProcess, key: str | None) -> None:
    for status, body in (server.chat(key), server.get("/v1/models", key), server.get("/metrics", key),
                         server.get("/openapi.json", key), server.get("/nowhere", key)):  # fmt: skip
        assert status == 401
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert (body["error"]["type"], body["error"]["code"]) == ("authentication_error", "invalid_api_key")


@pytest.mark.slow
def test_probes_need_no_key_and_say_nothing_but_the_state(server: ServeProcess) -> None:
    assert [server.get(path)[0] for path in ("/health", "/ready", "/ping", "/version")] == [200] * 4


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/health/../v1/models", "/%76%31/models", "/METRICS"])
def test_no_spelling_of_a_path_goes_round_the_key(server: ServeProcess, path: str) -> None:
    connection = HTTPConnection(server.address.removeprefix("http://"), timeout=600)
    connection.putrequest("GET", path, skip_host=False)  # as it is: urllib would tidy it up
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.slow
def test_no_key_is_in_what_the_server_writes(server: ServeProcess) -> None:
    server.chat("a-wrong-key-that-was-mistyped")
    written = "\n".join(server.lines)
    assert "listening at" in written
    assert not [key for key in (*KEYS, "mistyped") if key in written]
