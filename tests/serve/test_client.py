"""Client: what servers that break off, lie or speak another protocol send is one error, and never an answer."""

from contextlib import closing

import pytest
from canned_server import ENDLESS, PIECE, sending
from mlflow_server import free_port

from slmpack.errors import NetworkError, SlmpackError, SourceError, UsageError
from slmpack.serve.client import LONGEST_LINE, RemoteModel

HI = [{"role": "user", "content": "Hi"}]
LAST = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize(
    "body",
    [PIECE + LAST, PIECE + b"data: [DONE]\n\n", b": a comment\r\n\r\n" + PIECE.replace(b"\n", b"\r\n") + LAST],
)
def test_an_answer_is_the_text_of_its_chunks(body: bytes) -> None:
    with sending(body) as server, RemoteModel(server.url, "a", None) as model:
        assert "".join(model.stream(HI, {})) == "Hello"


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (PIECE, 200, "the answer broke off"),
        (b"<html>Welcome</html>", 200, "the answer broke off"),
        (PIECE + b'data: {"error": {"message": "the process ended"}}\n\n', 200, "the process ended"),
        (b"data: {half\n\n", 200, "no JSON"),
        (b"data: " + b"x" * (LONGEST_LINE + (1 << 20)), 200, "a line of more than"),
        (b'{"error": "model not loaded"}', 503, "HTTP 503: model not loaded; an answer; ask again in a moment"),
        (b'{"detail": "Not Found"}', 404, "HTTP 404: Not Found; a model that it has"),
        (b"\x1b[2Jno", 500, "HTTP 500: Internal Server Error"),
        (b'{"error": {"message": "\\u001b[2Jgone"}}', 400, r"HTTP 400: \\x1b\[2Jgone"),
    ],
)
def test_what_is_no_whole_answer_is_an_error_of_one_line(body: bytes, status: int, told: str) -> None:
    with (
        sending(body, status) as server,
        RemoteModel(server.url, "a", None) as model,
        pytest.raises(SourceError, match=told) as caught,
    ):
        list(model.stream(HI, {}))
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_left_early_closes_the_connection() -> None:
    with sending(ENDLESS) as server, RemoteModel(server.url, "a", None) as model:
        with closing(model.stream(HI, {})) as pieces:
            assert next(pieces) == "Hello"
        assert server.left.wait(600)


def test_a_server_that_is_away_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"  # which nobody takes meanwhile
    with pytest.raises(NetworkError, match=rf"{url} cannot be reached \(the connection is refused\); a server there;"):
        RemoteModel(url, None, None).__enter__()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://a?b=c", "http://[::"]
)
def test_what_is_no_address_is_bad_usage(url: str) -> None:
    with pytest.raises(UsageError, match="is no server's address"):
        RemoteModel(url, None, None)


@pytest.mark.parametrize("key", ["ключ", "a\nb", " "])
def test_a_key_that_no_header_can_have_is_bad_usage(key: str) -> None:
    with pytest.raises(SlmpackError, match="the API key has characters"):
        RemoteModel("http://127.0.0.1:9", None, key)
