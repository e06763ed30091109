"""Digests: what was packaged before is found again, since a digest is of the same parts as it was then.

The parts are written out here; only the versions of what is installed are read. A part that changes on purpose, since
packages must be built again, changes here too: the steps (`BUILD_STEPS`, `EXPORT_STEPS`), options, or a preparation.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from slmpack.build.build import package_digest
from slmpack.build.optimum.environment import exporter_requirements, pinned_versions
from slmpack.build.select import recipe_digest
from slmpack.machine.runtimes import release_of
from slmpack.records import FileDigest, ModelSource, Recipe, Snapshot, SourceKind, Target, digest_of
from slmpack.targets import RECIPES

BUILD_STEPS, EXPORT_STEPS = 6, 2
INT4 = {"precision": "int4", "execution_provider": "cpu", "block_size": 32}
RAISED = {"int8": ["last_matmul"], "fold": True, "most_bytes": 1.31}
# `quantise.prepare` covers the built-in text, and how it is calibrated, folded, measured and solved.
INT4_RECIPES: dict[Recipe, dict[str, Any]] = {
    Recipe.SMALL: INT4
    | {"quantiser": "scales", "preparation": "b7b7b9d533a9bf31b89d9a44b29c9e140ade2c7bfac50742ef44f5e828df8ff4"},
    Recipe.BALANCED: INT4
    | {"quantiser": "zero_points", "fold": True}
    | {"preparation": "d08d4969bb6d0e68f5b00238d34a8f70645a8d0e97956a1e35bed11835092a65"},
    Recipe.ACCURATE: INT4
    | RAISED
    | {"quantiser": "zero_points", "preparation": "93c49b96be9fc20af015acec60c9ca1c700f1ac611bdc492042eecb256c8a0e4"},
    Recipe.BEST: INT4
    | RAISED
    | {"quantiser": "gptq", "preparation": "8c2e9eae6efa6d68b52e99dfdee7a54231d11870fca75f2c155e0b94017bdd6e"},
    Recipe.STOCK_SMALL: INT4,
    Recipe.STOCK_MIXED: INT4 | {"algo_config": "k_quant_mixed"},
}
INT8 = {"precision": "int8", "execution_provider": "cpu"}
BUILT: dict[tuple[Target, Recipe | None], dict[str, Any]] = {
    **{(Target.CPU_INT4, recipe): options for recipe, options in INT4_RECIPES.items()},
    **{
        (Target.CUDA_INT4, recipe): options | {"execution_provider": "cuda"} for recipe, options in INT4_RECIPES.items()
    },
    (Target.CPU_INT8, Recipe.SMALL): INT8 | {"block_size": 128},
    (Target.CPU_INT8, Recipe.ACCURATE): INT8 | {"block_size": 32},
    (Target.CUDA_FP16, None): {"precision": "fp16", "execution_provider": "cuda", "block_size": 32},
    (Target.TRANSFORMERS, None): {},
}
EXPORTED: dict[tuple[Target, Recipe | None], dict[str, Any] | None] = {
    (Target.CPU_INT4, Recipe.SMALL): {"bits": 4, "block_size": 32, "mixed": False},
    (Target.CPU_INT4, Recipe.BALANCED): {"bits": 4, "block_size": 32, "mixed": True},
    (Target.CPU_INT4, Recipe.BEST): None,  # refused when it is built
    (Target.CPU_INT8, Recipe.SMALL): {"bits": 8, "block_size": 128, "mixed": False},
    (Target.CPU_INT8, Recipe.ACCURATE): {"bits": 8, "block_size": 32, "mixed": False},
    (Target.CUDA_FP16, None): None,
}
ASKED = ("target", "recipe")


def snapshot_of(architecture: str) -> Snapshot:
    source = ModelSource(text="./m", kind=SourceKind.FOLDER, location="/nowhere/m", revision="1", name="m")
    return Snapshot(
        source=source, path=Path("/nowhere/m"), files=(FileDigest(name="w", sha256="0", size_bytes=1),),
        architecture=architecture, dtype="F32", parameters=1, layers=1, context_length=512, licence=None,
    )  # fmt: skip


def installed(target: Target) -> dict[str, str]:
    builder = ("onnxruntime-genai", "onnxruntime", "onnx-ir", "transformers")
    names = ("transformers",) if target is Target.TRANSFORMERS else builder
    return {name: release_of(name) for name in names}


def test_every_target_and_recipe_has_a_line_here() -> None:
    plain = {(target, None) for target, recipes in RECIPES.items() if not recipes}
    assert {(target, recipe) for target, recipes in RECIPES.items() for recipe in recipes} | plain == set(BUILT)


@pytest.mark.parametrize(ASKED, BUILT)
def test_a_package_of_the_builders_is_found_by_the_digest_that_it_had(target: Target, recipe: Recipe | None) -> None:
    snapshot = snapshot_of("LlamaForCausalLM")
    parts = [snapshot.digest, target, recipe, BUILT[target, recipe], installed(target), BUILD_STEPS]
    assert package_digest(snapshot, target, recipe) == digest_of(parts)


@pytest.mark.parametrize(ASKED, EXPORTED)
def test_a_package_of_optimums_is_found_by_the_digest_that_it_had(target: Target, recipe: Recipe | None) -> None:
    snapshot, pinned = snapshot_of("GPT2LMHeadModel"), pinned_versions(exporter_requirements())
    versions = {name: pinned[name] for name in ("optimum-onnx", "optimum", "transformers", "torch", "onnx")}
    versions["onnxruntime"] = release_of("onnxruntime")
    steps = digest_of([EXPORTED[target, recipe], versions, digest_of(pinned), version("transformers"), EXPORT_STEPS])
    assert package_digest(snapshot, target, recipe) == digest_of([snapshot.digest, target, recipe, steps])


def test_of_an_architecture_that_the_builder_does_not_know_the_transformers_target_has_the_digest_that_it_had() -> None:
    snapshot, target = snapshot_of("GPT2LMHeadModel"), Target.TRANSFORMERS
    parts = [snapshot.digest, target, None, {}, installed(target), BUILD_STEPS]
    assert package_digest(snapshot, target, None) == digest_of(parts)


@pytest.mark.parametrize(ASKED, BUILT)
def test_a_request_is_known_by_the_digest_that_its_recipe_had(target: Target, recipe: Recipe | None) -> None:
    pinned = digest_of(pinned_versions(exporter_requirements()))
    exported = [pinned, EXPORT_STEPS] if target in {Target.CPU_INT4, Target.CPU_INT8} else None
    parts = [target, recipe, BUILT[target, recipe], installed(target), BUILD_STEPS, exported]
    assert recipe_digest(target, recipe) == digest_of(parts)


def test_a_calibration_text_is_a_part_as_it_was() -> None:
    read = INT4_RECIPES[Recipe.SMALL] | {
        "preparation": "f39312dace15f12693be6d7cdc1437dd754ceaaae95d289f703d9ff34f08f668"
    }
    snapshot, target = snapshot_of("LlamaForCausalLM"), Target.CPU_INT4
    parts = [snapshot.digest, target, Recipe.SMALL, read, installed(target), BUILD_STEPS]
    assert package_digest(snapshot, target, Recipe.SMALL, "a text") == digest_of(parts)
