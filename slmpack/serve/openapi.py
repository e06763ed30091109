"""What `/openapi.json` says of the bodies: the fields, their kinds and bounds; `chat_request` checks them."""

from typing import Any

from slmpack.log.chat_model import LARGEST_SEED, MOST_CHOICES, MOST_STOPS
from slmpack.serve.chat_request import HIGHEST_BIAS, HIGHEST_PENALTY, MOST_LOGPROBS, MOST_PROMPTS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": ["boolean", "null"]}


def _number(low: float, high: float) -> Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


def _whole(low: int, high: int | None = None) -> Schema:
    bounds: Schema = {"type": ["integer", "null"], "minimum": low}
    return bounds if high is None else {**bounds, "maximum": high}


COMMON: Schema = {
    "model": {"type": ["string", "null"]},
    "user": {"type": ["string", "null"]},
    "max_tokens": _whole(1),
    "max_completion_tokens": _whole(1),
    "temperature": _number(0, 2),
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    "top_k": _whole(1),
    "min_p": _number(0, 1),
    "stop": {"anyOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": MOST_STOPS}, {"type": "null"}]},
    "n": _whole(1, MOST_CHOICES),
    "seed": _whole(0, LARGEST_SEED),
    "stream": FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}},
                       "additionalProperties": False},
    "presence_penalty": _number(-HIGHEST_PENALTY, HIGHEST_PENALTY),
    "frequency_penalty": _number(-HIGHEST_PENALTY, HIGHEST_PENALTY),
    "logit_bias": {"type": ["object", "null"], "additionalProperties": _number(-HIGHEST_BIAS, HIGHEST_BIAS)},
    "cache_prompt": FLAG,
}  # fmt: skip
PART: Schema = {
    "type": "object", "required": ["type", "text"], "additionalProperties": False,
    "properties": {"type": {"const": "text"}, "text": TEXT},
}  # fmt: skip
MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant"]},
        "content": {"anyOf": [TEXT, {"type": "array", "items": PART, "minItems": 1}]},
        "name": {"type": ["string", "null"]},
    },
}
FORMAT: Schema = {
    "type": ["object", "null"],
    "required": ["type"],
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "json_schema": {"type": "object", "required": ["schema"], "properties": {"schema": {"type": "object"}}},
    },
}
CHAT: Schema = {
    "type": "object",
    "required": ["messages"],
    "additionalProperties": False,
    "properties": {
        **COMMON,
        "messages": {"type": "array", "items": MESSAGE, "minItems": 1},
        "logprobs": FLAG,
        "top_logprobs": _whole(0, MOST_LOGPROBS),
        "response_format": FORMAT,
    },
}
COMPLETION: Schema = {
    "type": "object",
    "required": ["prompt"],
    "additionalProperties": False,
    "properties": {
        **COMMON,
        "prompt": {"anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MOST_PROMPTS}]},
        "logprobs": _whole(0, MOST_LOGPROBS),
    },
}
FEEDBACK: Schema = {
    "type": "object",
    "required": ["id", "good"],
    "additionalProperties": False,
    "properties": {
        "id": TEXT,
        "good": {"type": "boolean"},
        "comment": {"type": ["string", "null"]},
        "user": {"type": ["string", "null"]},
    },
}
INVOCATION: Schema = {
    "anyOf": [
        CHAT,
        {"type": "object", "required": ["inputs"]},
        {"type": "object", "required": ["dataframe_records"]},
        {"type": "object", "required": ["dataframe_split"]},
    ]
}
_ERRORS: Schema = {str(status): {"description": "{error: {message, type, param, code}}"}
                   for status in (400, 401, 404, 408, 413, 415, 429, 503)}  # fmt: skip


def _body(schema: Schema) -> Schema:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "responses": _ERRORS}


CHAT_BODY, COMPLETION_BODY, INVOCATION_BODY = _body(CHAT), _body(COMPLETION), _body(INVOCATION)
FEEDBACK_BODY = _body(FEEDBACK)
