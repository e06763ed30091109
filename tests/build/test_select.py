"""Select: which builder makes a package, for every target and for architectures known and unknown."""

from pathlib import Path

import pytest

from slmpack.build.build import build_package
from slmpack.build.genai.architectures import architectures_in, builder_architectures
from slmpack.build.select import select_builder
from slmpack.errors import RecipeError
from slmpack.machine.store import Facts, Manifest, store_folder
from slmpack.records import FileDigest, ModelSource, Recipe, Snapshot, SourceKind, Target

BUILT = [(target, Recipe.SMALL) for target in (Target.CPU_INT4, Target.CPU_INT8, Target.CUDA_INT4)]
BUILT_OR_PLAIN = [*BUILT, (Target.CUDA_FP16, None)]


def snapshot_of(architecture: str, path: Path, files: tuple[FileDigest, ...]) -> Snapshot:
    source = ModelSource(text="./m", kind=SourceKind.FOLDER, location="/nowhere/m", revision="1", name="m")
    return Snapshot(
        source=source, path=path, files=files, architecture=architecture, dtype="F32", parameters=1, layers=1,
        context_length=512, licence=None,
    )  # fmt: skip


def exporter_for(architecture: str, target: Target, recipe: Recipe | None) -> str:
    snapshot = snapshot_of(architecture, Path("/nowhere/m"), (FileDigest(name="w", sha256="0", size_bytes=1),))
    return select_builder(snapshot, target, recipe, None).exporter


@pytest.mark.parametrize("known", ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM"])
@pytest.mark.parametrize(("target", "recipe"), BUILT_OR_PLAIN)
def test_what_the_builder_knows_goes_to_the_builder(known: str, target: Target, recipe: Recipe | None) -> None:
    assert exporter_for(known, target, recipe) == "onnxruntime-genai"


@pytest.mark.parametrize("unknown", ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "StableLmForCausalLM", "LlamaForCausal"])
@pytest.mark.parametrize(("target", "recipe"), BUILT_OR_PLAIN)
def test_what_the_builder_does_not_know_goes_to_optimum(unknown: str, target: Target, recipe: Recipe | None) -> None:
    assert exporter_for(unknown, target, recipe) == "optimum"


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_transformers_needs_no_builder(architecture: str) -> None:
    assert exporter_for(architecture, Target.TRANSFORMERS, None) == "none"


def test_a_recipe_that_exported_graphs_lack_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(into: Path) -> Facts:
        (into / "w").write_text("weights")
        return {}

    path = store_folder(tmp_path, "snapshots", "key", fill)
    snapshot = snapshot_of("GPT2LMHeadModel", path, Manifest.read(path).files)
    with pytest.raises(RecipeError, match=r"recipe best for cpu-int4 of GPT2LMHeadModel, which optimum exports"):
        build_package(snapshot, Target.CPU_INT4, Recipe.BEST, tmp_path)
    assert not (tmp_path / "packages").exists()
    assert not list((tmp_path / "scratch").iterdir())


def test_the_builders_list_is_read_from_its_text() -> None:
    assert len(builder_architectures()) > 30
    text = """
    if config.architectures[0] == "A" or config.architectures[0] == "B" and config.size != "no":
        pass
    elif config.architectures[0] in ["C", "D"] or config.architectures[0] in ("E",):
        pass
    """
    assert architectures_in("if True:\n" + text) == {"A", "B", "C", "D", "E"}


def test_a_builder_whose_text_cannot_be_read_names_none() -> None:
    assert architectures_in("def broken(:") == frozenset()
    assert architectures_in("build = load('native')") == frozenset()
