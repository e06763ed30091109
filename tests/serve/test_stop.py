"""Stopping: a signal, two of them, and kills of each of the server's processes."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from serve_process import ServeProcess, events_of, held, is_running, running_server, wait_until_ended
from served import wait_for

from flows.supervise import SECONDS_OF_ONE_SIGNAL
from slmpack.log.staging import PACKAGE_FOLDER, staged_model
from slmpack.records import Interface, Package

pytestmark = pytest.mark.slow

LONG = {"max_tokens": 1500, "logit_bias": {"2": -100}}  # no end of turn
WAIT_SECONDS = 600


@pytest.fixture(scope="module")
def folder(small_package: Package, workspace: Path) -> Iterator[Path]:
    """The chat model as it is logged."""
    with staged_model(small_package, Interface.CHAT, "small", "0" * 64, workspace) as found:
        yield found


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[ServeProcess]:
    with running_server([folder, "--slots", "2", "--context", "2048"], tmp_path) as found:
        yield found


def refuses_connections(address: str) -> bool:
    host, port = address.removeprefix("http://").split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=60):
            return False
    except ConnectionRefusedError:
        return True


def test_a_signal_lets_an_answer_end_and_takes_no_new_one(server: ServeProcess) -> None:
    events = events_of(server.begin_stream(**LONG))
    next(events)
    with held(server.engine()):  # the answer is under way for as long as it takes to act on the signal
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses_connections(server.address), WAIT_SECONDS)
    rest = list(events)
    assert rest[-1] == "[DONE]"
    assert rest[-2]["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(WAIT_SECONDS) == 0


def test_an_answer_that_takes_longer_than_may_be_waited_is_cut_and_nothing_is_left(
    folder: Path, tmp_path: Path
) -> None:
    with running_server([folder, "--slots", "1", "--stop-seconds", "0.3"], tmp_path) as server:
        events = events_of(server.begin_stream(**(LONG | {"max_tokens": 4000})))
        next(events)
        family = server.family()
        with held(server.engine()):  # so that the answer does not end by itself
            assert server.stop(signal.SIGINT) == 0
        assert not wait_until_ended(family)
        error = list(events)[-1]["error"]
        assert (error["code"], error["message"].partition(";")[0]) == (
            "engine_unavailable",
            "the server is being stopped",
        )
    assert not list((tmp_path / "work" / "scratch").iterdir())


def test_a_second_signal_ends_it_at_once(server: ServeProcess) -> None:
    events = events_of(server.begin_stream(**LONG))
    next(events)
    family = server.family()
    with held(server.engine()):  # else the answer might be over, and the first signal have ended the server
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses_connections(server.address), WAIT_SECONDS)  # the first one has been acted on
        time.sleep(1.5 * SECONDS_OF_ONE_SIGNAL)  # what comes sooner counts as the same signal
        assert server.stop() == 128 + signal.SIGTERM
    assert not wait_until_ended(family)


@pytest.mark.parametrize("which", ["the process that was started", "the process that answers"])
def test_no_process_outlives_a_front_that_is_killed(server: ServeProcess, which: str) -> None:
    family = server.family()
    assert any(is_running(each) for each in family)
    front = psutil.Process(server.process.pid)
    (front if which.endswith("started") else front.children()[0]).kill()
    assert not wait_until_ended([front, *family])


@contextmanager
def hidden(file: Path) -> Iterator[None]:
    """Take a file away meanwhile: a process that cannot do without it fails, and is started again and again."""
    aside = file.rename(file.with_name(f"{file.name}.aside"))
    try:
        yield
    finally:
        aside.rename(file)


def test_streams_end_with_an_error_and_a_new_process_answers_when_the_one_that_computes_is_killed(
    server: ServeProcess, folder: Path
) -> None:
    streams = [events_of(server.begin_stream(**LONG)) for _ in range(2)]
    for each in streams:
        next(each)
    before = server.engine()
    with hidden(folder / PACKAGE_FOLDER / "genai_config.json"):  # nothing takes its place before we have looked
        with held(before):  # no answer ends, and no slot is free, before it is killed
            waiting = server.begin_stream(**LONG)  # for a slot
            before.kill()
        for each in streams:
            assert list(each)[-1]["error"]["code"] == "engine_unavailable"
        assert waiting.getresponse().status == 503
        status, health = server.get("/health")
        assert (status, health["status"]) == (503, "unavailable")
        status, refused = server.chat()
        assert (status, refused["error"]["code"]) == (503, "engine_unavailable")
    wait_for(lambda: server.get("/health")[0] == 200, WAIT_SECONDS)
    assert server.chat()[0] == 200
    assert server.engine().pid != before.pid
    assert server.stop() == 0
