"""`slmpack chat` as a conversation: lines of a pipe, a person at a terminal; a model loaded here, or behind a server.

One tiny model, whose answers are noise, but always the same, and one real server of it, which asks for a key.
"""

import os
import re
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from canned_server import ENDLESS, sending
from command_line import SLMPACK, environment, error_lines
from places import PROJECT
from served import LISTENING
from server_health import wait_until_healthy
from terminal import CTRL_C, CTRL_D, TerminalCommand

from slmpack.log.ask import load_model
from slmpack.log.conversation import Conversation
from slmpack.log.staging import staged_model
from slmpack.plain_text import harmless
from slmpack.records import Interface, Package
from slmpack.serve.keys import LEAST_CHARACTERS

pytestmark = pytest.mark.slow

KEY = "k" * LEAST_CHARACTERS
SHORT = ["--max-tokens", "6"]
START_SECONDS = 600.0


@pytest.fixture(scope="module")
def model(small_package: Package, workspace: Path) -> Iterator[Path]:
    """The folder of a logged model."""
    with staged_model(small_package, Interface.CHAT, "tiny", "0" * 64, workspace) as folder:
        yield folder


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(f"# of the test\n{KEY}\n")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def url(model: Path, key_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the model."""
    log = tmp_path_factory.mktemp("server") / "serve.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [SLMPACK, "serve", str(model), "--port", "0", "--slots", "2", "--api-key-file", str(key_file)],
            env=environment(), cwd=PROJECT, stdout=written, stderr=written,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (found := LISTENING.search(log.read_text())):  # the whole address
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        wait_until_healthy(f"{found[1]}/health", process, log, START_SECONDS)
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def chat(*arguments: str, stdin: str = "", **extra: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [SLMPACK, "chat", *arguments],
        input=stdin,
        env=environment(**extra),
        capture_output=True,
        text=True,
        check=False,
    )


def answers(model: Path, *prompts: str) -> list[str]:
    """Return what the model itself says to each, one after the other."""
    conversation = Conversation(load_model(str(model)), {"max_tokens": 6})
    return ["".join(conversation.ask(prompt)) for prompt in prompts]


def test_each_line_of_a_pipe_is_a_turn_and_a_server_says_the_same_as_a_loaded_model(
    model: Path, url: str, key_file: Path
) -> None:
    typed = "Hello\n\nAnd now?\n/reset\nHello\n"
    first, second = answers(model, "Hello", "And now?")
    expected = f"{first}\n{second}\n{first}\n"
    loaded = chat(str(model), *SHORT, stdin=typed)
    assert (loaded.returncode, loaded.stdout) == (0, expected), loaded.stderr
    remote = chat("--url", url, "--api-key-file", str(key_file), *SHORT, stdin=typed)
    assert (remote.returncode, remote.stdout) == (0, expected), remote.stderr


def test_a_single_prompt_goes_to_a_server_with_or_without_the_name_of_the_model(model: Path, url: str) -> None:
    (answer,) = answers(model, "Hello there")
    for words in (["Hello there"], ["tiny", "Hello there"], ["tiny", *SHORT, "Hello there"]):
        done = chat("--url", url, *words, *SHORT, SLMPACK_API_KEY=KEY)
        assert (done.returncode, done.stdout) == (0, f"{answer}\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "key", "told"),
    [
        (["other", "Hello there"], KEY, "answers HTTP 404: model: 'other' was found; one of tiny is expected"),
        (["Hello there"], "wrong", "answers HTTP 401: .*; a key that it knows; give --api-key-file FILE, or set"),
        (["Hello there", "--max-tokens", "200000"], KEY, "answers HTTP 400: max_tokens: .*; change the question or"),
    ],
)
def test_what_a_server_refuses_is_one_line(words: list[str], key: str, told: str, url: str) -> None:
    done = chat("--url", url, *words, SLMPACK_API_KEY=key)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = error_lines(done)
    assert re.search(told, line), line


def test_the_first_failure_of_a_pipe_ends_it(url: str) -> None:
    done = chat("--url", url, *SHORT, stdin="Hello\n/rest\nHello\n", SLMPACK_API_KEY=KEY)
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    (line,) = error_lines(done)
    assert line.startswith("slmpack: no command /rest; one of /reset, /system, /help, /exit;")


@contextmanager
def at_terminal(url: str, *arguments: str) -> Iterator[TerminalCommand]:
    command = TerminalCommand(["chat", "--url", url, *arguments], PROJECT, terminal=True, SLMPACK_API_KEY=KEY)
    try:
        command.until("> ")
        yield command
    finally:
        command.process.kill()
        command.process.wait()
        os.close(command.ours)


def after(command: TerminalCommand, keys: str) -> str:
    """Type at the prompt and return what is there until the next one."""
    command.said = ""
    command.press(keys)
    command.until("\n> ")
    return command.said.replace("\r\n", "\n")


def test_a_chat_at_a_terminal_goes_on_after_an_answer_that_ctrl_c_stopped() -> None:
    with sending(ENDLESS) as server, at_terminal(server.url, "a-model") as command:
        command.press("Hi\r")
        command.until("HelloHello")
        command.press(CTRL_C)
        command.until("stopped; the answer belongs to the chat as far as it came\r\n> ")
        assert server.left.wait(600)  # so a server stops, too
        assert "the chat begins anew" in after(command, "/reset\r")
        assert "/system TEXT" in after(command, "/help\r")
        command.press("/exit\r")
        assert command.code() == 0, command.said


def test_ctrl_c_drops_a_line_and_the_second_one_at_an_empty_prompt_ends_the_chat(url: str) -> None:
    with at_terminal(url) as command:
        command.press("half a line")
        command.until("half a line")
        assert "Ctrl-C again" not in after(command, CTRL_C)
        assert "Ctrl-C again, Ctrl-D or /exit ends the chat" in after(command, CTRL_C)
        assert command.process.poll() is None
        command.press(CTRL_C)
        assert command.code() == 0, command.said


def test_ctrl_d_ends_the_chat_and_a_line_can_be_edited_before(model: Path, url: str) -> None:
    (answer,) = answers(model, "Hello")
    with at_terminal(url, *SHORT) as command:
        said = after(command, "ello\x01H\r")  # Ctrl-A goes to the line's beginning
        assert said.endswith(f"{harmless(answer)}\n> ")
        assert "slmpack: no command /nothing;" in after(command, "/nothing\r")
        command.press(CTRL_D)
        assert command.code() == 0, command.said


def test_sigterm_ends_the_chat_and_gives_the_terminal_back(url: str) -> None:
    with at_terminal(url) as command:
        assert not termios.tcgetattr(command.ours)[3] & termios.ECHO  # readline echoes what is typed
        (worker,) = psutil.Process(command.process.pid).children()
        command.process.send_signal(signal.SIGTERM)
        assert command.code() == 143, command.said
        assert termios.tcgetattr(command.ours)[3] & termios.ECHO
        assert not worker.is_running()
