"""A server that follows an alias: a new version is taken up without a lost request, a damaged one is not."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from live_folder import seen
from made_proofs import flip_a_bit, log_variant, publish
from mlflow import MlflowClient
from mlflow_server import used_mlflow_server
from served import Served, serving_folder, wait_for

from slmpack.records import LoggedModel, Package

pytestmark = pytest.mark.slow
NAME = "followed"
URI = Path(f"models:/{NAME}@cpu-int4")
TURN_SECONDS = 600  # the alias is looked at every five
CHAT = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 24, "logit_bias": {"2": -100}}


@pytest.fixture(scope="module")
def served(
    store: Path, small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    publish(log_variant(small_package, "", NAME, workspace))
    with serving_folder(URI, tmp_path_factory.mktemp("follow"), "--follow", "--slots", "4") as server:
        yield server


def version(served: Served) -> str:
    (model,) = json.loads(served.get("/v1/models")[1])["data"]
    return str(model["slmpack"]["version"])


def engines(served: Served) -> int:
    return sum(map(is_engine, psutil.Process(served.process.pid).children(recursive=True)))


def is_engine(process: psutil.Process) -> bool:
    try:
        return "slmpack.serve.engine_process" in process.cmdline()
    except psutil.Error:  # it is about to be gone
        return False


@contextmanager
def asking(served: Served) -> Iterator[list[tuple[int, object]]]:
    """Ask without a pause, from three threads; give the list of all answers."""
    found: list[tuple[int, object]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            found.append(served.post("/v1/chat/completions", CHAT))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_new_version_is_taken_up_without_a_lost_request(
    served: Served, small_package: Package, workspace: Path
) -> None:
    assert version(served) == "1"
    with asking(served) as answers:
        publish(log_variant(small_package, "2", NAME, workspace), force=True)
        wait_for(lambda: version(served) == "2", TURN_SECONDS)
        enough = len(answers) + 20
        wait_for(lambda: len(answers) > enough and engines(served) == 1, TURN_SECONDS)
    assert {status for status, _ in answers} == {200}
    assert len({json.dumps(answer["choices"]) for _, answer in answers}) == 1  # type: ignore[index]
    assert len({answer["id"] for _, answer in answers}) == len(answers)  # type: ignore[index]


def test_what_was_downloaded_goes_with_its_version(small_package: Package, workspace: Path, tmp_path: Path) -> None:
    name = "downloaded"
    (folder := tmp_path / "served").mkdir()

    def held() -> list[Path]:
        return seen(folder, "scratch/serve-*/**/model.onnx")

    with used_mlflow_server(tmp_path):
        publish(log_variant(small_package, "", name, workspace))
        with serving_folder(Path(f"models:/{name}@cpu-int4"), folder, "--follow") as server:
            (first,) = held()
            publish(log_variant(small_package, "2", name, workspace), force=True)
            wait_for(lambda: version(server) == "2" and not first.exists(), TURN_SECONDS)
            (second,) = held()
            assert second.exists()
            assert server.post("/v1/chat/completions", CHAT)[0] == 200


def test_a_damaged_version_is_not_taken_up_and_the_one_before_goes_on(
    served: Served, small_package: Package, workspace: Path
) -> None:
    damaged: LoggedModel = log_variant(small_package, "3", NAME, workspace)
    flip_a_bit(damaged)
    before = version(served)
    made = MlflowClient().create_model_version(NAME, damaged.uri, model_id=damaged.model_id)
    MlflowClient().set_registered_model_alias(NAME, "cpu-int4", made.version)
    wait_for(lambda: "is not taken up" in served.log.read_text(), TURN_SECONDS)
    assert "model.onnx.data was changed" in served.log.read_text()
    assert version(served) == before
    assert served.post("/v1/chat/completions", CHAT)[0] == 200
    MlflowClient().set_registered_model_alias(NAME, "cpu-int4", before)


def test_a_version_whose_file_changes_while_it_is_served_goes_on_and_is_not_loaded_again(
    served: Served, small_package: Package, workspace: Path, tmp_path: Path
) -> None:
    name = "changed"
    published = publish(log_variant(small_package, "4", name, workspace))
    uri = Path(f"models:/{name}@cpu-int4")
    with serving_folder(uri, tmp_path) as server:
        first = server.post("/v1/chat/completions", CHAT)
        flip_a_bit(published.model)
        again = server.post("/v1/chat/completions", CHAT)
        assert first[0] == again[0] == 200
        assert first[1]["choices"] == again[1]["choices"]
    with pytest.raises(RuntimeError, match=r"model\.onnx\.data was changed"), serving_folder(uri, tmp_path):
        pass
