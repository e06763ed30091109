"""Behind a proxy: what is on this machine does not go through it, and what cannot be reached is told soon."""

from pathlib import Path

import mlflow_database
import prefect_database
import pytest
from command_line import error_lines, slmpack

NOWHERE = "http://127.0.0.1:9"  # the discard port, on which nothing listens
PROXIES = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"), NOWHERE)


@pytest.mark.slow
def test_behind_a_proxy_prefect_reaches_its_own_server_and_an_index_that_is_away_is_told_in_seconds(
    tmp_path: Path,
) -> None:
    mlflow_database.write_empty_database(tmp_path / "mlflow.db")
    prefect_database.write_empty_database(tmp_path / "prefect")
    settings = {"PIP_INDEX_URL": f"{NOWHERE}/simple", "PIP_RETRIES": "1", "PREFECT_HOME": str(tmp_path / "prefect")}
    done = slmpack(
        "package", "pypi://models==1.0/a.gguf", "--workspace", str(tmp_path / "ws"), cwd=tmp_path,
        NO_PROXY="corp.example", **settings, **PROXIES,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "the package index cannot be reached (the connection is refused)" in line
    assert done.stderr.count("with pip") == 1  # and not once for every retry of a worker
