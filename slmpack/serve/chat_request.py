"""A request in OpenAI's form: its fields checked, none ignored; texts by the wrapper's own rules.

What a model or a package cannot do is a RequestError that names the field.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slmpack.log.chat_model import (
    MOST_CHOICES,
    RequestError,
    Row,
    plain_row,
    read_flag,
    read_number,
    read_text,
    read_whole,
    require_known,
    shown,
)
from slmpack.serve.grammar import GrammarError, json_grammar
from slmpack.serve.sampling import SamplingRule
from slmpack.serve.tools import Tooled, ToolForm, read_tools

# Fields that the wrapper reads: see `chat_model.CHAT_FIELDS` and `PROMPT_FIELDS`.
SHARED = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop", "n", "seed")
OURS = (
    "model", "user", "stream", "stream_options", "presence_penalty", "frequency_penalty", "logit_bias", "min_p",
    "logprobs", "cache_prompt",
)  # fmt: skip
TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
CHAT_FIELDS = frozenset({"messages", "custom_inputs", "top_logprobs", "response_format", *TOOLS, *SHARED, *OURS})
COMPLETION_FIELDS = frozenset({"prompt", "echo", "suffix", "best_of", *SHARED, *OURS})
MOST_BIASES = 1024
MOST_LOGPROBS = 20
HIGHEST_PENALTY = 2.0
HIGHEST_BIAS = 100.0
MOST_PROMPTS = 64


@dataclass(frozen=True)
class Extras:
    """What a server understands beyond the wrapper.

    Attributes:
        model: the name in the request; None: any.
        logprobs: likeliest tokens given with each; None: nothing is.
        grammar: what the answer has to match.
        reuse: whether the beginning of an earlier prompt may be used again.
    """

    model: str | None
    stream: bool
    include_usage: bool
    presence_penalty: float
    frequency_penalty: float
    bias: dict[int, float]
    min_p: float
    logprobs: int | None
    grammar: str | None
    reuse: bool

    def rule(self, temperature: float, top_p: float, top_k: int, seed: int | None) -> SamplingRule:
        """Return the rule that tokens are chosen by, with what the wrapper read."""
        return SamplingRule(
            temperature, top_p, top_k, self.min_p, seed, self.presence_penalty, self.frequency_penalty,
            self.bias, self.logprobs, self.grammar,
        )  # fmt: skip


def read_chat(body: object, vocabulary: int, form: ToolForm | None = None) -> tuple[Row, Extras, Tooled | None]:
    """Return what the wrapper reads of a chat request, and the rest, checked.

    Args:
        form: of the model's tools, if its template has some.
    """
    row = _read(body, CHAT_FIELDS)
    tooled = read_tools(row, form)
    logprobs = read_flag(row, "logprobs", default=False)
    likeliest = read_whole(row, "top_logprobs", 0, MOST_LOGPROBS)
    if likeliest is not None and not logprobs:
        raise RequestError.about("top_logprobs", likeliest, "logprobs true beside it")
    shared = {name: row[name] for name in ("messages", "custom_inputs", *SHARED) if name in row}
    if isinstance(messages := shared.get("messages"), list):
        shared["messages"] = [_said(each) if isinstance(each, dict) else each for each in messages]
    count = (likeliest or 0) if logprobs else None
    grammar = _grammar(row.get("response_format"))
    if tooled is not None and tooled.grammar is not None:
        grammar = tooled.grammar
    return shared, _extras(row, vocabulary, count, grammar), tooled


def read_completion(body: object, vocabulary: int) -> tuple[list[Row], Extras]:
    """Return a row a prompt of a completion request, and the rest, checked."""
    row = _read(body, COMPLETION_FIELDS)
    _refuse(row, "echo", (False,), "false (the prompt is not repeated)")
    _refuse(row, "suffix", ("",), "nothing (text is only added at the end)")
    _refuse(row, "best_of", (row.get("n", 1),), "as many as n")
    logprobs = read_whole(row, "logprobs", 0, MOST_LOGPROBS)
    found = row.get("prompt")
    prompts = found if isinstance(found, list) else [found]
    if not 1 <= len(prompts) <= MOST_PROMPTS or not all(isinstance(prompt, str) and prompt for prompt in prompts):
        raise RequestError.about("prompt", found, f"a text, or a list of 1 to {MOST_PROMPTS} of them, none empty")
    shared = {name: row[name] for name in SHARED if name in row and name != "n"}
    return [{**shared, "prompt": prompt} for prompt in prompts], _extras(row, vocabulary, logprobs, None)


def read_choices(body: Row) -> int:
    """Return how many answers to each prompt of a completion request there are to be."""
    return read_whole(body, "n", 1, MOST_CHOICES) or 1


def _read(body: object, known: frozenset[str]) -> Row:
    row = _said(plain_row(body, "request"))
    if unknown := sorted(row.keys() - known):
        raise RequestError(f"{shown(unknown[0])[1:-1]}: no field of that name is known; one of "
                           f"{', '.join(sorted(known))} is expected")  # fmt: skip
    return row


def _said(row: Row) -> Row:
    """Return an object without fields that are null: clients write them for what is not said."""
    return {key: value for key, value in row.items() if value is not None}


def _extras(row: Row, vocabulary: int, logprobs: int | None, grammar: str | None) -> Extras:
    for field in ("model", "user"):
        if field in row:
            read_text(field, row[field])
    stream = read_flag(row, "stream", default=False)
    penalties = [
        read_number(row, field, -HIGHEST_PENALTY, HIGHEST_PENALTY, "a number from -2 to 2") or 0.0
        for field in ("presence_penalty", "frequency_penalty")
    ]
    return Extras(
        model=str(row["model"]) if "model" in row else None,
        stream=stream,
        include_usage=_include_usage(row, stream),
        presence_penalty=penalties[0],
        frequency_penalty=penalties[1],
        bias=_bias(row.get("logit_bias", {}), vocabulary),
        min_p=read_number(row, "min_p", 0, 1, "a number from 0 to 1") or 0.0,
        logprobs=logprobs,
        grammar=grammar,
        reuse=read_flag(row, "cache_prompt", default=True),
    )


def _refuse(row: Row, field: str, neutral: tuple[object, ...], expected: str) -> None:
    if field in row and not any(row[field] == value and type(row[field]) is type(value) for value in neutral):
        raise RequestError.about(field, row[field], expected)


def _include_usage(row: Row, stream: bool) -> bool:
    found = row.get("stream_options")
    if found is None:
        return False
    if not isinstance(found, dict):
        raise RequestError.about("stream_options", found, "a dict")
    if not stream:
        raise RequestError.about("stream_options", found, "stream true beside it")
    require_known(found, frozenset({"include_usage"}), "stream_options")
    value = found.get("include_usage", False)
    if not isinstance(value, bool):
        raise RequestError.about("stream_options.include_usage", value, "true or false")
    return value


def _bias(found: object, vocabulary: int) -> dict[int, float]:
    if not isinstance(found, dict) or len(found) > MOST_BIASES:
        raise RequestError.about("logit_bias", found, f"a dict of up to {MOST_BIASES} token ids")
    bias = {}
    for key, value in found.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocabulary):
            raise RequestError.about("logit_bias", key, f"token ids from 0 to {vocabulary - 1}")
        number = read_number(
            {"logit_bias": value}, "logit_bias", -HIGHEST_BIAS, HIGHEST_BIAS, "numbers from -100 to 100"
        )
        bias[int(key)] = number or 0.0
    return bias


def _grammar(found: object) -> str | None:
    """Return the grammar that `response_format` asks for."""
    if found is None:
        return None
    if not isinstance(found, dict):
        raise RequestError.about("response_format", found, "a dict with type")
    kinds: dict[object, Callable[[dict[str, Any]], str | None]] = {
        "text": lambda _: None,
        "json_object": lambda _: json_grammar(None),
        "json_schema": _schema_grammar,
    }
    if not isinstance(kind := found.get("type"), str) or kind not in kinds:
        raise RequestError.about("response_format.type", kind, "'text', 'json_object' or 'json_schema'")
    fields = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    require_known(found, frozenset(fields), "response_format")
    return kinds[kind](found)


def _schema_grammar(found: dict[str, Any]) -> str:
    described = found.get("json_schema")
    if not isinstance(described, dict):
        raise RequestError.about("response_format.json_schema", described, "a dict with name and schema")
    require_known(described, frozenset({"name", "description", "schema", "strict"}), "response_format.json_schema")
    for field in ("name", "description"):
        if described.get(field) is not None:
            read_text(f"response_format.json_schema.{field}", described[field])
    read_flag(described, "strict", default=False)
    schema = described.get("schema")
    if not isinstance(schema, dict):
        raise RequestError.about("response_format.json_schema.schema", schema, "a JSON schema")
    try:
        return json_grammar(schema)
    except GrammarError as error:
        raise RequestError(f"response_format.json_schema.schema: {error}") from error
