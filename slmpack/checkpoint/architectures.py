"""Which models the installed transformers has, read from its files.

To import transformers takes three seconds of a processor, and every command that looks at a checkpoint would pay them.
Each of its `models/*/modeling_*.py` lists its classes in `__all__`, and `models/auto/auto_mappings.py` is a file of
dictionaries alone. Source: transformers 5.x; the test compares both with what the import says.
"""

import ast
import re
import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_EXPORTED = re.compile(r"^__all__ = (\[[^\]]*\])", re.MULTILINE)


@cache
def model_classes() -> frozenset[str]:
    """Return the names of all model classes, such as "Phi3ForCausalLM"."""
    files = _folder().glob("*/modeling_*.py")
    lists = (_EXPORTED.search(path.read_text(encoding="utf-8")) for path in files)
    if names := frozenset(name for found in lists if found for name in ast.literal_eval(found[1])):
        return names
    import transformers  # another layout

    return frozenset(transformers.__all__)  # type: ignore[attr-defined]


@cache
def model_types() -> frozenset[str]:
    """Return what `model_type` in config.json may be, such as "phi3"."""
    path = _folder() / "auto" / "auto_mappings.py"
    if path.exists():
        return frozenset(runpy.run_path(str(path))["CONFIG_MAPPING_NAMES"])
    from transformers import CONFIG_MAPPING

    return frozenset(CONFIG_MAPPING.keys())


def _folder() -> Path:
    """Return the folder of transformers' models, without importing any of it."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models"
