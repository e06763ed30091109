"""Redaction: a password in an address, or a token, is in nothing that anybody sees."""

from pathlib import Path

import pytest
from command_line import error_lines, slmpack

from slmpack.errors import SourceError
from slmpack.publish.outcome import failed_outcome
from slmpack.records import Target
from slmpack.redaction import redacted

SECRET = "s3cr3t"


@pytest.mark.parametrize(("text", "expected"), [
    (f"at postgresql+psycopg2://mlflow:{SECRET}@db:5432/x", "at postgresql+psycopg2://***@db:5432/x"),
    (f"https://user:{SECRET}@host/simple and http://{SECRET}@b", "https://***@host/simple and http://***@b"),
    (f"(http://user:p@{SECRET}@proxy:3128)", "(http://***@proxy:3128)"),
    ("the token hf_abcdefghijklmnopqrstuvwx is wrong", "the token hf_*** is wrong"),
    ("hf://gpt2@main, models:/name@cpu-int4, hf://a/b@v1", "hf://gpt2@main, models:/name@cpu-int4, hf://a/b@v1"),
    ("pypi://a==1/b@c.gguf, mail somebody@example.com", "pypi://a==1/b@c.gguf, mail somebody@example.com"),
    ("https://host/path@4 and sqlite:////tmp/a@b.db", "https://host/path@4 and sqlite:////tmp/a@b.db"),
])  # fmt: skip
def test_names_with_passwords_and_tokens_are_hidden_and_nothing_else(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_errors_and_outcomes_have_no_password() -> None:
    address = f"mysql://user:{SECRET}@host/db"
    assert SECRET not in str(SourceError(f"{address} is away", "an answer", f"look at {address}"))
    assert SECRET not in str(failed_outcome(Target.CPU_INT4, OSError(f"cannot connect to {address}")).reason)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["chat", "models:/a@b", "Hi"], ["verify", "models:/a@b"]])
def test_a_command_does_not_say_the_password_of_mlflow(tmp_path: Path, command: list[str]) -> None:
    uri = f"postgresql://mlflow:{SECRET}@127.0.0.1:9/mlflow"
    done = slmpack(*command, cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "127.0.0.1:9" in line
    written = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert SECRET not in "".join([done.stdout, done.stderr, *written])
