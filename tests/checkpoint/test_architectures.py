"""Architectures: what is read of transformers' files is what it says when it is imported."""

import json
import subprocess
import sys

from slmpack.checkpoint.architectures import model_classes, model_types

ENDS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


# Runs in a process of its own: other modules of transformers, once imported, add entries to CONFIG_MAPPING_NAMES.
IMPORTED = """
import json, transformers
from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
print(json.dumps([transformers.__all__, list(CONFIG_MAPPING_NAMES)]))
"""


def test_the_classes_and_types_are_those_of_the_import() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    classes, types = json.loads(done.stdout)
    exported = {name for name in classes if name.endswith(ENDS)}
    assert {name for name in model_classes() if name.endswith(ENDS)} == exported
    assert {"Phi3ForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"} <= exported
    assert model_types() == set(types)


def test_reading_them_does_not_import_transformers() -> None:
    code = (
        "import sys\n"
        "from slmpack.checkpoint.architectures import model_classes, model_types\n"
        "assert model_classes() and model_types()\n"
        "print(sorted({'transformers', 'torch'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
