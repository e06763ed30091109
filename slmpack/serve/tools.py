r"""Tools: functions that a model may call, in the form that its chat template teaches it.

    tools, messages --the template--> prompt          answer --ToolText--> text, calls

Two forms are known. Those of other templates are refused, since nobody could tell a call from text.

    hermes   <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>, some of them   Hermes, Qwen 2.5 and 3
    llama    {"name": ..., "parameters": {...}}, the whole answer                           Llama 3.1 and later
"""

import json
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmpack.log.chat_model import CHAT_FORMAT, RequestError, Row, read_content, read_flag, read_text, require_known
from slmpack.serve.grammar import OPTIONS, WHITESPACE, GrammarError, require_bounded_schema

MOST_TOOLS = 128
LONGEST_DESCRIPTION = 1 << 14  # characters
OPEN, CLOSE = "<tool_call>", "</tool_call>"
TOOL_FIELDS = frozenset({"type", "function"})
FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict"})
CALL_FIELDS = frozenset({"id", "type", "function", "index"})
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class ToolForm:
    """How a template has a model write calls.

    Attributes:
        arguments: the key of a call's arguments.
        marked: whether a call stands between marks; else it is the whole answer.
    """

    arguments: str
    marked: bool

    def grammar(self, tools: list[dict[str, Any]]) -> str:
        """Return the grammar of exactly one call of one of the tools, as llguidance reads it."""
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool["function"]["name"]}, self.arguments: _parameters(tool)},
                "required": ["name", self.arguments],
                "additionalProperties": False,
            }
            for tool in tools
        ]
        schema = json.dumps({OPTIONS: {"whitespace_pattern": WHITESPACE}, "anyOf": calls})
        if not self.marked:
            return f"start: %json {schema}"
        return f'start: "{OPEN}\\n" call "\\n{CLOSE}"\ncall: %json {schema}'


HERMES = ToolForm(arguments="arguments", marked=True)
LLAMA = ToolForm(arguments="parameters", marked=False)


def form_of(template: str) -> ToolForm | None:
    """Return the form of a template's calls; None where it has no tools, or an unknown form."""
    if not re.search(r"\btools\b", template):
        return None
    if OPEN in template and '"arguments"' in template:
        return HERMES
    if '"parameters"' in template and "ipython" in template:  # Llama's role for what a tool returned
        return LLAMA
    return None


def form_in(package: Path) -> ToolForm | None:
    """Return the form of a package's calls, by the template that is taken when there are tools."""
    chat_format = json.loads((package / CHAT_FORMAT).read_bytes())
    return form_of(chat_format["tool_template"] or chat_format["chat_template"])


@dataclass(frozen=True)
class Tooled:
    """A chat with tools.

    Attributes:
        messages: as templates read them: arguments of calls are objects.
        tools: what the template is given; None: no tools.
        grammar: of a call that must come; None: the model chooses.
    """

    form: ToolForm
    messages: list[Row]
    tools: list[dict[str, Any]] | None
    grammar: str | None


def read_tools(row: Row, form: ToolForm | None) -> Tooled | None:
    """Return the chat with tools that a request is; None for one without any.

    Raises:
        RequestError: the model's template has no tools of a known form, or a field is not what it should be.
    """
    choice = row.get("tool_choice")
    several = read_flag(row, "parallel_tool_calls", default=True)
    if not row.get("tools") and not _speaks_of_tools(row.get("messages")):
        if choice not in (None, "none", "auto"):
            raise RequestError.about("tool_choice", choice, "'none' or 'auto' without tools")
        if row.get("tools", []) != []:
            raise RequestError.about("tools", row["tools"], "a list of functions")
        return None
    if form is None:
        field = "tools" if row.get("tools") else "messages"
        raise RequestError(f"{field}: tools were found; the model's chat template has none of a form that is known; "
                           "a chat without tools is expected")  # fmt: skip
    tools = _tools(row.get("tools", []))
    chosen = _chosen(choice, tools)
    if not several and not chosen and tools and choice != "none" and form.marked:  # else there is one call at most
        raise RequestError.about("parallel_tool_calls", several, "true, or a tool_choice that is 'required' or a tool")
    messages = _messages(row.get("messages"))
    if not chosen or row.get("response_format", {"type": "text"}) == {"type": "text"}:
        tooled = Tooled(form, messages, None if choice == "none" or not tools else tools, None)
        return replace(tooled, grammar=form.grammar(chosen)) if chosen else tooled
    raise RequestError.about("response_format", row["response_format"], "nothing beside a tool that must be called")


def _speaks_of_tools(messages: object) -> bool:
    rows = messages if isinstance(messages, list) else []
    return any(isinstance(each, dict) and (each.get("role") == "tool" or each.get("tool_calls")) for each in rows)


def _tools(found: object) -> list[dict[str, Any]]:
    if not isinstance(found, list) or len(found) > MOST_TOOLS:
        raise RequestError.about("tools", found, f"a list of up to {MOST_TOOLS} functions")
    tools = [_tool(f"tools[{index}]", each) for index, each in enumerate(found)]
    names = [tool["function"]["name"] for tool in tools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError.about("tools", twice[0], "each name once")
    return tools


def _tool(field: str, tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
        raise RequestError.about(field, tool, "a dict of type 'function' with function")
    require_known(tool, TOOL_FIELDS, field)
    require_known(function, FUNCTION_FIELDS, f"{field}.function")
    _name(f"{field}.function.name", function.get("name"))
    if len(read_text(f"{field}.function.description", function.get("description") or "")) > LONGEST_DESCRIPTION:
        raise RequestError(f"{field}.function.description: more than {LONGEST_DESCRIPTION} characters were found")
    if not isinstance(function.get("parameters") or {}, dict):
        raise RequestError.about(f"{field}.function.parameters", function["parameters"], "a JSON schema")
    try:
        require_bounded_schema(function.get("parameters") or {})
    except GrammarError as error:
        raise RequestError(f"{field}.function.parameters: {error}") from error
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _name(field: str, name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError.about(field, name, "1 to 64 letters, digits, _ or -")
    return name


def _parameters(tool: dict[str, Any]) -> dict[str, Any]:
    return tool["function"].get("parameters") or {"type": "object"}


def _chosen(choice: object, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tools of which one must be called; none where the model chooses."""
    if choice in (None, "auto", "none"):
        return []
    if not tools:
        raise RequestError.about("tool_choice", choice, "tools to choose from")
    if choice == "required":
        return tools
    named = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, dict) else None
    found = [tool for tool in tools if tool["function"]["name"] == name]
    if not found:
        raise RequestError.about("tool_choice", choice, "'none', 'auto', 'required' or the name of one of the tools")
    return found


def _messages(found: object) -> list[Row]:
    if not isinstance(found, list) or not found:
        raise RequestError.about("messages", found, "a list of one message or more")
    return [_message(f"messages[{index}]", each) for index, each in enumerate(found)]


def _message(field: str, message: object) -> Row:
    if not isinstance(message, dict):
        raise RequestError.about(field, message, "a dict with role and content")
    role, calls = message.get("role"), message.get("tool_calls")
    if role not in ("system", "user", "assistant", "tool"):
        raise RequestError.about(f"{field}.role", role, "one of system, user, assistant, tool")
    known = {"role", "content", "name", "refusal"} | {"assistant": {"tool_calls"}, "tool": {"tool_call_id"}}.get(
        role, set()
    )
    require_known(message, frozenset(known), field)
    said = message.get("content")
    content = "" if calls and said is None else read_content(f"{field}.content", said)
    if not calls:
        return {"role": role, "content": content}
    if not isinstance(calls, list):
        raise RequestError.about(f"{field}.tool_calls", calls, "a list of calls")
    earlier = [_earlier(f"{field}.tool_calls[{place}]", call) for place, call in enumerate(calls)]
    return {"role": role, "content": content, "tool_calls": earlier}


def _earlier(field: str, call: object) -> Row:
    """Return a call of an earlier answer as templates read it; OpenAI's clients send its arguments as a text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise RequestError.about(field, call, "a dict with id, type and function")
    require_known(call, CALL_FIELDS, field)
    require_known(function, frozenset({"name", "arguments"}), f"{field}.function")
    arguments = function.get("arguments")
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RequestError.about(f"{field}.function.arguments", arguments, "the JSON text of an object")
    name = _name(f"{field}.function.name", function.get("name"))
    return {"type": "function", "function": {"name": name, "arguments": parsed}}


class ToolText:
    """Divides one answer into text and calls, as it comes; what may become a call is held back.

    Attributes:
        calls: those that were found so far, in OpenAI's form.
    """

    def __init__(self, form: ToolForm) -> None:
        self.calls: list[Row] = []
        self._form = form
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next text; return what is certain to be no part of a call."""
        self._held += text
        if not self._form.marked:
            return "" if self._held.lstrip()[:1] in ("", "{") else self._let_out()
        out = ""
        while True:
            before, mark, after = self._held.partition(OPEN)
            if not mark:
                keep = next((size for size in range(len(OPEN) - 1, 0, -1) if before.endswith(OPEN[:size])), 0)
                self._held = before[len(before) - keep :]
                return out + before[: len(before) - keep]
            inner, end, rest = after.partition(CLOSE)
            if not end:
                self._held = mark + after
                return out + before
            out += before if self._take(inner) else before + mark + inner + end
            self._held = rest

    def rest(self) -> str:
        """Return what was held back, once no text follows: a call that is not whole is text."""
        held, self._held = self._held, ""
        return "" if not self._form.marked and self._take(held) else held

    def _let_out(self) -> str:
        held, self._held = self._held, ""
        return held

    def _take(self, text: str) -> bool:
        """Note the call that a text is; say whether it is one."""
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return False
        arguments = call.get(self._form.arguments) if isinstance(call, dict) else None
        if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
            return False
        function = {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
        self.calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
        return True
