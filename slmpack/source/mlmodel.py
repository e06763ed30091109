"""MLmodel: the file that says what a logged model is, read as MLflow reads it once nothing in it is of another type.

MLflow takes what stands there as it is, and asks its server for a model by an id that may be a list.
"""

import re
from typing import TYPE_CHECKING

from slmpack.machine.bounded_yaml import parse_yaml

if TYPE_CHECKING:
    from mlflow.models import Model

_ID = re.compile(r"m-[0-9a-f]{32}")
_TYPES: dict[str, type] = {
    "artifact_path": str, "flavors": dict, "metadata": dict, "model_id": str, "run_id": str, "utc_time_created": str,
    "signature": dict,
}  # fmt: skip


def read_mlmodel(content: bytes) -> "Model":
    """Return MLflow's record of a logged model.

    Args:
        content: of its MLmodel file.

    Raises:
        ValueError: it is no YAML of a plain size, or MLflow cannot use it; the message is one line.
    """
    from mlflow.models import Model

    fields = parse_yaml(content.decode())
    if not isinstance(fields, dict):
        raise ValueError("it has no fields")
    for name, kind in _TYPES.items():
        if not isinstance(fields.get(name), kind | None):
            raise ValueError(f"{name} is {str(fields[name])[:60]!r}")
    flavours, model_id = fields.get("flavors"), fields.get("model_id")
    if not (flavours and all(isinstance(key, str) and isinstance(each, dict) for key, each in flavours.items())):
        raise ValueError("flavors has no flavours by their names")
    if model_id is not None and not _ID.fullmatch(model_id):
        raise ValueError(f"model_id is {model_id[:60]!r}")
    try:
        return Model.from_dict(fields)
    except Exception as error:  # of any kind: MLflow looks at no type
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
