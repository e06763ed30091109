"""Build: the ONNX Runtime GenAI builder in a child process."""

import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest
import torch
from command_line import children_with
from transformers import AutoModelForCausalLM

from slmpack.build.build import SampleDecodeRequest, build_package, package_digest, run_sample_decode
from slmpack.build.genai import run_builder
from slmpack.errors import BuildError, UsageError, WorkspaceError
from slmpack.machine.child import run_in_child
from slmpack.machine.store import damage
from slmpack.records import Package, Recipe, Snapshot, Target
from slmpack.targets import RECIPES, recipes_to_try


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "recipe"),
    [(target, recipe) for target in (Target.CPU_INT4, Target.CPU_INT8) for recipe in RECIPES[target]],
)
def test_builds_every_recipe_into_a_whole_folder(
    tiny_snapshot: Snapshot, workspace: Path, target: Target, recipe: Recipe
) -> None:
    package = build_package(tiny_snapshot, target, recipe, workspace)
    assert damage(package.path) is None
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= {f.name for f in package.files}
    assert package.build_peak_bytes > 0


@pytest.mark.slow
def test_phi3_answers_past_its_sliding_window_as_transformers_does(
    tiny_phi3: Path, tiny_snapshot: Snapshot, workspace: Path
) -> None:
    package = build_package(tiny_snapshot, Target.CPU_INT8, Recipe.ACCURATE, workspace)
    ids = np.random.default_rng(0).integers(17, 49152, 2600)
    model = og.Model(str(package.path))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids[:2040])
    generator.append_tokens(ids[2040:])
    found = np.asarray(generator.get_output("logits"))[0, -1]
    source = AutoModelForCausalLM.from_pretrained(tiny_phi3, dtype=torch.float32)
    with torch.no_grad():
        expected = source(torch.tensor(ids[None])).logits[0, -1].numpy()
    assert np.corrcoef(found, expected)[0, 1] > 0.99


@pytest.mark.slow
def test_a_second_build_is_a_hit(tiny_package: Package, tiny_snapshot: Snapshot, workspace: Path) -> None:
    before = (workspace / "logs" / f"build-{tiny_package.digest[:12]}.log").stat().st_mtime_ns
    again = build_package(tiny_snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)
    assert again == tiny_package
    assert (workspace / "logs" / f"build-{tiny_package.digest[:12]}.log").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_digest_depends_on_source_target_and_recipe(tiny_snapshot: Snapshot, smollm2: Snapshot) -> None:
    digests = {
        package_digest(snapshot, target, recipe)
        for snapshot in (tiny_snapshot, smollm2)
        for target, recipes in RECIPES.items()
        for recipe in recipes
    }
    assert len(digests) == 2 * sum(len(recipes) for recipes in RECIPES.values())
    weighted, stock = (
        [package_digest(tiny_snapshot, Target.CPU_INT4, recipe, text) for text in (None, "a", "b")]
        for recipe in (Recipe.SMALL, Recipe.STOCK_SMALL)
    )
    assert (len(set(weighted)), len(set(stock))) == (3, 1)  # a text counts where it is read


@pytest.mark.slow
def test_the_transformers_target_is_the_snapshot_itself(tiny_snapshot: Snapshot, workspace: Path) -> None:
    package = build_package(tiny_snapshot, Target.TRANSFORMERS, None, workspace)
    assert package.path == tiny_snapshot.path
    assert package.files == tiny_snapshot.files


@pytest.mark.slow
def test_a_killed_builder_is_an_error_that_names_its_log(tiny_snapshot: Snapshot, tmp_path: Path) -> None:
    threading.Thread(target=kill_first_builder, daemon=True).start()
    with pytest.raises(BuildError, match=r"the build was killed by signal 9.*the log is .*build-.*\.log"):
        build_package(tiny_snapshot, Target.CPU_INT8, Recipe.ACCURATE, tmp_path)
    assert not (tmp_path / "packages").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def kill_first_builder() -> None:
    """Kill our first child that runs the builder."""
    wanted = f"{run_builder.run_builder.__module__}:{run_builder.run_builder.__qualname__}"
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if children := children_with(wanted):
            children[0].kill()
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_a_package_that_cannot_decode_is_refused(tiny_package: Package, tmp_path: Path) -> None:
    for file in tiny_package.files:
        (tmp_path / file.name).write_bytes((tiny_package.path / file.name).read_bytes())
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(BuildError, match="the built package does not run"):
        run_in_child(
            run_sample_decode, SampleDecodeRequest(package=tmp_path), log=tmp_path / "log", limit_seconds=900,
            failure=BuildError, doing="the first run",
        )  # fmt: skip


@pytest.mark.slow
def test_asks_for_space_before_it_starts(tiny_snapshot: Snapshot, tmp_path: Path) -> None:
    huge = tiny_snapshot.model_copy(update={"parameters": 10**15})
    with pytest.raises(WorkspaceError, match=r"a cpu-int4 package needs 2,000,000,000,000,000 bytes"):
        build_package(huge, Target.CPU_INT4, Recipe.SMALL, tmp_path)


def test_auto_tries_every_recipe_of_the_target_the_cheapest_first() -> None:
    assert recipes_to_try(Target.CPU_INT4, Recipe.AUTO) == (Recipe.SMALL, Recipe.BALANCED, Recipe.ACCURATE)
    tried = (Recipe.SMALL, Recipe.BALANCED, Recipe.ACCURATE, Recipe.BEST)
    assert recipes_to_try(Target.CPU_INT4, Recipe.AUTO, with_quality_chats=True) == tried
    assert recipes_to_try(Target.TRANSFORMERS, Recipe.AUTO, with_quality_chats=True) == (None,)
    assert recipes_to_try(Target.CPU_INT8, Recipe.AUTO) == (Recipe.SMALL, Recipe.ACCURATE)
    assert recipes_to_try(Target.TRANSFORMERS, Recipe.AUTO) == (None,)
    assert recipes_to_try(Target.CPU_INT4, Recipe.BALANCED) == (Recipe.BALANCED,)


@pytest.mark.parametrize(
    ("target", "recipe"), [(Target.CPU_INT8, Recipe.BALANCED), (Target.TRANSFORMERS, Recipe.SMALL)]
)
def test_refuses_a_recipe_that_the_target_does_not_have(target: Target, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match=rf"recipe {recipe} for target {target}; {target} has auto"):
        recipes_to_try(target, recipe)


@pytest.mark.slow
def test_a_package_whose_logits_are_no_numbers_is_refused(tiny_package: Package, tmp_path: Path) -> None:
    import onnx

    for file in tiny_package.files:
        (tmp_path / file.name).write_bytes((tiny_package.path / file.name).read_bytes())
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    norm = next(each for each in graph.initializer if "norm" in each.name and each.external_data)
    place = {each.key: int(each.value) for each in norm.external_data if each.key in {"offset", "length"}}
    with (tmp_path / "model.onnx.data").open("r+b") as data:
        data.seek(place["offset"])
        data.write(np.full(place["length"] // 4, np.nan, dtype=np.float32).tobytes())
    with pytest.raises(BuildError, match="logits that are not finite at decode step 1; finite numbers"):
        run_sample_decode(SampleDecodeRequest(package=tmp_path))
