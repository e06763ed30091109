"""Calls of tools: told from text as an answer comes, and made by a real server on templates that have tools."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from published_templates import PUBLISHED
from served import serving

from slmpack.log.chat_model import ChatTemplate, RequestError
from slmpack.machine.store import MANIFEST, Manifest, digest_files
from slmpack.records import Package
from slmpack.serve.tools import HERMES, LLAMA, ToolForm, ToolText, form_of, read_tools

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock", "parameters": NOTHING}}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


# ------------------------------------------------------------------------------------------ calls in a text


def divided(form: ToolForm, text: str, size: int) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text and the calls of an answer that comes in pieces of so many characters."""
    found = ToolText(form)
    out = "".join(found.push(text[start : start + size]) for start in range(0, len(text), size)) + found.rest()
    functions: list[Any] = [call["function"] for call in found.calls]
    return out, [(function["name"], json.loads(function["arguments"])) for function in functions]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_between_marks_are_no_text(size: int) -> None:
    text = (
        'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris {sic}"}}\n</tool_call>\n'
        '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    )
    assert divided(HERMES, text, size) == ("I look.\n\n", [("weather", {"city": "Paris {sic}"}), ("clock", {})])


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "a <tool_ of mine", "<tool_call>no JSON</tool_call> and on", '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {', "1 < 2 <", '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
    ],
)  # fmt: skip
def test_what_is_no_call_stays_text_to_the_last_letter(text: str, size: int) -> None:
    assert divided(HERMES, text, size) == (text, [])


@pytest.mark.parametrize("size", [1, 1000])
def test_a_call_that_is_the_whole_answer_has_no_marks(size: int) -> None:
    assert divided(LLAMA, '{"name": "clock", "parameters": {"zone": "UTC"}}', size) == (
        "",
        [("clock", {"zone": "UTC"})],
    )
    assert divided(LLAMA, "It is noon {now}.", size) == ("It is noon {now}.", [])
    assert divided(LLAMA, '{"noon": true}', size) == ('{"noon": true}', [])


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("hermes-tools", HERMES), ("qwen2.5", HERMES), ("qwen3", HERMES), ("llama-3.1", LLAMA), ("chatml", None),
        ("phi-3-mini", None), ("mistral-nemo", None), ("gemma-3", None), ("command-r-tools", None),
    ],
)  # fmt: skip
def test_the_form_is_known_by_the_template(name: str, form: ToolForm | None) -> None:
    assert form_of(PUBLISHED[name]) == form


# ------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": "weather"}, "tools: 'weather' was found; a list of up to 128 functions"),
        ({"tools": [{"type": "retrieval"}]}, r"tools\[0\]: .* a dict of type 'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, r"tools\[0\]\.function\.name: 'a b'"),
        ({"tools": [CLOCK, CLOCK]}, "tools: 'clock' was found; each name once"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "code": "x"}}]},
            r"tools\[0\]\.function: \['code'\]",
        ),
        ({"tools": [CLOCK], "tool_choice": "always"}, "tool_choice: 'always'"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice: "),
        ({"tool_choice": "required"}, "tool_choice: 'required' was found; 'none' or 'auto' without tools"),
        (
            {"tools": [CLOCK], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format: ",
        ),
        ({"tools": [CLOCK], "parallel_tool_calls": "no"}, "parallel_tool_calls: 'no' was found; true or false"),
        (
            {"tools": [CLOCK], "parallel_tool_calls": False},
            "parallel_tool_calls: False was found; true, or a tool_choice",
        ),
        ({"tools": [CLOCK], "messages": [{"role": "judge", "content": "x"}]}, r"messages\[0\]\.role: 'judge'"),
        ({"tools": [CLOCK], "messages": [{"role": "tool", "content": None}]}, r"messages\[0\]\.content: None"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments: '{' was found; the JSON text of an object",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_tools({"messages": QUESTION, **fields}, HERMES)


@pytest.mark.parametrize(
    ("choice", "form"),
    [
        ("required", HERMES),
        ("none", HERMES),
        ({"type": "function", "function": {"name": "clock"}}, HERMES),
        ("auto", LLAMA),
    ],
)
def test_a_client_that_wants_one_call_at_most_gets_it(choice: object, form: ToolForm) -> None:
    row = {"messages": QUESTION, "tools": [CLOCK], "tool_choice": choice}
    assert read_tools(row | {"parallel_tool_calls": False}, form) == read_tools(row, form)


def test_a_template_without_a_known_form_takes_no_tools() -> None:
    with pytest.raises(RequestError, match="tools: tools were found; the model's chat template has none of a form"):
        read_tools({"messages": QUESTION, "tools": [CLOCK]}, None)
    assert read_tools({"messages": QUESTION, "tools": [], "tool_choice": "none"}, None) is None


# ------------------------------------------------------------------------------------------ a real server


def with_template(package: Package, folder: Path, template: str) -> Package:
    """Return a package with another chat template."""
    shutil.copytree(package.path, folder)
    folder.chmod(0o755)
    for name in ("chat_format.json", MANIFEST):
        (folder / name).chmod(0o644)
    chat_format = json.loads((folder / "chat_format.json").read_bytes()) | {"chat_template": template}
    (folder / "chat_format.json").write_text(json.dumps(chat_format))
    (folder / MANIFEST).unlink()
    files = digest_files(folder, "test")
    (folder / MANIFEST).write_text(Manifest(files=files, facts={}).model_dump_json())
    return package.model_copy(update={"path": folder, "files": files})


@pytest.fixture(scope="module", params=["qwen2.5", "llama-3.1"])
def tooled(
    request: pytest.FixtureRequest, small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OpenAI, Package]]:
    folder = tmp_path_factory.mktemp("tools")
    package = with_template(small_package, folder / "package", PUBLISHED[request.param])
    with serving(package, folder, workspace) as server:
        yield OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0), package


def ask(client: OpenAI, **fields: Any) -> Any:
    given = {
        "model": "tiny",
        "messages": QUESTION,
        "max_tokens": 200,
        "tools": [WEATHER, CLOCK],
        "temperature": 1,
    } | fields
    create: Any = client.chat.completions.create
    return create(**given)


@pytest.mark.slow
def test_a_tool_that_must_be_called_is_called_as_its_schema_says(tooled: tuple[OpenAI, Package]) -> None:
    client, _ = tooled
    for seed in range(3):
        (choice,) = ask(client, tool_choice="required", seed=seed).choices
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert call.function.name in ("weather", "clock")
        assert isinstance(json.loads(call.function.arguments), dict)
    (choice,) = ask(client, tool_choice={"type": "function", "function": {"name": "weather"}}).choices
    arguments = json.loads(choice.message.tool_calls[0].function.arguments)
    assert arguments["city"] in ("Paris", "Rome")
    assert 1 <= arguments["days"] <= 9


@pytest.mark.slow
def test_a_stream_has_the_call_that_the_whole_answer_has(tooled: tuple[OpenAI, Package]) -> None:
    client, _ = tooled
    chosen: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}
    whole = ask(client, tool_choice=chosen, seed=5).choices[0].message.tool_calls[0].function
    chunks = [chunk.choices[0] for chunk in ask(client, tool_choice=chosen, seed=5, stream=True)]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
        (0, whole.name, whole.arguments)
    ]
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(chunk.delta.content for chunk in chunks)


@pytest.mark.slow
def test_what_a_tool_returned_is_in_the_prompt_as_the_template_has_it(tooled: tuple[OpenAI, Package]) -> None:
    client, package = tooled
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris", "days": 2}'}}
    turns: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call | {"id": "call_1"}]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]
    answer = ask(client, messages=turns, max_tokens=4, temperature=0)
    read: Any = [dict(turn) for turn in turns]
    read[1] |= {"content": "", "tool_calls": [{"type": "function", "function": {
        "name": "weather", "arguments": {"city": "Paris", "days": 2}}}]}  # fmt: skip
    text = ChatTemplate(package.path).render([{**turn} for turn in read], [WEATHER, CLOCK])
    from slmpack.log.chat_model import TextTokenizer

    assert "sunny" in text
    assert answer.usage.prompt_tokens == len(TextTokenizer(package.path).encode(text))


@pytest.mark.slow
def test_tools_that_leave_no_room_are_refused_with_both_lengths(tooled: tuple[OpenAI, Package]) -> None:
    client, _ = tooled
    long = WEATHER | {"function": {**WEATHER["function"], "description": "1 2 3 " * 2500}}
    with pytest.raises(BadRequestError, match=r"a prompt of \d+ tokens and 200 were found; the context window has \d+"):
        ask(client, tools=[long])
