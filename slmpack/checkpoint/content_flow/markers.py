"""Markers: texts that chat formats are made of. A template may look for them in a message; other words it may not.

Only markers may be looked for, so that no word of a user's is a trigger. Only markers, names of roles and white space
may be written because one was found, so that no sentence and no address can be: neither `.`, `:` and `//` nor a space
between words is in any of them.
"""

import re
from collections.abc import Callable, Collection

_TAGS = (
    "think|thinking|thought|reasoning|analysis|answer|response|solution|seed:think"
    "|tool|tools|tool_call|tool_calls|tool_response|tool_responses|tool_result|tool_results|function|function_call"
    "|function_results|observation|output|start_of_turn|end_of_turn|start_of_image|s|bos|eos|INST|SYS"
    "|assistant|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|TOOL_CONTENT|THINK|SYSTEM_PROMPT|IMG"
)
# What is used to choose whether a model thinks; SmolLM3 and Nemotron look for it, GLM writes it.
_SWITCHES = r"/think|/no_think|/nothink|/system_override"
_CONTROL = (
    r"(?:<[|\uff5c][\w\u2581]{1,32}[|\uff5c]?>|<[\w\u2581]{1,32}[|\uff5c]>)"  # Gemma 4 opens with <|x>, ends with <x|>
)
_ROLES = "system|user|assistant|tool|model|developer|ipython|human|function|observation|critic"
_CHANNELS = "analysis|commentary|final"
_LABELS = frozenset({"Picture ", "Video ", ": "})  # of pictures, by their number; what has no more in it is no address
_SHORT = 5  # `False`; a longer number may be one to call
_LOOKED_FOR = re.compile(rf"(?:</?(?:{_TAGS})>|\[/?(?:{_TAGS})\]|{_SWITCHES}|{_CONTROL}(?:{_CHANNELS}|{_ROLES})?)+")
_WRITTEN = re.compile(
    rf"(?:\s|</?[A-Za-z_]\w{{0,31}}>|\[/?[A-Z_]{{1,32}}\]|{_CONTROL}|(?<!\w)(?:{_ROLES}|{_CHANNELS}|{_SWITCHES})(?!\w))*"
)


def is_marker(text: object) -> bool:
    """Say whether a template may look for `text` in a message."""
    return isinstance(text, str) and _LOOKED_FOR.fullmatch(text.strip("\n")) is not None


def is_switch(text: object) -> bool:
    """Say whether `text` chooses a mode."""
    return isinstance(text, str) and re.fullmatch(_SWITCHES, text) is not None


def is_markup(text: object) -> bool:
    """Say whether `text` has no words: it may be written where a marker was found."""
    if not isinstance(text, str):
        return len(str(text)) <= _SHORT
    return text in _LABELS or _WRITTEN.fullmatch(text) is not None


def is_space(text: object) -> bool:
    """Say whether `text` is white space."""
    return isinstance(text, str) and text.isspace()


def all_are(kind: Callable[[object], bool], texts: Collection[object] | None) -> bool:
    """Say whether the possible texts of a value are known, and are all of that kind."""
    return bool(texts) and all(kind(text) for text in texts or ())
