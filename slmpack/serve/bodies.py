"""Bodies: what a client sends, read within bounds of size and time, and as JSON without what JSON does not have."""

import asyncio
import json
import math
from typing import Any, NoReturn

from starlette.requests import Request

from slmpack.log.chat_model import shown
from slmpack.serve.failures import BAD_REQUEST, TIMEOUT, TOO_LARGE, UNSUPPORTED, Failure

QUICK_BYTES = 1 << 15  # are parsed at once; what is longer beside everything else


async def read_json(request: Request, most_bytes: int, seconds: float) -> object:
    """Return the value of a request's body.

    Raises:
        Failure: it is not said to be JSON, is none, is too long, or has not come in time.
        ClientDisconnect: nobody waits for an answer.
    """
    require_json(request)
    body = await read_body(request, most_bytes, seconds)
    return parse_json(body) if len(body) <= QUICK_BYTES else await asyncio.to_thread(parse_json, body)


def require_json(request: Request) -> None:
    """Refuse what is not said to be JSON: a page of another site could have a browser send it without asking.

    Raises:
        Failure: there is another type, an encoding, or several of them.
    """
    found = request.headers.getlist("content-type")
    kind, *options = (part.strip().lower() for part in "".join(found).split(";"))
    if len(found) != 1 or kind != "application/json" or any(each != "charset=utf-8" for each in options):
        raise _unsupported("Content-Type", found, "one of application/json, in UTF-8,")
    encodings = request.headers.getlist("content-encoding")
    if any(each.lower() != "identity" for each in encodings):
        raise _unsupported("Content-Encoding", encodings, "none")


async def read_body(request: Request, most_bytes: int, seconds: float) -> bytes:
    """Return the body.

    Raises:
        Failure: it is too long, or has not come in time.
        ClientDisconnect: nobody waits for an answer.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most_bytes:
        raise _too_large(most_bytes)
    try:
        async with asyncio.timeout(seconds):
            return await _collected(request, most_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {seconds:g} s; send it whole"
        raise Failure(TIMEOUT, message, code="timeout", headers={"Connection": "close"}) from None


async def _collected(request: Request, most_bytes: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
    return bytes(body)


def parse_json(body: bytes) -> object:
    """Return the value of a JSON text.

    Raises:
        Failure: it is none, is nested too deep, or has a field twice.
    """
    try:
        return json.loads(body, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_fields)
    except RecursionError:
        raise Failure(BAD_REQUEST, "the body is nested too deep; a flat JSON object is expected") from None
    except ValueError as error:  # of UTF-8 as well
        reason = str(error)[:200]
        raise Failure(BAD_REQUEST, f"the body is no JSON ({reason}); a JSON object is expected") from None


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields; JSON itself does not say which of two with one name counts."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Failure(BAD_REQUEST, f"the field {shown(twice)} was found twice in one object; once is expected")
    return fields


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _too_large(most_bytes: int) -> Failure:
    return Failure(TOO_LARGE, f"the body has more than {most_bytes} bytes; send a shorter one", code="body_too_large")


def _unsupported(header: str, found: list[str], expected: str) -> Failure:
    message = f"the header {header}: {shown(', '.join(found) or 'nothing')} was found; {expected} is expected"
    return Failure(UNSUPPORTED, message, code="unsupported_media_type")
