"""What each interface promises: its signature, an example of its input, and the shape of an answer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slmpack.errors import CheckError
from slmpack.records import Interface

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

CHAT_TASK = "llm/v1/chat"  # MLflow's name of the task; what belongs to it is imported, not typed out
EXAMPLE_TOKENS = 16

_EXAMPLES: dict[Interface, dict[str, Any]] = {
    Interface.CHAT: {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": EXAMPLE_TOKENS,
    },
    Interface.PROMPT: {"prompt": "What is the capital of France?"},
}


def signature_of(interface: Interface) -> "ModelSignature":
    """Return the signature: MLflow's own for `llm/v1/chat`, or `prompt: string -> string`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    if interface is Interface.CHAT:
        return ModelSignature(inputs=CHAT_MODEL_INPUT_SCHEMA, outputs=CHAT_MODEL_OUTPUT_SCHEMA)
    return ModelSignature(inputs=Schema([ColSpec("string", "prompt")]), outputs=Schema([ColSpec("string")]))


def wrapper_signature_of(interface: Interface) -> "ModelSignature":
    """Return the same signature, with the mark in the MLmodel file that says that the model checks requests itself.

    Without the mark MLflow's `predict` and its scoring server cut every request to the columns of the signature: what
    a client wrote into other fields is dropped, a warning in the server's log and HTTP 200, and text parts, a single
    stop string or `temperature: 2` are refused. With it the wrapper receives the request as it was sent. MLflow sets
    the mark for models whose `predict` has type hints, which cannot describe these columns; it is no part of what
    makes two signatures equal. Source: `PyFuncModel._predict` and `scoring_server._parse_json_data` of MLflow 3.17.
    """
    signature = signature_of(interface)
    signature._is_signature_from_type_hint = True
    return signature


def gets_whole_requests(signature: "ModelSignature") -> bool:
    """Tell whether MLflow leaves the check of requests to the model that has this signature."""
    return bool(signature._is_signature_from_type_hint)


def input_example_of(interface: Interface) -> dict[str, Any]:
    """Return one request that every model of the interface answers, short enough to run at once."""
    return dict(_EXAMPLES[interface])


def metadata_of(interface: Interface) -> dict[str, Any]:
    """Return the MLflow metadata by which other tools know the task; a prompt model has none."""
    return {"task": CHAT_TASK} if interface is Interface.CHAT else {}


def check_answer(answer: object, schema: "Schema") -> str:
    """Check one answer against the output schema, since MLflow does not; return what was found, in words.

    Raises:
        CheckError: a field is missing, is not in the schema, or has another type.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models.utils import _enforce_type

    fields: dict[str, Any] = {str(column.name): column for column in schema.inputs}
    if not schema.has_input_names():
        (column,) = schema.inputs
        fields, answer = {"answer": column}, {"answer": answer}
    if not isinstance(answer, Mapping):
        raise _refusal(f"an answer of type {type(answer).__name__}", f"one object with {', '.join(fields)}")
    required = {name for name, column in fields.items() if column.required}
    if missing := sorted(required - answer.keys()):
        raise _refusal(f"an answer without {', '.join(missing)}", f"{', '.join(sorted(required))}")
    if unknown := sorted(map(str, answer.keys() - fields.keys())):
        raise _refusal(f"an answer with {', '.join(unknown)}", f"no fields but {', '.join(fields)}")
    for name, value in answer.items():
        column = fields[name]
        try:
            _enforce_type(value, column.type, required=column.required)
        except MlflowException as error:
            raise _refusal(f"{name}: {error.message}", f"{name} as the output schema has it") from error
    return ", ".join(sorted(map(str, answer)))


def _refusal(found: str, expected: str) -> CheckError:
    return CheckError(f"answer fits the output schema: {found[:300]}", expected, "check the wrapper's predict")
