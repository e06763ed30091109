"""What a server downloads: in a folder of its own, which goes with it, or with the next server if it was killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import pytest
from mlflow_server import used_mlflow_server

from slmpack.errors import TrustError
from slmpack.serve.downloads import remove_download, temporary_downloads
from slmpack.serve.locate import locate

KILLED = """
import os, signal, sys
from pathlib import Path
from slmpack.serve.downloads import temporary_downloads
with temporary_downloads(Path(sys.argv[1])) as folder:
    (folder / "model.onnx").write_bytes(b"1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_is_temporary_lies_in_a_folder_that_goes_at_the_end(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    with temporary_downloads(tmp_path / "work") as folder:
        made = Path(tempfile.mkdtemp())
        (made / "model.onnx").write_bytes(b"1")
        assert made.parent == folder
        assert folder.stat().st_mode & 0o077 == 0
        assert folder.parent == tmp_path / "work" / "scratch"
    assert not list(folder.parent.iterdir())
    assert tempfile.gettempdir() == before


def test_what_a_killed_server_has_left_is_removed_and_what_a_running_one_holds_is_not(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=os.environ, check=False)
    assert done.returncode < 0
    (left,) = scratch.iterdir()
    (scratch / "measure-of-another").mkdir()
    with temporary_downloads(tmp_path) as first:
        assert not left.exists()
        (first / "model.onnx").write_bytes(b"1")
        with temporary_downloads(tmp_path) as second:
            assert (first / "model.onnx").exists()
        assert not second.exists()
    assert [path.name for path in scratch.iterdir()] == ["measure-of-another"]


def test_a_download_is_removed_whole_and_a_model_that_lies_elsewhere_stays(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "model").mkdir()
    with temporary_downloads(tmp_path / "work") as folder:
        downloaded = Path(tempfile.mkdtemp()) / "model"
        downloaded.mkdir()
        for each in (downloaded, elsewhere, folder):
            remove_download(each)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    remove_download(elsewhere)
    assert elsewhere.is_dir()


@pytest.mark.slow
def test_a_version_that_is_refused_leaves_no_download(tmp_path: Path) -> None:
    code = tmp_path / "stranger.py"
    code.write_text("import mlflow\n\n\nclass Echo(mlflow.pyfunc.PythonModel):\n"
                    "    def predict(self, context, model_input):\n        return model_input\n\n\n"
                    "mlflow.models.set_model(Echo())\n")  # fmt: skip
    with used_mlflow_server(tmp_path):
        mlflow.pyfunc.log_model(
            name="stranger", python_model=str(code), pip_requirements=[], registered_model_name="stranger"
        )
        with temporary_downloads(tmp_path / "work") as folder:
            with pytest.raises(TrustError):
                locate("models:/stranger/1")
            assert [path.name for path in folder.iterdir()] == [".lock"]
