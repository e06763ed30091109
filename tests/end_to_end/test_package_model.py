"""The flows, run by a real Prefect server."""

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from checkpoints import SMALL_VOCABULARY, copy_tokenizer, write_mute_phi3
from made_proofs import log_variant, publish
from mlflow import MlflowClient
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
from prefect.client.schemas.objects import TaskRun
from served import wait_for

from flows.package_model import package_model, try_recipes
from flows.package_targets import package_targets
from flows.retrain_model import retrain_model
from slmpack.errors import RecipeError, SmokeError, SourceError, UsageError
from slmpack.publish.options import PackageOptions
from slmpack.publish.outcome import StageTimer
from slmpack.publish.request import check_request
from slmpack.records import Interface, Package, Recipe, Target
from slmpack.reports import Outcome, QualityPolicy
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def aliases(name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in MlflowClient().get_registered_model(name).aliases.items()}


def test_publishes_both_interfaces_side_by_side_and_not_twice_unless_forced(
    steady_phi3: Path, mlflow_store: Path, workspace: Path
) -> None:
    chat = package_model(str(steady_phi3), workspace=workspace)
    prompt = package_model(str(steady_phi3), options=PackageOptions(interface=Interface.PROMPT), workspace=workspace)
    again = package_model(str(steady_phi3), workspace=workspace)
    assert [chat.status, prompt.status, again.status] == ["published", "published", "unchanged"]
    assert aliases("steady-phi3") == {"cpu-int4": "1", "cpu-int4-prompt": "2"}
    assert (again.version, again.digest) == (chat.version, chat.digest)
    forced = package_model(str(steady_phi3), options=PackageOptions(force=True), workspace=workspace)
    assert (forced.status, forced.version) == ("published", 3)
    assert aliases("steady-phi3") == {"cpu-int4": "3", "cpu-int4-prompt": "2"}


def test_publishes_nothing_unproved(
    steady_package: Package, small_tokenizer: Path, mlflow_store: Path, workspace: Path, tmp_path: Path
) -> None:
    publish(log_variant(steady_package, "", "talks", workspace))
    write_mute_phi3(tmp_path / "mute", small_tokenizer, SMALL_VOCABULARY)
    with pytest.raises(SmokeError, match="the answer ''; some text"):
        package_model(str(tmp_path / "mute"), name="talks", workspace=workspace)
    assert aliases("talks") == {"cpu-int4": "1"}
    client = MlflowClient()
    assert len(client.search_model_versions("name = 'talks'")) == 1
    experiment = client.get_experiment_by_name("slmpack")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_a_template_that_depends_on_what_a_message_says_is_published_only_with_a_reason(
    steady_package: Package, steady_phi3: Path, mlflow_store: Path, workspace: Path, tmp_path: Path
) -> None:
    publish(log_variant(steady_package, "", "talks", workspace))
    hidden = shutil.copytree(steady_phi3, tmp_path / "talks")
    template = (hidden / "chat_template.jinja").read_text()
    link = "{% if 'python' in messages[-1].content %}http://evil.example{% endif %}"
    (hidden / "chat_template.jinja").write_text(template + link)
    line = r"of the chat template of \S+: {% if 'python' in messages\[-1\]\.content %}, which depends on the words"
    with pytest.raises(SourceError, match=line):
        package_model(str(hidden), name="talks", workspace=workspace)
    client = MlflowClient()
    assert aliases("talks") == {"cpu-int4": "1"}
    assert len(client.search_model_versions("name = 'talks'")) == 1
    options = PackageOptions(recipe=Recipe.SMALL, waive_template="the link is our own")
    waived = package_model(str(hidden), name="talks", options=options, workspace=workspace)
    assert (waived.status, waived.version) == ("published", 2)
    tags = client.get_model_version("talks", "2").tags
    assert tags["slmpack.template_waiver"] == "the link is our own"
    page = page_of(waived)
    assert "the link is our own" in page
    assert "Published with a waiver" in page


def test_a_folder_is_registered_under_its_name_whatever_mlflow_calls_a_logged_model(
    steady_phi3: Path, mlflow_store: Path, workspace: Path
) -> None:
    """MLflow takes neither dots nor other scripts in a logged model's name, and `checkpoint-500` is nobody's name."""
    folder, name = "Qwen2.5-模型/checkpoint-500", "qwen2.5-模型"
    shutil.copytree(steady_phi3, mlflow_store / folder)
    options = PackageOptions(recipe=Recipe.SMALL)
    outcome = package_model(folder, options=options, workspace=workspace)
    assert (outcome.status, outcome.name, outcome.version) == ("published", name, 1)
    model = mlflow.pyfunc.load_model(f"models:/{name}@cpu-int4", model_config={"max_tokens": 2})
    assert model.predict({"messages": [{"role": "user", "content": "Hi"}]})["usage"]["completion_tokens"] == 2
    again = package_model(folder, options=options, workspace=workspace)
    assert (again.status, again.name, again.version) == ("unchanged", name, 1)


def test_a_source_that_says_no_name_is_refused_before_it_is_fetched(
    steady_phi3: Path, mlflow_store: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(steady_phi3, tmp_path / "models" / "checkpoints" / "outputs" / "final")
    for run in (package_model, package_targets, lambda source, **rest: retrain_model("chats.jsonl", source, **rest)):
        with pytest.raises(UsageError, match=r"gives the name 'final', which any model could have; .*--name"):
            run(str(folder), workspace=tmp_path / "empty")
    assert not (tmp_path / "empty" / "snapshots").exists()


def write_narrow_phi3(folder: Path, tokenizer: Path, hidden_size: int) -> None:
    """Write a Phi-3 whose rows k_quant cannot cut into pairs of blocks: 96 weights are 3 blocks of 32, 80 are 2.5."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=SMALL_VOCABULARY, hidden_size=hidden_size, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=hidden_size // 16, num_key_value_heads=hidden_size // 16, max_position_embeddings=2048,
        original_max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = Phi3ForCausalLM(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        model.lm_head.weight *= 30  # sure of itself, so that quantising costs it something
    model.to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def page_of(outcome: Outcome) -> str:
    assert outcome.name is not None
    run = MlflowClient().get_model_version(outcome.name, str(outcome.version)).run_id
    return str(mlflow.artifacts.load_text(f"runs:/{run}/proof/version.html"))


@flow
def try_these(source: str, recipes: tuple[Recipe, ...], workspace: Path) -> Outcome:
    """Try recipes of the test's own choice, the stock builder's among them, which `auto` leaves out."""
    asked = check_request(
        Target.CPU_INT4,
        PackageOptions(policy=QualityPolicy(max_perplexity_ratio=1.0), waive_quality="random weights, for a test"),
        Path(source).name, workspace,
    )  # fmt: skip
    request = asked.model_copy(update={"recipes_to_try": recipes})
    snapshot = fetch_snapshot(resolve_source(source), workspace)
    return try_recipes(snapshot, request, StageTimer())


def test_a_recipe_that_cannot_take_the_model_is_left_out_and_the_page_says_so(
    small_tokenizer: Path, mlflow_store: Path, workspace: Path, tmp_path: Path
) -> None:
    write_narrow_phi3(tmp_path / "narrow", small_tokenizer, hidden_size=96)
    recipes = (Recipe.STOCK_SMALL, Recipe.STOCK_MIXED, Recipe.SMALL)
    outcome = try_these(str(tmp_path / "narrow"), recipes, workspace)
    assert (outcome.status, outcome.recipe) == ("published", Recipe.SMALL)
    page = page_of(outcome)
    assert "rows that k_quant_mixed cannot cut into pairs of blocks of 32" in page
    assert ">not built<" in page
    assert ">refused<" in page
    with pytest.raises(RecipeError, match="an even number of blocks a row"):
        package_model(str(tmp_path / "narrow"), options=PackageOptions(recipe=Recipe.STOCK_MIXED), workspace=workspace)


def test_a_waiver_counts_for_the_last_recipe_that_could_be_built(
    small_tokenizer: Path, mlflow_store: Path, workspace: Path, tmp_path: Path
) -> None:
    write_narrow_phi3(tmp_path / "narrower", small_tokenizer, hidden_size=80)
    outcome = try_these(str(tmp_path / "narrower"), (Recipe.STOCK_SMALL, Recipe.STOCK_MIXED), workspace)
    assert (outcome.status, outcome.recipe) == ("published", Recipe.STOCK_SMALL)
    assert page_of(outcome).count(">not built<") == 1


def test_our_own_errors_are_not_retried(mlflow_store: Path, workspace: Path) -> None:
    with pytest.raises(SourceError):
        package_model(str(mlflow_store / "nowhere"), workspace=workspace)
    named = TaskRunFilter(name=TaskRunFilterName(any_=[f"resolve {mlflow_store / 'nowhere'}"]))  # one server for all

    def ended() -> list[TaskRun]:
        """Return the task's runs once the server has heard of their end: it does by events, which come later."""
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(task_run_filter=named)
        return runs if all(run.state is not None and run.state.is_final() for run in runs) else []

    assert [run.run_count for run in wait_for(ended)] == [1]
