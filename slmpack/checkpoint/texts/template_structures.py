"""Structures of chats: orders of roles, tools and their calls, missing and odd contents, keys that a template knows."""

from collections.abc import Iterator
from itertools import pairwise, zip_longest
from typing import Any, TypeVar

from slmpack.checkpoint.texts.template_tools import (
    BARE_TOOLS,
    ODD_TOOLS,
    TOOLS,
    Message,
    assistant,
    call,
    result,
    system,
    tool_chats,
    user,
)
from slmpack.checkpoint.texts.template_words import TemplateWords

Structure = tuple[str, tuple[Message, ...], tuple[Message, ...] | None, bool]

T = TypeVar("T")
TURNS = 8
MOST_KEYS = 12
_LOOP = {
    "index",
    "index0",
    "revindex",
    "revindex0",
    "first",
    "last",
    "length",
    "previtem",
    "nextitem",
    "depth",
    "depth0",
    "cycle",
    "changed",
}
_METHODS = {name for kind in (str, list, dict) for name in dir(kind)} | _LOOP
_USUAL = {
    "role",
    "content",
    "tool_calls",
    "function",
    "arguments",
    "parameters",
    "properties",
    "type",
    "text",
    "id",
    "description",
    "required",
    "enum",
    "items",
    "tool_call_id",
    "image",
    "return",
}
_PARTS_KEYS = {"type", "text", "image"}


def structures_of(words: TemplateWords) -> Iterator[Structure]:
    """Yield chats of every structure that a template with these words may tell apart, the simple ones first."""
    kinds = [_turns(), _contents(), _orders(words.roles), _tools(), _keys(words)]
    if words.keys & _PARTS_KEYS or "image" in words.plain:
        kinds.append(_parts())
    yield from interleaved(kinds)


def interleaved(kinds: list[Iterator[T]]) -> Iterator[T]:
    """Yield the first of each kind, then the second of each, and so on."""
    for turn in zip_longest(*kinds):
        yield from (each for each in turn if each is not None)


def _turns() -> Iterator[Structure]:
    for count in range(1, TURNS + 1):
        turns = tuple(assistant(f"Answer {turn}.") if turn % 2 else user(f"Question {turn}?") for turn in range(count))
        for name, messages in {"": turns, "system and ": (system("Be brief."), *turns)}.items():
            for tools in (None, TOOLS) if count < TURNS / 2 else (None,):
                for prompt in (True, False):
                    yield f"{name}{count} turns{_with(tools)}, prompt {prompt}", messages, tools, prompt


def _with(tools: tuple[Message, ...] | None) -> str:
    return " with tools" if tools else ""


def _tools() -> Iterator[Structure]:
    for name, messages in tool_chats():
        for tools, prompt in ((TOOLS, True), (None, True), (TOOLS, False), (BARE_TOOLS, True)):
            yield (
                f"{name}{_with(tools)}, {'bare' if tools is BARE_TOOLS else 'prompt'} {prompt}",
                messages,
                tools,
                prompt,
            )
    for name, tools in {"odd tools": ODD_TOOLS, "an empty list of tools": (), "one tool": TOOLS[1:]}.items():
        yield name, (user("Hi"),), tools, True
        yield f"{name}, system", (system("Be brief."), user("Hi"), assistant("Hello.")), tools, False


def _orders(roles: tuple[str, ...]) -> Iterator[Structure]:
    hi, hello, brief = user("Hi"), assistant("Hello."), system("Be brief.")
    orders = {
        "two users": (hi, user("Anyone?")),
        "two users later": (hi, hello, user("And?"), user("Anyone?")),
        "two answers": (hi, hello, assistant("Again.")),
        "the assistant first": (hello, hi),
        "only an answer": (hello,),
        "only a system message": (brief,),
        "system in the middle": (hi, hello, brief, hi),
        "system last": (hi, brief),
        "two systems": (brief, brief, hi),
        "system, then the assistant": (brief, hello, hi),
        "system twice": (brief, hi, hello, brief, hi),
    }
    for role in dict.fromkeys(["developer", "tool", *roles, "critic"]):
        other = {"role": role, "content": f"From {role}."}
        orders |= {
            f"{role} first": (other, hi),
            f"{role} in the middle": (hi, hello, other, hi),
            f"{role} after a question": (hi, other, hello, hi),
            f"{role} last": (hi, hello, other),
            f"{role} for an answer": (hi, other),
        }
    for name, messages in orders.items():
        yield name, messages, None, True
        yield f"{name}, with tools", messages, TOOLS, True


def _contents() -> Iterator[Structure]:
    odd = {
        "empty": "",
        "a space": " ",
        "a word": "a",
        "padded": "  a \n b\t\n\n",
        "line ends": "\n\n",
        "other white space": "\u00a0\u2003a\x1f\x85\u3000",
        "carriage returns": "\r\na\r",
        "quotes": "\"a\" 'b' \\n \\ {{ x }} {% y %} {# z #}",
        "markup": "<b>&amp;</b> &lt;",
        "beyond ASCII": "é 你好 😀 \u2028",
        "long": "word " * 300,
        "null": None,
    }
    for name, text in odd.items():
        yield f"{name} everywhere", (system(text), user(text), assistant(text), user(text)), None, True
        yield f"{name}, no system", (user(text), assistant(text), user(text), assistant(text)), None, False
    for name, text in odd.items():
        yield f"{name} from the user, last", (user("Hi"), assistant("Hello."), user(text)), None, True
        yield f"{name} from the assistant", (user("Hi"), assistant(text), user("And?")), None, True
        yield f"{name} from the assistant, last", (user("Hi"), assistant(text)), None, False
        yield f"{name} from the system", (system(text), user("Hi")), None, True
        yield f"{name} from the system, with tools", (system(text), user("Hi")), TOOLS, True


def _keys(words: TemplateWords) -> Iterator[Structure]:
    """Yield chats whose messages have the other keys that the template looks up, such as `reasoning_content`."""
    keys = sorted(key for key in words.keys - _METHODS - _USUAL if key.isidentifier())[:MOST_KEYS]
    for key in keys:
        for value in ("\nSome text.\n", "", True):
            yield from _with_key(key, value)
    for first, second in pairwise(keys):
        yield f"{first} and {second}", (user("Hi"), assistant("Hello.", **{first: "a", second: "b"})), TOOLS, False


def _with_key(key: str, value: Any) -> Iterator[Structure]:
    more, name = {key: value}, f"{key} = {value!r}"
    answered = (user("Hi"), assistant("Hello.", **more))
    yield f"{name}, assistant", (*answered, user("And?")), None, True
    yield f"{name}, assistant last", answered, None, False
    everybody = tuple(message | more for message in (system("S"), user("Hi"), assistant(""), user("B")))
    yield f"{name}, all", everybody, None, True
    for text in (None, "Let me look."):
        call_turns = (user("Hi"), assistant(text, tool_calls=[call({})], **more), result("12:30"))
        yield f"{name}, a call and {text!r}", call_turns, TOOLS, True
        yield (
            f"{name}, a call and {text!r}, then an answer",
            (*call_turns, assistant("At 12:30.", **more)),
            TOOLS,
            False,
        )


def _parts() -> Iterator[Structure]:
    text, image = {"type": "text", "text": " Look. "}, {"type": "image"}
    for name, parts in {
        "text": [text],
        "two": [text, text],
        "an image": [image, text],
        "none": [],
        "a string": ["a"],
        "an unknown kind": [{"type": "smell"}],
    }.items():
        yield f"parts: {name}", (user(parts), assistant([text]), user(parts)), None, True
        yield f"parts: {name}, system", (system([text]), user(parts)), None, True
        yield f"parts: {name}, assistant last", (user(parts), assistant(parts)), TOOLS, False
