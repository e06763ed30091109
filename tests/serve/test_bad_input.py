"""What no client should send: each is refused by a 400 and its kin, at once, and the server answers the next."""

import errno
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving, wait_for

from slmpack.records import Package

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
START = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, '


@pytest.fixture(scope="module")
def impatient(small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that gives a client 3 s: for those tests alone in which that is exceeded."""
    folder = tmp_path_factory.mktemp("impatient")
    with serving(small_package, folder, workspace, "--slots", "4", "--threads", "1", "--body-seconds", "3") as found:
        yield found


@pytest.fixture(autouse=True)
def goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each of these the same process computes, nothing is left in its slots, and it answers."""
    served: Served = request.getfixturevalue("impatient" if "impatient" in request.fixturenames else "served")
    restarts = served.value("engine_restarts")
    yield
    wait_for(lambda: served.value("slots_busy") + served.value("queue") == 0)
    assert served.post(CHAT, GOOD)[0] == 200
    assert served.value("engine_restarts") == restarts
    assert "Traceback" not in served.log.read_text()


@contextmanager
def connected(served: Served, buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as line:
        if buffer is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        line.settimeout(600)
        line.connect(("127.0.0.1", served.port))
        yield line


def head(length: int | str, path: str = CHAT, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def all_of(line: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    found = b""
    try:
        while part := line.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


def answer_within(line: socket.socket, content: bytes) -> bytes:
    """Send byte by byte, ten a second, until there is an answer; nothing if none came before all was sent."""
    line.settimeout(0.1)
    for byte in content:
        try:
            line.sendall(bytes([byte]))
        except ConnectionError:  # the answer is there, and the connection closed
            return all_of(line)
        try:
            return line.recv(1 << 16)
        except TimeoutError:
            continue
    return b""


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# ------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/invocations"])
@pytest.mark.parametrize("body", [
    b"", b"null", b"[]", b"3", b'"text"', b"{", b"{}x", b"\xff\xfe", b"{'a': 1}", b"NaN", b'{"messages": NaN}',
    b'{"a": Infinity}', b'{"a": 1e999}', b"[" * 100_000, b'{"a":' * 50_000, b'{"messages": [], "messages": []}',
    b"{}", b'{"model": 5}', b'{"\\ud800": 1}', b'{"model": "\\ud800"}', b"9" * 5000,
])  # fmt: skip
def test_a_body_that_is_no_request_is_refused(served: Served, path: str, body: bytes) -> None:
    status, answer = served.post(path, body)
    assert status in (400, 404)
    assert answer["error"]["type"] == "invalid_request_error"
    assert len(answer["error"]["message"]) < 1000


@pytest.mark.parametrize(("field", "param"), [
    (b'"temperature": 1e308', "temperature"), (b'"seed": 99999999999999999999999', "seed"),
    (b'"seed": 1.0', "seed"), (b'"n": true', "n"), (b'"stop": "\\ud800"', "stop"), (b'"stop": {"a": 1}', "stop"),
    (b'"stream": "yes"', "stream"), (b'"user": 5', "user"),
    (b'"max_completion_tokens": 9223372036854775807', "max_completion_tokens"),
    (b'"logit_bias": {"-1": 1}', "logit_bias"), (b'"logit_bias": {"5": "x"}', "logit_bias"),
    (b'"logit_bias": {"1e3": 1}', "logit_bias"), (b'"logit_bias": [1]', "logit_bias"),
    (b'"logit_bias": {"\\u0663": 1}', "logit_bias"),
    (b'"response_format": "json"', "response_format"), (b'"response_format": {"type": ["json_object"]}',
                                                        "response_format.type"),
    (b'"stream_options": 5', "stream_options"), (b'"logprobs": 1', "logprobs"), (b'"min_p": -1', "min_p"),
    (b'"tools": ' + b"[" * 30 + b"]" * 30, None), (b'"user": "' + b"x" * 100 + b'\\u0000"', "user"),
])  # fmt: skip
def test_a_field_of_the_wrong_kind_is_named(served: Served, field: bytes, param: str | None) -> None:
    status, answer = served.post(CHAT, START + field + b"}")
    assert status == 400
    assert answer["error"]["param"] == param or param is None


@pytest.mark.parametrize("messages", [
    [{"role": "user", "content": "x"}] * 10_001,
    [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": "a\0"}],
    [{"role": "wizard", "content": "a"}],
    [{"role": ["user"], "content": "a"}],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": []}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": "a", "colour": "red"}],
    [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}],
    [{"role": "tool", "content": "a", "tool_call_id": "x"}],
    [["user", "a"]],
    "hello",
    [{"role": "user", "content": "word " * 100_000}],
    [{"role": "user", "content": "x" * 3_000_000}],
])  # fmt: skip
def test_messages_of_the_wrong_kind_are_refused_and_named(served: Served, messages: Any) -> None:
    status, answer = served.post(CHAT, {"messages": messages, "max_tokens": 1})
    assert status == 400
    assert answer["error"]["param"].startswith("messages")


def test_a_text_without_a_token_is_refused(served: Served) -> None:
    """The small tokenizer has no token for this letter, and leaves it out."""
    for prompt in ("\u0004", ["Hello", "\u0004"]):
        status, answer = served.post("/v1/completions", {"prompt": prompt, "max_tokens": 2})
        assert (status, answer["error"]["param"]) == (400, "prompt")


def test_ten_thousand_messages_are_read_or_refused_by_their_length(served: Served) -> None:
    status, answer = served.post(CHAT, {"messages": [{"role": "user", "content": "x"}] * 10_000, "max_tokens": 1})
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("headers", [
    {"Content_Type": "text/plain"}, {"Content_Type": "application/x-www-form-urlencoded"},
    {"Content_Type": "application/json; charset=utf-16"}, {"Content_Encoding": "gzip"},
])  # fmt: skip
def test_a_body_that_is_not_said_to_be_json_is_refused(served: Served, headers: dict[str, str]) -> None:
    status, answer = served.post(CHAT, GOOD, **headers)
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


def test_two_content_types_are_refused_and_one_with_its_charset_is_not(served: Served) -> None:
    body = json.dumps(GOOD).encode()
    with connected(served) as line:
        line.sendall(head(len(body), CHAT, "Content-Type: text/plain", "Connection: close") + body)
        assert status_of(all_of(line)) == 415
    assert served.post(CHAT, GOOD, Content_Type="application/json; charset=UTF-8")[0] == 200


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", CHAT, 405), ("POST", "/health", 405), ("GET", "/nothing", 404), ("POST", "/v1/embeddings", 404),
    ("DELETE", "/v1/models", 405), ("GET", "/v1/chat/../../etc/passwd", 404), ("GET", "/%00", 404),
])  # fmt: skip
def test_a_path_that_is_not_there_is_an_error_of_the_same_form(
    served: Served, method: str, path: str, status: int
) -> None:
    with connected(served) as line:
        line.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = all_of(line)
    assert status_of(answer) == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


# ------------------------------------------------------------------------------------------ sizes


def test_a_body_of_100_megabytes_is_refused_by_its_length(served: Served) -> None:
    with connected(served) as line:
        line.sendall(head(100_000_000, CHAT, "Connection: close"))
        answer = all_of(line)
    assert status_of(answer) == 413
    assert b"more than 4194304 bytes" in answer


@pytest.mark.parametrize("chunked", [False, True])
def test_the_rest_of_a_body_that_is_too_long_is_not_read(served: Served, chunked: bool) -> None:
    sent, block = 0, b"x" * 100_000
    with connected(served) as line:
        encoding = "Transfer-Encoding: chunked"
        line.sendall(head(100_000_000).replace(b"Content-Length: 100000000", encoding.encode()) if chunked
                     else head(100_000_000))  # fmt: skip
        with pytest.raises(ConnectionError):
            while sent < 100_000_000:
                line.sendall(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
                sent += len(block)
        answer = all_of(line)
    assert sent < 30_000_000  # the kernel's buffers are part of it
    assert status_of(answer) == 413


# ------------------------------------------------------------------------------------------ slow and broken clients


def test_a_body_that_never_comes_is_a_timeout(impatient: Served) -> None:
    with connected(impatient) as line:
        line.sendall(head(500) + b'{"messages"')
        answer = all_of(line)  # the connection is closed in its time
    assert status_of(answer) == 408
    assert b'"code":"timeout"' in answer


def test_a_body_that_comes_byte_by_byte_is_a_timeout(impatient: Served) -> None:
    """There are bytes for ten minutes: the answer comes before the last of them, however slow the server is."""
    with connected(impatient) as line:
        line.sendall(head(6000))
        assert status_of(answer_within(line, b"{" + b" " * 5999)) == 408


def test_headers_that_come_byte_by_byte_are_a_timeout(impatient: Served) -> None:
    with connected(impatient) as line:
        headers = b"GET /health HTTP/1.1\r\n" + b"X-Drip: 1\r\n" * 550  # for ten minutes, too
        assert status_of(answer_within(line, headers)) == 408


def test_a_connection_that_says_nothing_is_closed(impatient: Served) -> None:
    with connected(impatient) as silent, connected(impatient) as answered:
        answered.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(answered.recv(1 << 16)) == 200
        answered.sendall(b"GET /ver")
        assert silent.recv(1) == b""
        assert status_of(all_of(answered)) == 408


def test_half_open_connections_do_not_keep_others_out(served: Served) -> None:
    lines = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(200)]
    for line in lines[::2]:
        line.sendall(head(10))
    assert served.post(CHAT, GOOD)[0] == 200
    for line in lines:
        line.close()


@pytest.mark.parametrize("garbage", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"hello\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
])  # fmt: skip
def test_what_is_no_http_is_refused(served: Served, garbage: bytes) -> None:
    with connected(served) as line:
        line.sendall(garbage)
        answer = all_of(line)
    assert status_of(answer) in (400, 431)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_client_that_leaves_within_its_body_is_forgotten(served: Served) -> None:
    with connected(served) as line:
        line.sendall(head(500) + b'{"mess')
    wait_for(lambda: served.value("requests_total", path=CHAT, status="499") > 0)


def test_requests_in_a_pipeline_are_answered_in_their_order(served: Served) -> None:
    bodies = [json.dumps(GOOD | {"max_tokens": tokens}).encode() for tokens in (3, 1, 2)]
    with connected(served) as line:
        line.sendall(b"".join(head(len(body)) + body for body in bodies))
        line.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = all_of(line)
    assert answer.count(b"HTTP/1.1 200") == 4
    found = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:4]]
    assert [each["usage"]["completion_tokens"] for each in found] == [3, 1, 2]


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_reads_nothing_of_a_long_answer_is_left(impatient: Served, streams: bool) -> None:
    """The token that ends a turn is banned, so that there is more than the system's buffers hold."""
    long = {"max_tokens": 700, "n": 4, "logprobs": True, "top_logprobs": 20, "logit_bias": {"2": -100}}
    body = json.dumps(GOOD | long | {"stream": streams}).encode()
    before = impatient.value("requests_total", path=CHAT)
    with connected(impatient, buffer=4096) as line:
        line.sendall(head(len(body)) + body)
        assert status_of(line.recv(200)) == 200
        wait_for(lambda: impatient.value("requests_total", path=CHAT) > before)
        wait_for(lambda: _is_reset(line))


def _is_reset(line: socket.socket) -> bool:
    return line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_a_client_that_closes_its_side_is_gone(served: Served) -> None:
    body = json.dumps(GOOD | {"max_tokens": 4000, "logit_bias": {"2": -100}}).encode()
    left = served.value("requests_total", path=CHAT, status="499")
    with connected(served) as line:
        line.sendall(head(len(body)) + body)
        line.shutdown(socket.SHUT_WR)
        assert all_of(line) == b""
        wait_for(lambda: served.value("requests_total", path=CHAT, status="499") > left)
        wait_for(lambda: served.value("slots_busy") == 0)
