"""Packages of architectures that only optimum exports, built as `build_package` builds them, and run."""

import logging
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
import torch
from exported_checkpoints import CONTEXT, family_snapshot, write_family, write_unknown
from runtime import logits_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slmpack.build.build import build_package, package_digest
from slmpack.build.optimum.check_logits import CheckRequest, compare_with_source
from slmpack.build.optimum.environment import exporter_python
from slmpack.build.optimum.export import build_exported, export_graph
from slmpack.build.optimum.genai_config import PackageRequest, write_package
from slmpack.build.optimum.quantise_graph import GraphOptions
from slmpack.build.optimum.recipes import MODEL_TYPES, exporter_versions
from slmpack.errors import BuildError, RecipeError
from slmpack.machine.child import run_in_child
from slmpack.machine.json_file import read_json, write_json
from slmpack.machine.store import MANIFEST, damage, store_folder
from slmpack.prove.parity.cache import known_parity
from slmpack.records import Recipe, Snapshot, Target
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

pytestmark = pytest.mark.slow

PROMPT = list(range(40, 75))
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=["gpt2", pytest.param("gpt-neox", marks=pytest.mark.release)])
def snapshot(request: pytest.FixtureRequest, workspace: Path) -> Snapshot:
    return family_snapshot(request.param, workspace)


def greedy(package: Path) -> list[int]:
    """Return what the runtime says after the prompt."""
    model = og.Model(str(package))
    parameters = og.GeneratorParams(model)
    length = len(PROMPT) + NEW_TOKENS
    parameters.set_search_options(max_length=length, min_length=length)
    generator = og.Generator(model, parameters)
    generator.append_tokens(PROMPT)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


def test_an_exported_graph_answers_as_transformers_does(snapshot: Snapshot, workspace: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    build_exported(snapshot, GraphOptions(bits=None), package, "of a test", workspace)
    source: Any = AutoModelForCausalLM.from_pretrained(snapshot.path, dtype=torch.float32)
    prompt = torch.tensor([PROMPT])
    expected = source.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
        max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
    )  # fmt: skip
    assert greedy(package) == expected[0, len(PROMPT) :].tolist()


def test_an_int4_package_runs_and_has_its_sources_tokenizer(snapshot: Snapshot, workspace: Path) -> None:
    package = build_package(snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)
    assert damage(package.path) is None
    assert package.exporter == "optimum"
    assert package.versions == exporter_versions()
    assert package.build_peak_bytes > 0
    told = (
        rf"exported by optimum-onnx 0\.1\.0, since .* know {snapshot.architecture}; in float32 .* within \S+ of their"
    )
    assert re.match(told, package.quantisation[0])
    assert known_parity(package, workspace)[-1].name == "without the wrapper"  # after all that is compared
    assert len(greedy(package.path)) == NEW_TOKENS
    config = read_json(package.path / "genai_config.json")
    assert config["model"]["context_length"] == config["search"]["max_length"] == CONTEXT
    assert config["search"]["past_present_share_buffer"] is False
    source = AutoModelForCausalLM.from_pretrained(snapshot.path, dtype=torch.float32)
    expected = source(torch.tensor([PROMPT])).logits[0].detach().numpy()
    found = logits_of(package.path, PROMPT).numpy()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("target", "recipe", "widths"),
    [
        pytest.param(Target.CPU_INT4, Recipe.SMALL, {(4, 32): 13}, marks=pytest.mark.release),
        (Target.CPU_INT4, Recipe.BALANCED, {(4, 32): 8, (8, 32): 5}),
        (Target.CPU_INT8, Recipe.SMALL, {(8, 128): 13}),
        pytest.param(Target.CPU_INT8, Recipe.ACCURATE, {(8, 32): 13}, marks=pytest.mark.release),
    ],
)
def test_every_recipe_quantises_every_matrix(
    workspace: Path, target: Target, recipe: Recipe, widths: dict[tuple[int, int], int]
) -> None:
    package = build_package(family_snapshot("gpt2", workspace), target, recipe, workspace)
    graph = onnx.load(package.path / "model.onnx", load_external_data=False).graph
    found: Counter[tuple[int, int]] = Counter()
    for node in graph.node:
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            assert numbers["accuracy_level"] == 4
            found[numbers["bits"], numbers["block_size"]] += 1
    assert found == widths


def test_a_second_build_is_a_hit_and_another_recipe_takes_the_same_export(
    workspace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = family_snapshot("gpt2", workspace)
    build_package(snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)
    log = next((workspace / "logs").glob(f"build-{package_digest(snapshot, Target.CPU_INT4, Recipe.SMALL)[:12]}.log"))
    before = log.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger="slmpack"):
        build_package(snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)
    assert log.stat().st_mtime_ns == before
    assert "exporting" not in caplog.text
    graph = export_graph(snapshot, workspace) / "model.onnx"
    made = graph.stat().st_mtime_ns
    build_exported(snapshot, GraphOptions(bits=None), tmp_path, "of a test", workspace)
    assert graph.stat().st_mtime_ns == made


@pytest.mark.release
def test_falcons_new_architecture_has_a_cache_for_every_head(workspace: Path) -> None:
    package = build_package(family_snapshot("falcon-11b", workspace), Target.CPU_INT4, Recipe.SMALL, workspace)
    assert read_json(package.path / "genai_config.json")["model"]["decoder"]["num_key_value_heads"] == 4
    assert len(greedy(package.path)) == NEW_TOKENS


def test_weights_without_the_models_prefix_are_found_beside_a_head_with_its_own(
    workspace: Path, tmp_path: Path
) -> None:
    """As facebook/opt has them."""
    checkpoint = tmp_path / "checkpoint"
    write_family(checkpoint, "opt")
    tensors = load_file(checkpoint / "model.safetensors")
    head = tensors["model.decoder.embed_tokens.weight"].clone()
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file({**bare, "lm_head.weight": head}, checkpoint / "model.safetensors", {"format": "pt"})
    snapshot = fetch_snapshot(resolve_source(str(checkpoint)), tmp_path)
    link_environments(workspace, tmp_path)
    assert (export_graph(snapshot, tmp_path) / "model.onnx").is_file()


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_graph_of_other_rotary_settings_is_another_model(workspace: Path, tmp_path: Path) -> None:
    """The same weights, read with the rotary settings that a configuration without translation would give."""
    snapshot = family_snapshot("gpt-neox", workspace)
    graph = export_graph(snapshot, workspace) / "model.onnx"
    other = tmp_path / "other"
    write_family(other, "gpt-neox", rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    request = CheckRequest(snapshot=other, dtype="bfloat16", context_length=CONTEXT, graph=graph)
    with pytest.raises(BuildError, match=r"the exported graph is another model: its logits differ .* positions, most"):
        run_in_child(
            compare_with_source, request, log=tmp_path / "log", limit_seconds=900, failure=BuildError, doing="it"
        )


def test_a_weight_that_is_no_number_is_named(tmp_path: Path, workspace: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    model = write_family(checkpoint, "gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight[3] = float("nan")
    model.save_pretrained(checkpoint)
    snapshot = fetch_snapshot(resolve_source(str(checkpoint)), tmp_path)
    link_environments(workspace, tmp_path)
    with pytest.raises(BuildError, match=r"transformer\.ln_f\.weight holds a NaN"):
        build_package(snapshot, Target.CPU_INT4, Recipe.SMALL, tmp_path)
    assert not (tmp_path / "exports").exists()
    assert not (tmp_path / "packages").exists()


def link_environments(workspace: Path, other: Path) -> None:
    """Let another workspace use the exporter's environment of the shared one."""
    exporter_python(workspace)
    (other / "environments").symlink_to(workspace / "environments")


def test_an_end_of_turn_token_beyond_the_vocabulary_is_named(workspace: Path, tmp_path: Path) -> None:
    snapshot = family_snapshot("gpt2", workspace)
    broken = tmp_path / "snapshot"
    shutil.copytree(snapshot.path, broken, symlinks=True)
    (broken / "generation_config.json").unlink()
    write_json(broken / "generation_config.json", {"eos_token_id": 50256})
    (tmp_path / "package").mkdir()
    request = PackageRequest(
        graph=export_graph(snapshot, workspace) / "model.onnx", snapshot=broken, layers=3, context_length=CONTEXT,
        options=GraphOptions(bits=None), into=tmp_path / "package",
    )  # fmt: skip
    with pytest.raises(BuildError, match=r"generation_config\.json asks for the end-of-turn token 50256; ids below"):
        write_package(request)


def test_an_architecture_that_neither_knows_is_told_both_reasons(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_unknown(checkpoint)
    snapshot = fetch_snapshot(resolve_source(str(checkpoint)), tmp_path)
    told = (
        r"architecture Starcoder2ForCausalLM: the builder of ONNX Runtime GenAI \S+ does not know it, and optimum-onnx "
        r"0\.1\.0 does not know its model_type 'starcoder2'; .*; use --target transformers"
    )
    with pytest.raises(BuildError, match=told):
        build_package(snapshot, Target.CPU_INT4, Recipe.SMALL, tmp_path)
    assert not (tmp_path / "environments").exists()
    assert not (tmp_path / "packages").exists()


def test_what_optimum_cannot_export_is_told_with_both_reasons(workspace: Path, tmp_path: Path) -> None:
    snapshot = family_snapshot("gpt2", workspace)

    def break_it(into: Path) -> dict[str, str | int | None]:
        shutil.copytree(snapshot.path, into, symlinks=True, dirs_exist_ok=True)
        config = read_json(into / "config.json")
        for name in ("config.json", MANIFEST):
            (into / name).unlink()
        write_json(into / "config.json", {**config, "activation_function": "of-a-later-release"})
        return {}

    broken = store_folder(tmp_path, "snapshots", "broken", break_it)
    other = snapshot.model_copy(update={"path": broken, "files": ()})
    told = r"architecture GPT2LMHeadModel: the ONNX Runtime GenAI builder does not know it, and optimum cannot export"
    with pytest.raises(BuildError, match=told):
        export_graph(other, workspace)


def test_a_recipe_that_exported_graphs_lack_is_refused_and_nothing_is_made(workspace: Path, tmp_path: Path) -> None:
    snapshot = family_snapshot("gpt2", workspace)
    with pytest.raises(RecipeError, match=r"recipe accurate .*: small, balanced; use --recipe auto"):
        build_package(snapshot, Target.CPU_INT4, Recipe.ACCURATE, tmp_path)
    assert not (tmp_path / "packages").exists()


def test_the_list_of_what_optimum_exports_is_optimums(workspace: Path) -> None:
    code = (
        "from optimum.exporters.onnx import model_configs\n"
        "from optimum.exporters.tasks import TasksManager as T\n"
        "for name, known in T._SUPPORTED_MODEL_TYPE.items():\n"
        "    if 'text-generation-with-past' in known.get('onnx', {}): print(name)\n"
    )
    command = [str(exporter_python(workspace)), "-P", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert set(said) >= MODEL_TYPES
    seq2seq_or_several = {
        "bart", "bigbird-pegasus", "bigbird_pegasus", "blenderbot", "blenderbot-small", "gemma3", "marian", "mbart",
        "pegasus", "encoder-decoder",
    }  # fmt: skip
    assert {name for name in said if "-" not in name} - MODEL_TYPES <= seq2seq_or_several
