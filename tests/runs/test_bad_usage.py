"""Mistakes: one kind has one exit code, whichever command it is made in, and its line says what was meant.

2: what can never be right, and a file of an option that is not there. 1: the source, model, alias or name that the
command is about is not there.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.cli import run
from flows.cli_lines import FAILED, USAGE

pytestmark = pytest.mark.slow

NAME = "smollm2-135m-instruct"
BOTH = f"{NAME} has cpu-int4, cpu-int8"
RETRAIN = ["retrain", "--data", "nowhere.jsonl"]

MISTAKES: list[tuple[list[str], int, str]] = [
    # a word that is none of a few
    (["pakage"], USAGE, "no command pakage; slmpack has package, verify, rollback, sbom, chat, serve, retrain, "
     "promote, sign, keys, targets, list, show, open, diff; did you mean package?"),
    (["package", "--tagret", "cpu-int4"], USAGE, "slmpack package has no option --tagret; did you mean --target?"),
    (["verify", "models:/a/1", "--jsn"], USAGE, "slmpack verify has no option --jsn; did you mean --json?"),
    (["chat", "models:/a/1", "Hi", "--max-token-count=3"], USAGE, "no option --max-token-count; did you mean "
     "--max-tokens?"),
    (["retrain", "--data", "x", "--epoch-count", "3"], USAGE, "no option --epoch-count; did you mean --epochs?"),
    (["package", "--target", "cpu-int3"], USAGE, "found 'cpu-int3'; expected one of transformers, cpu-int4"),
    (["package", "--target", "cpu_int4"], USAGE, "did you mean cpu-int4?"),
    (["rollback", "a", "--target", "cuda"], USAGE, "did you mean cuda-"),
    (["retrain", "--data", "x", "--target", "transformer"], USAGE, "did you mean transformers?"),
    (["package", "--recipe", "balenced"], USAGE, "did you mean balanced?"),
    (["package", "--recipe", "best", "--target", "cpu-int8"], USAGE, "cpu-int8 has auto, small, accurate"),
    (["package", "--interface", "chats"], USAGE, "did you mean chat?"),
    (["package", "--recipe", "tiny"], USAGE, "found 'tiny'; expected one of auto, small, balanced, accurate"),
    (["package", "models:/x@y", "--data", "f"], USAGE, "slmpack package has no option --data"),
    # what does not go together
    (["package", "--target", "transformers", "--interface", "prompt"], USAGE, "interface prompt for target "
     "transformers"),
    (["package", "--calibration-text", "a.txt", "--target", "cpu-int8"], USAGE, "a recipe that calibrates; leave"),
    (["chat", "models:/a/1", "Hi", "--api-key-file", "key"], USAGE, "--api-key-file without --url; a server"),
    (["chat", "--url", "http://127.0.0.1:9", "Hi", "--trust-code"], USAGE, "--trust-code with --url; a model that"),
    # a URL that is no server's, a key that is none
    (["chat", "--url", "127.0.0.1:8000", "a b"], USAGE, "no server's address; http://HOST:PORT"),
    (["chat", "--url", "http://127.0.0.1:port", "a b"], USAGE, "no server's address; http://HOST:PORT"),
    (["chat", "--url", "http://127.0.0.1:9", "--api-key-file", "nowhere", "a b"], USAGE, "nowhere cannot be read"),
    # a number out of its bounds
    (["chat", "models:/a/1", "Hi", "--max-tokens", "0"], USAGE, "expected a whole number from 1 to 262,144"),
    (["chat", "models:/a/1", "Hi", "--max-tokens", "many"], USAGE, "found 'many'; expected a whole number"),
    (["chat", "models:/a/1", "Hi", "--temperature", "2.1"], USAGE, "expected a number from 0 to 2"),
    (["chat", "models:/a/1", "Hi", "--temperature", "nan"], USAGE, "found 'nan'; expected a number from 0 to 2"),
    (["retrain", "--data", "x", "--epochs", "-1"], USAGE, "--epochs -1"),
    # nothing where something has to be
    (["chat", "models:/a/1", " \n"], USAGE, "the prompt is empty"),
    (["chat", "models:/a/1", "-"], USAGE, "the prompt is empty"),
    (["chat", "models:/a/1", "Hi", "--system", ""], USAGE, "--system is empty"),
    (["package", ""], USAGE, "the source is empty"),
    (["package", "--waive-quality", " "], USAGE, "the waiver ''; a reason"),
    (["package", "--waive-template", "ok"], USAGE, "the waiver 'ok'; a reason"),
    (["package", "--refuse-licence", " "], USAGE, "--refuse-licence"),
    (["package", "--refuse-licence", "cc-by-nc4.0"], USAGE, "no licence that is known; one licence's name of SPDX's "
     "list or the Hub's; did you mean cc-by-nc-4.0?"),
    (["package", "--allow-licence", "mit", "--refuse-licence", "MIT"], USAGE, "fit each other; mit is both "
     "allowed and refused; see"),
    (["retrain", "--data", "checkpoint", "--unknown-licence", "refused"], USAGE, "did you mean refuse?"),
    (["retrain", "--data", "checkpoint", "--waive-quality", " "], USAGE, "the waiver ''; a reason"),
    (["chat"], USAGE, "MODEL_URI is missing; a published model; name one, or a server with --url URL"),
    (["chat", "--url", "http://127.0.0.1:9", ""], USAGE, "the prompt is empty"),
    # a file of an option that is not there
    (["package", "--quality-text", "nowhere.txt"], USAGE, "nowhere.txt"),
    (["package", "--calibration-text", "nowhere.txt"], USAGE, "name another file with --calibration-text"),
    (["package", "--quality-chats", "nowhere.jsonl"], USAGE, "there is no"),
    (RETRAIN, USAGE, "--data: there is no nowhere.jsonl"),
    # a name that MLflow would not take
    (["package", "--name", "a/b"], USAGE, "the model name 'a/b'"),
    (["rollback", "a/b", "--target", "cpu-int4"], USAGE, "the model name 'a/b'"),
    ([*RETRAIN, "--name", "a/b"], USAGE, "the model name 'a/b'"),
    # a URI that names no single model
    (["package", "models:/a"], USAGE, "'models:/a' names no single model"),
    (["verify", "models:/a"], USAGE, "'models:/a' names no single logged model"),
    (["chat", "models:/a", "Hi"], USAGE, "'models:/a' names no single model"),
    (["chat", NAME, "Hi"], USAGE, f"did you mean models:/{NAME}@cpu-int4?"),
    (["show", NAME], USAGE, f"'{NAME}' names no single version; NAME@ALIAS, NAME/VERSION or the same after models:/; "
     f"`slmpack list {NAME}` shows what there is"),
    (["show", "runs:/a/b"], USAGE, "'runs:/a/b' names no single version"),
    (["diff", "a/1", "models:/b@c"], USAGE, "models:/a/1 and models:/b@c are of different models, each measured "
     "against its own source; two versions of a, or two of b; `slmpack list a` and `slmpack list b` show them"),
    (["list", "a/b"], USAGE, "the model name 'a/b'"),
    # what the command is about is not there
    (["package", "./nope"], FAILED, "check the spelling"),
    (["package", "./chekpoint"], FAILED, "did you mean ./checkpoint?"),
    (["package", "owner/name"], FAILED, "write hf://owner/name for a model of the Hugging Face Hub"),
    (["package", f"models:/{NAME}@cpu"], FAILED, f"no alias cpu; {BOTH}; did you mean cpu-int"),
    (["verify", f"models:/{NAME}@cpu"], FAILED, f"no alias cpu; {BOTH}; did you mean cpu-int"),
    (["chat", f"models:/{NAME}@cpu", "Hi"], FAILED, f"no alias cpu; {BOTH}; did you mean cpu-int"),
    (["package", f"models:/{NAME}/7"], FAILED, f"no version 7; {NAME} has 1"),
    (["verify", f"models:/{NAME}/7"], FAILED, f"no version 7; {NAME} has 1"),
    (["chat", f"models:/{NAME}/7", "Hi"], FAILED, f"no version 7; {NAME} has 1"),
    (["package", "models:/smollm2@cpu-int4"], FAILED, f"no model smollm2; MLflow has {NAME}; did you mean {NAME}?"),
    (["verify", "models:/smollm2@cpu-int4"], FAILED, f"no model smollm2; MLflow has {NAME}; did you mean {NAME}?"),
    (["chat", "models:/smollm2@cpu-int4", "Hi"], FAILED, f"no model smollm2; MLflow has {NAME}; did you mean {NAME}?"),
    (["rollback", "smollm2", "--target", "cpu-int4"], FAILED, f"no model smollm2; MLflow has {NAME}; did you mean"),
    (["rollback", NAME, "--target", "transformers"], FAILED, f"no alias transformers; {BOTH}"),
    (["list", "smollm2"], FAILED, f"MLflow has no model smollm2; MLflow has {NAME}; did you mean {NAME}?"),
    (["show", "smollm2@cpu-int4"], FAILED, f"no model smollm2; MLflow has {NAME}; did you mean {NAME}?"),
    (["show", f"models:/{NAME}@cpu"], FAILED, f"no alias cpu; {BOTH}; did you mean cpu-int"),
    (["show", f"{NAME}/1"], FAILED, f"models:/{NAME}/1 was not published by slmpack; a proved version; `slmpack list"),
    (["open", f"{NAME}/1"], FAILED, f"models:/{NAME}/1 has no page that this release can draw; a version whose run"),
    (["diff", f"{NAME}/1", f"{NAME}/7"], FAILED, f"models:/{NAME}/1 was not published by slmpack"),
    (["chat", "--url", "http://127.0.0.1:9", "a b"], FAILED, "http://127.0.0.1:9 cannot be reached (the connection is "
     "refused); a server there; start it with `slmpack serve`"),
]  # fmt: skip


@pytest.fixture(scope="module")
def registry(store: Path) -> Path:
    """A model with two aliases, and a folder whose name can be misspelt, in the working folder."""
    client = MlflowClient()
    client.create_registered_model(NAME)
    version = client.create_model_version(NAME, str(store))
    for alias in ("cpu-int4", "cpu-int8"):
        client.set_registered_model_alias(NAME, alias, version.version)
    (store / "checkpoint").mkdir()
    return store


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment as it was, since a command sets what its libraries read; nothing on standard input."""
    before = dict(os.environ)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(("arguments", "code", "told"), MISTAKES, ids=[" ".join(each[0]) or "-" for each in MISTAKES])
def test_a_mistake_is_one_line_with_the_exit_code_of_its_kind(
    arguments: list[str], code: int, told: str, registry: Path, surroundings: None, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = run(arguments)
    except SystemExit as end:
        found = int(str(end.code))
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("slmpack: ")]
    assert told in line
    assert found == code, line
    assert "hf://." not in line
    assert shown.out == ""
    if code == USAGE and "names no" not in line and "source is empty" not in line:
        assert shown.err == line + "\n"
