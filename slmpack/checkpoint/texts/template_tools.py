"""Chats with tools: schemas of functions, calls of them and their results, in the forms that templates tell apart."""

import json
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]
CALL_ID = "abcdefghi"  # nine letters or digits, as Mistral's templates ask for

TOOLS: tuple[Message, ...] = (
    {
        "type": "function",
        "function": {
            "name": "find_train",
            "description": 'Find a train\'s "times", früh & <late>.',
            "parameters": {
                "type": "object",
                "required": ["from"],
                "properties": {
                    "from": {"type": "string", "description": 'A town\'s "name"'},
                    "class": {"type": "string", "enum": ["first", "second"]},
                    "stops": {"type": "array", "items": {"type": "string"}, "description": "ünïcode <b>"},
                    "when": {"type": "object", "properties": {"hour": {"type": "integer"}}, "description": "Nested."},
                    "seats": {"type": "integer", "description": "How many"},
                    "price": {"type": ["number", "string"], "default": 1.5},
                    "tags": {"type": "array"},
                    "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
                    "kind": {"anyOf": [{"type": "string"}, {"type": "boolean"}]},
                },
            },
            "return": {"type": "string", "description": "A time."},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "time",
            "description": "Tell the time.",
            "parameters": {"type": "object", "properties": {}},
        },
    },
)
# A template may take `null` for a list of types and call itself without end, or may not do without parameters.
ODD_TOOLS: tuple[Message, ...] = (
    {
        "type": "function",
        "function": {
            "name": "odd",
            "description": "Odd.",
            "parameters": {"type": "object", "properties": {"a": {"type": ["string", "null"]}, "b": {"anyOf": []}}},
        },
    },
    {"type": "function", "function": {"name": "none", "description": "Without parameters."}},
)
BARE_TOOLS: tuple[Message, ...] = tuple(tool["function"] for tool in TOOLS)
_TWO = {"from": "Łódź", "stops": ["a", "b"], "class": None, "n": 1}


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def system(content: Any) -> Message:
    return {"role": "system", "content": content}


def call(arguments: Any, name: str = "find_train", number: str = CALL_ID) -> Message:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content: Any, number: str = CALL_ID) -> Message:
    return {"role": "tool", "name": "find_train", "tool_call_id": number, "content": content}


def tool_chats() -> Iterator[tuple[str, tuple[Message, ...]]]:
    """Yield chats with calls of tools and their results, by name."""
    yield from _with_one_call()
    yield from _with_more_calls()
    yield from _with_odd_calls()
    yield from _with_results()


def _with_one_call() -> Iterator[tuple[str, tuple[Message, ...]]]:
    """Yield chats of each form of arguments and of text beside the call; last, with a result, and answered."""
    for name, arguments in {"a dict": _TWO, "JSON text": json.dumps(_TWO), "nothing": {}, "empty text": ""}.items():
        for text in (None, "", "Let me look."):
            call_turns = (user("When?"), assistant(text, tool_calls=[call(arguments)]))
            label = f"a call with {name} and {text!r}"
            yield label, (*call_turns, result("12:30"), assistant("At 12:30."), user("Thanks."))
            yield f"{label}, the result last", (*call_turns, result("12:30"))
            yield f"{label}, last", call_turns


def _with_more_calls() -> Iterator[tuple[str, tuple[Message, ...]]]:
    hi, then, brief = user("When?"), user("Thanks."), system("Be brief.")
    results = (result("12:30"), result('{"t": "12:00", "ü": [1]}', "jklmnopqr"))
    for name, arguments in {"dicts": _TWO, "JSON texts": json.dumps(_TWO)}.items():
        first, second = call(arguments), call(arguments, "time", "jklmnopqr")
        both = assistant(None, tool_calls=[first, second])
        yield f"two calls with {name}", (hi, both, *results, assistant("Soon."), then)
        yield f"two calls with {name}, after a system message", (brief, hi, both, *results)
        one, other = assistant("One.", tool_calls=[first]), assistant("So.", tool_calls=[second])
        yield f"calls in turn with {name}", (hi, one, results[0], other, results[1])
        yield (
            f"a call in an earlier turn with {name}",
            (hi, one, results[0], assistant("Soon."), then, assistant("Bye.")),
        )
        yield f"a result with {name}, then the user", (hi, one, results[0], then)


def _with_odd_calls() -> Iterator[tuple[str, tuple[Message, ...]]]:
    hi, usual = user("When?"), call(_TWO)
    yield "no call in the list", (hi, assistant("Hello.", tool_calls=[]))
    yield "no call in the list, then the user", (hi, assistant("Hello.", tool_calls=[]), user("And?"))
    yield "null for calls", (hi, assistant("Hello.", tool_calls=None), user("And?"))
    yield "a call without content", (hi, {"role": "assistant", "tool_calls": [usual]}, result("12:30"))
    without = {"type": "function", "function": usual["function"]}
    yield "a call without id", (hi, assistant(None, tool_calls=[without]), result("12:30"))
    yield "a bare call", (hi, assistant(None, tool_calls=[usual["function"] | {"id": CALL_ID}]), result("12:30"))
    yield "a call without id, last", (hi, assistant(None, tool_calls=[without]))
    yield "a short id, last", (hi, assistant(None, tool_calls=[call({}, "time", "1")]))
    yield "a short id", (hi, assistant(None, tool_calls=[call({}, "time", "1")]), result("12:00", "1"))


def _with_results() -> Iterator[tuple[str, tuple[Message, ...]]]:
    call_turns = (user("When?"), assistant(None, tool_calls=[call(_TWO)]))
    contents = {
        "parts": [{"type": "text", "text": "12"}],
        "a dict": {"t": 12, "u": ["ü"]},
        "an empty dict": {},
        "a content in a dict": {"content": "12"},
        "nothing": None,
        "a number": 12,
        "padded": "\n 12 \n",
    }
    for name, content in contents.items():
        yield f"a result: {name}", (*call_turns, result(content), assistant("At 12."))
    yield "a result without a name", (*call_turns, {"role": "tool", "content": "12:30"})
    yield "a short id in the result", (*call_turns, result("12:30", "1"))
