"""Architectures: what is read of transformers' files is what it says when it is imported."""

import subprocess
import sys

import transformers
from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

from slmpack.checkpoint.architectures import model_classes, model_types

ENDS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def test_the_classes_and_types_are_those_of_the_import() -> None:
    exported = {name for name in transformers.__all__ if name.endswith(ENDS)}  # type: ignore[attr-defined]
    assert {name for name in model_classes() if name.endswith(ENDS)} == exported
    assert {"Phi3ForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"} <= exported
    assert model_types() == CONFIG_MAPPING_NAMES.keys()


def test_reading_them_does_not_import_transformers() -> None:
    code = (
        "import sys\n"
        "from slmpack.checkpoint.architectures import model_classes, model_types\n"
        "assert model_classes() and model_types()\n"
        "print(sorted({'transformers', 'torch'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
