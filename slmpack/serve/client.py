"""Client: a model behind a server that speaks OpenAI's protocol, slmpack's own or another.

Source: OpenAI's API reference, "Chat completions: streaming"; the WHATWG's HTML standard, "Server-sent events".
"""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from slmpack.errors import NetworkError, SlmpackError, SourceError, UsageError
from slmpack.log.conversation import Message
from slmpack.machine.expected import why_unreachable

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 600.0  # without a byte: a long prompt in a long queue
LONGEST_LINE = 4 << 20  # bytes; an event has some hundred
LARGEST_BODY = 16 << 20
LONGEST_REASON = 500  # characters of a server's own words
REFUSED_KEY = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
END = b"[DONE]"


class RemoteModel:
    """A model behind a server; `AnsweringModel` says what its methods do. As a context it is connected.

    Args:
        url: of the server, with or without `/v1`.
        name: of the model there; None: the first that the server lists.
        key: sent as `Authorization: Bearer`; None: none is sent.

    Raises:
        UsageError: the URL or the key cannot be right.
    """

    has_turns = True

    def __init__(self, url: str, name: str | None, key: str | None) -> None:
        self._address = _address(url)
        self._name = name
        headers = {} if key is None else {"Authorization": f"Bearer {_checked(key)}"}
        timeout = httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx.Client(base_url=f"{self._address}/v1/", headers=headers, timeout=timeout)

    def __enter__(self) -> "RemoteModel":
        """Find the model.

        Raises:
            NetworkError: there is no server.
            SourceError: it does not say which models it has.
        """
        try:
            self._name = self._name or self._first_name()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stream(self, messages: list[Message], limits: Mapping[str, Any]) -> Generator[str]:
        """Yield the pieces of the answer; what leaves this early closes the connection, so that the server stops."""
        ended = False
        with self._response("POST", "chat/completions", self._request(messages, limits) | {"stream": True}) as response:
            for event in _events(response):
                if event is None:
                    ended = True
                    break
                if "error" in event:
                    raise self._refusal(_reason(event))
                piece, is_last = _piece_of(event)
                ended = ended or is_last
                yield piece
        if not ended:
            raise self._refusal("the answer broke off")

    def count_prompt_tokens(self, messages: list[Message]) -> int | None:
        """Return the tokens of the rendered chat, of which a short answer tells."""
        request = self._request(messages, {"max_tokens": 1})
        usage = self._json("POST", "chat/completions", request).get("usage")
        return usage.get("prompt_tokens") if isinstance(usage, dict) else None

    def _request(self, messages: list[Message], limits: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self._name, "messages": messages, "temperature": 0.0, **limits}

    def _first_name(self) -> str:
        listed = self._json("GET", "models").get("data")
        first = listed[0] if isinstance(listed, list) and listed else None
        name = first.get("id") if isinstance(first, dict) else None
        if not isinstance(name, str):
            raise SourceError(f"{self._address} lists no model", "one that answers", "name one, or start it with one")
        return name

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        with self._response(method, path, body) as response:
            content = _read(response)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._refusal(f"{response.url.path} is no JSON object")
        return found

    @contextmanager
    def _response(self, method: str, path: str, body: object = None) -> Iterator[httpx.Response]:
        """Give an answer with status 200; every failure until the end of the block is an error of ours."""
        try:
            with self._client.stream(method, path, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._failure(response)
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            cause = why_unreachable(error) or str(error)
            advice = "start it with `slmpack serve`, or correct --url"
            raise NetworkError(f"{self._address} cannot be reached ({cause})", "a server there", advice) from error
        except httpx.TimeoutException as error:
            raise self._refusal(f"nothing came for {SILENT_SECONDS:.0f} s") from error
        except httpx.TransportError as error:
            raise self._refusal(f"the connection broke off ({error or type(error).__name__})") from error

    def _failure(self, response: httpx.Response) -> SlmpackError:
        """Return the error for an answer with another status."""
        try:
            reason = _reason(json.loads(_read(response)))
        except ValueError:
            reason = ""
        status = response.status_code
        found = f"{self._address} answers HTTP {status}: {reason or response.reason_phrase}"
        if status in REFUSED_KEY:
            return SourceError(found, "a key that it knows", "give --api-key-file FILE, or set SLMPACK_API_KEY")
        if status == httpx.codes.NOT_FOUND:
            return SourceError(found, "a model that it has", "name one of its models, or correct --url")
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return SourceError(found, "an answer", "ask again in a moment")
        return SourceError(found, "an answer", "change the question or the options as it says")

    def _refusal(self, found: str) -> SourceError:
        return SourceError(f"{self._address} does not answer: {found}", "an answer in OpenAI's form", "ask again")


def _address(url: str) -> str:
    """Return a server's URL without `/v1`.

    Raises:
        UsageError: it is none.
    """
    expected = "http://HOST:PORT or https://HOST"
    try:
        parts = urlsplit(url)
        right = parts.scheme in {"http", "https"} and parts.hostname and not (parts.query or parts.fragment)
        _ = parts.port, httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        right = False
    if not right:
        raise UsageError(f"--url {url!r} is no server's address", expected, "correct it")
    return url.rstrip("/").removesuffix("/v1")


def _checked(key: str) -> str:
    """Return a key that a header can have.

    Raises:
        UsageError: it has other characters.
    """
    if not (key.isascii() and key.isprintable() and key.strip()):
        raise UsageError("the API key has characters that no header can have", "printable ASCII", "correct it")
    return key.strip()


def _reason(body: object) -> str:
    """Return what a server says of a failure: OpenAI's form, Ollama's, or that of a framework."""
    found = body.get("error") or body.get("detail") or body.get("message") if isinstance(body, dict) else None
    message = found.get("message") if isinstance(found, dict) else found
    return "" if message is None else " ".join(str(message).split())[:LONGEST_REASON]


def _piece_of(event: dict[str, Any]) -> tuple[str, bool]:
    """Return the text in a chunk of one answer, and whether it says how the answer ended."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):  # a chunk of the usage has none
        return "", False
    delta = choice.get("delta")
    content = delta.get("content") if isinstance(delta, dict) else None
    return content if isinstance(content, str) else "", choice.get("finish_reason") is not None


def _read(response: httpx.Response) -> bytes:
    """Return a body of a plain size.

    Raises:
        httpx.ReadError: it is larger.
    """
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > LARGEST_BODY:
            raise httpx.ReadError(f"more than {LARGEST_BODY} bytes", request=response.request)
    return bytes(content)


def _events(response: httpx.Response) -> Iterator[dict[str, Any] | None]:
    """Yield the objects of a stream, and None where it says that it ends."""
    for line in _lines(response):
        if not line.startswith(b"data:"):
            continue
        if (data := line[len(b"data:") :].strip()) == END:
            yield None
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise httpx.RemoteProtocolError(f"no JSON: {data[:80]!r}", request=response.request) from error
        if isinstance(event, dict):
            yield event


def _lines(response: httpx.Response) -> Iterator[bytes]:
    rest = b""
    for part in response.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
        if len(rest) > LONGEST_LINE:
            raise httpx.RemoteProtocolError(f"a line of more than {LONGEST_LINE} bytes", request=response.request)
    if rest:
        yield rest
