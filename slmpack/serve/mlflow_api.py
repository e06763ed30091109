"""MLflow's own scoring protocol over the engine: what called `mlflow models serve` goes on.

    {"messages": [...], ...} | {"inputs": ...} | {"dataframe_records": [...]} | {"dataframe_split": {...}}

MLflow's server takes the first two from a model of slmpack's; the others, which it takes from other models, are taken
as well. What it drops in silence (`params` beside `inputs`, a field beside them) is refused.

Source: MLflow's documentation, "Local Inference Spec"; mlflow/pyfunc/scoring_server/__init__.py of 3.17.2.
"""

from typing import Any

from slmpack.log.chat_model import WHOLE_FIELDS, RequestError, Row, plain_row, read_flag
from slmpack.serve.answering import Exchange, chat_exchange, completion_exchange
from slmpack.serve.failures import BAD_REQUEST, BUSY, NOT_FOUND, UNAUTHORIZED, UNAVAILABLE, Failure
from slmpack.serve.metrics import Metrics
from slmpack.serve.served_model import ServedModel

PATH = "/invocations"
TABLES = ("dataframe_records", "dataframe_split")
FORMS = ("inputs", *TABLES, "instances")
MOST_ROWS = 64
ERROR_CODES = {
    BAD_REQUEST: "INVALID_PARAMETER_VALUE",
    UNAUTHORIZED: "UNAUTHENTICATED",
    NOT_FOUND: "RESOURCE_DOES_NOT_EXIST",
    BUSY: "RESOURCE_EXHAUSTED",
    UNAVAILABLE: "TEMPORARILY_UNAVAILABLE",
}
PROMPT_ONLY = {"messages": (), "n": (1,), "logprobs": (False,), "top_logprobs": ()}  # an answer is one text there


async def invocation_exchanges(model: ServedModel, body: object, metrics: Metrics) -> list[Exchange]:
    """Return what answers each row of an invocation.

    Raises:
        RequestError: a row cannot be answered; then none is.
    """
    rows = _rows(plain_row(body, "request"))
    if not 1 <= len(rows) <= MOST_ROWS:
        raise RequestError(f"request: {len(rows)} rows were found; 1 to {MOST_ROWS} are expected in one call")
    if len(rows) > model.capacity:
        raise RequestError(
            f"request: {len(rows)} rows were found; this server takes at most {model.capacity} at a time"
        )
    return [await _exchange(model, row, metrics, alone=is_alone(body)) for row in rows]


def is_alone(body: object) -> bool:
    """Say whether an invocation is one row by itself."""
    return isinstance(body, dict) and not any(form in body for form in FORMS)


def is_stream(body: object) -> bool:
    """Say whether an invocation is one chat that wants its answer as it comes."""
    return isinstance(body, dict) and is_alone(body) and read_flag(body, "stream", default=False)


def written(model: ServedModel, body: object, answers: list[Row]) -> object:
    """Return answers as MLflow's server writes them: that to a row by itself as it is, others in `predictions`."""
    if model.settings.interface == "prompt":
        texts = [_text(answer) for answer in answers]
        return texts if is_alone(body) else {"predictions": texts}
    result = answers[0] if len(answers) == 1 else answers
    return result if is_alone(body) else {"predictions": result}


def error_row(failure: Failure) -> dict[str, object]:
    """Return an error with the fields that MLflow's server writes, beside OpenAI's."""
    code = ERROR_CODES.get(failure.status, "BAD_REQUEST")
    return {"error_code": code, "message": failure.message, **failure.to_row()}


def _text(answer: Row) -> str:
    choices: Any = answer["choices"]
    (choice,) = choices
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


async def _exchange(model: ServedModel, found: object, metrics: Metrics, *, alone: bool) -> Exchange:
    """Return what answers one row; MLflow's clients write None for what a row does not say."""
    if isinstance(found, str):
        found = {"prompt": found}
    if not isinstance(found, dict):
        raise RequestError.about("request", found, "rows that are dicts or texts")
    row = {key: value for key, value in found.items() if value is not None}
    if not alone and read_flag(row, "stream", default=False):
        raise RequestError.about("stream", True, "false, or the row by itself")
    named = row.get("model")
    if isinstance(named, str) and named not in (*model.names, model.located.name):
        raise RequestError.about("model", named, "the model that the call names, or nothing,")
    if model.settings.interface == "chat":
        return await chat_exchange(model, row, metrics)
    for field, neutral in PROMPT_ONLY.items():
        if field in row and row[field] not in neutral:
            raise RequestError.about(field, row[field], "nothing (the model takes a prompt, and answers with a text)")
    if not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise RequestError.about("prompt", row.get("prompt"), "text")
    if not model.settings.apply_chat_template:
        return await completion_exchange(model, row, metrics)
    message = {"role": "user", "content": row.pop("prompt")}
    return await chat_exchange(model, {**row, "messages": [message]}, metrics)


def _rows(body: Row) -> list[object]:
    found = [form for form in FORMS if form in body]
    if not found:
        return [body]
    if unknown := sorted(body.keys() - {found[0], "params", "model"}):
        raise RequestError.about("request", unknown, f"{found[0]}, model and params")
    if body.get("params"):
        raise RequestError.about("params", body["params"], "nothing: put every field into the row")
    value: Any = body[found[0]]
    if found[0] == "dataframe_split":
        return _split(value)
    if isinstance(value, dict) and _has_columns(value):
        return _transposed(value)
    rows = value if isinstance(value, list) else [value]
    return [_whole(row) for row in rows] if found[0] in TABLES else rows


def _split(value: object) -> list[object]:
    columns, data = (value.get("columns"), value.get("data")) if isinstance(value, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(data, list) or not isinstance(value, dict):
        raise RequestError.about("dataframe_split", value, "a dict of columns and data")
    if unknown := sorted(value.keys() - {"columns", "data", "index"}):
        raise RequestError.about("dataframe_split", unknown, "columns, data and index")
    if not all(isinstance(each, str) for each in columns) or len(set(columns)) != len(columns):
        raise RequestError.about("dataframe_split.columns", columns, "names, each of them once")
    if any(not isinstance(each, list) or len(each) != len(columns) for each in data):
        raise RequestError.about("dataframe_split.data", data, f"rows of {len(columns)} values")
    return [_whole(dict(zip(columns, each, strict=True))) for each in data]


def _whole(row: Any) -> Any:
    """Return a row of a table with whole numbers: in a column with an empty cell, pandas makes them floats."""
    if not isinstance(row, dict):
        return row
    return {
        key: int(value) if key in WHOLE_FIELDS and isinstance(value, float) and value.is_integer() else value
        for key, value in row.items()
    }


def _has_columns(value: Row) -> bool:
    """Say whether a dict has a list of values for each field; a chat's own `messages` are a list of dicts."""
    messages = value.get("messages")
    is_chat = isinstance(messages, list) and all(isinstance(each, dict) for each in messages)
    return bool(value) and not is_chat and all(isinstance(each, list) for each in value.values())


def _transposed(columns: Any) -> list[object]:
    """Return the rows of `inputs` that name columns."""
    lengths = {len(each) for each in columns.values()}
    if len(lengths) != 1:
        raise RequestError(f"inputs: columns of {sorted(lengths)} values were found; as many in each are expected")
    return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
