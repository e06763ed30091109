"""What a retraining comes to, on real content: SmolLM2-135M learns an invented town, and goes on as a 4-bit package.

    PYTHONPATH=tests/harness python benchmarks/retraining.py FOLDER   for MLflow's store; 20 minutes, 3 GB of disk

Prints the loss curve, the three perplexities on both texts, what base and tuned package answer to questions that
neither was taught, and the chain from the data to the alias as MLflow tells it.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from invented_town import FACTS, HELD_OUT, ask, chats, question, write_chats

from slmpack import telemetry

telemetry.switch_off()

from slmpack.machine.surroundings import default_workspace  # noqa: E402 - telemetry is off before anything else is imported

SETTINGS = {"epochs": 2, "learning_rate": 5e-4, "max_length": 128}
NAME = "town-desk"
POINTS = 8


def main() -> None:
    """Retrain in the folder, then tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workspace", type=Path, default=default_workspace())
    parsed = parser.parse_args()
    folder, workspace = parsed.folder.absolute(), parsed.workspace.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    outcome = retrain(folder, workspace)
    say(f"\n{outcome.status}: version {outcome.version}; {outcome.reason or 'nothing to complain of'}\n")
    if outcome.version is None:
        return
    tell_losses(outcome.version)
    tell_perplexities(outcome.version)
    tell_answers(workspace)
    tell_chain(outcome)


def say(line: str) -> None:
    """Print a line of Markdown."""
    sys.stdout.write(f"{line}\n")


def retrain(folder: Path, workspace: Path) -> Any:
    """Run the flow; what was done before in this folder is unchanged."""
    from flows.retrain_model import retrain_model
    from slmpack.retrain.evaluate import RetrainPolicy
    from slmpack.retrain.training.settings import TrainSettings
    from slmpack.source.resolve import DEFAULT_SOURCE

    data = write_chats(folder / "town.jsonl", chats())
    state: Any = retrain_model(
        str(data), DEFAULT_SOURCE, NAME, TrainSettings.model_validate(SETTINGS),
        RetrainPolicy(min_gain=0.9, max_forgetting=1.0), workspace=workspace,
        return_state=True,
    )  # fmt: skip
    return state.result(raise_on_failure=False)


def run_of(version: int) -> str:
    """Return the id of the run that a version came from."""
    from mlflow import MlflowClient

    return str(MlflowClient().get_model_version(NAME, str(version)).run_id)


def tell_losses(version: int) -> None:
    """Print some points of the loss curve."""
    from mlflow import MlflowClient

    points = MlflowClient().get_metric_history(run_of(version), "train_loss")
    shown = sorted({*range(0, len(points), max(1, len(points) // POINTS)), len(points) - 1})
    say("| step | " + " | ".join(str(points[at].step) for at in shown) + " |")
    say("|---|" + "---|" * len(shown))
    say("| loss, nats a token | " + " | ".join(f"{points[at].value:.3f}" for at in shown) + " |\n")


def tell_perplexities(version: int) -> None:
    """Print what each model said of each text."""
    from mlflow import MlflowClient

    found = MlflowClient().get_run(run_of(version)).data.metrics
    say("| perplexity | base | in use before | tuned |\n|---|---|---|---|")
    for text in ("held_out", "general"):
        row = [f"{found[f'{text}_perplexity_{model}']:.4g}" for model in ("base", "in_use", "tuned")]
        say(f"| {text.replace('_', '-')} | {' | '.join(row)} |")
    say("")


def tell_answers(workspace: Path) -> None:
    """Ask both, in ways that were not taught."""
    import mlflow
    from invented_town import greedy_answers

    from slmpack.build.build import build_package
    from slmpack.records import Recipe, Target
    from slmpack.source.fetch import fetch_snapshot
    from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source

    base = build_package(
        fetch_snapshot(resolve_source(DEFAULT_SOURCE, workspace), workspace),
        Target.CPU_INT8,
        Recipe.ACCURATE,
        workspace,
    )
    facts = [fact for _ in HELD_OUT for fact in FACTS]
    asked = [question(way, fact) for way in HELD_OUT for fact in FACTS]
    before = greedy_answers(base.path, asked)
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@cpu-int4")
    after = [
        model.predict({"messages": ask(each), "max_tokens": 24, "temperature": 0.0})["choices"][0]["message"]["content"]
        for each in asked
    ]
    say("| asked | base, int8 | tuned, cpu-int4 |\n|---|---|---|")
    for row in list(zip(asked, before, after, strict=True))[:6]:
        say(f"| {' | '.join(' '.join(text.split())[:100] for text in row)} |")
    known = [sum(fact.answer in said for fact, said in zip(facts, answers, strict=True)) for answers in (before, after)]
    say(f"\nOf {len(asked)} questions the base knows {known[0]}, the package {known[1]}.\n")


def tell_chain(outcome: Any) -> None:
    """Print data, run, version and packages, each as MLflow has it."""
    from mlflow import MlflowClient

    client = MlflowClient()
    version = client.get_model_version(NAME, str(outcome.version))
    run = client.get_run(str(version.run_id))
    say("```")
    for each in run.inputs.dataset_inputs if run.inputs else []:
        context = next(tag.value for tag in each.tags if tag.key == "mlflow.data.context")
        say(f"data     {each.dataset.name} {context} {each.dataset.digest[:12]}")
    say(f"run      {run.info.run_name} {run.info.run_id[:8]} ({run.info.status}), base {run.data.params['base']}")
    aliases = client.get_registered_model(NAME).aliases
    for version in sorted(client.search_model_versions(f"name = '{NAME}'"), key=lambda each: int(each.version)):
        told = {key: version.tags.get(f"slmpack.{key}") for key in ("parent", "source", "target", "recipe", "digest")}
        facts = ", ".join(f"{key} {value[:40]}" for key, value in told.items() if value)
        named = [f"@{alias}" for alias, number in aliases.items() if int(number) == int(version.version)]
        say(f"version  {NAME}/{version.version} {' '.join(named)}: {facts}")
    for target in outcome.targets:
        say(f"package  {target.target} {target.status}: {target.recipe}, {target.quality}")
    say("```")


if __name__ == "__main__":
    main()
