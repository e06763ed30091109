"""`slmpack chat` with a loaded model: limits, turns, and a system message that changes the answer or is refused."""

import json
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from command_line import SLMPACK, environment, error_lines
from mlflow.models import ModelSignature, infer_signature
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

from slmpack.errors import SourceError
from slmpack.log import chat_model
from slmpack.log.ask import load_model
from slmpack.log.conversation import Conversation
from slmpack.machine.store import MANIFEST, Manifest, digest_files
from slmpack.records import Package

pytestmark = pytest.mark.slow

CHAT = ModelSignature(CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA)
PROMPT = infer_signature({"prompt": "hello"}, ["hello"])
TURN = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
DEAF = TURN.replace("messages %}", "messages if message.role != 'system' %}")
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURN


def saved(package: Package, into: Path, template: str = TURN, interface: str = "chat") -> str:
    """Save a package with a template of its own as an MLflow model; return its folder."""
    shutil.copytree(package.path, into / "package", symlinks=True)
    folder = into / "package"
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    chat_format = json.loads((folder / "chat_format.json").read_text()) | {"chat_template": template}
    (folder / "chat_format.json").write_text(json.dumps(chat_format))
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(Manifest(files=digest_files(folder, "test"), facts={}).model_dump_json())
    mlflow.pyfunc.save_model(
        path=into / "model", python_model=chat_model.__file__, artifacts={"package": str(folder)},
        signature=CHAT if interface == "chat" else PROMPT, pip_requirements=["mlflow-skinny"],
        model_config={"name": "a-model", "interface": interface},
    )  # fmt: skip
    return str(into / "model")


def answer(uri: str, system: str | None = None, **limits: object) -> str:
    return "".join(chat(uri, system, **limits).ask("Hello"))


def chat(uri: str, system: str | None = None, **limits: object) -> Conversation:
    return Conversation(load_model(uri, trust_code=True), {"max_tokens": 6, **limits}, system)


def test_a_system_message_changes_the_answer_and_the_limits_are_obeyed(tiny_package: Package, tmp_path: Path) -> None:
    uri = saved(tiny_package, tmp_path)
    plain = answer(uri)
    assert answer(uri) == plain
    assert plain.startswith(answer(uri, max_tokens=2))
    assert answer(uri, max_tokens=2) != plain
    assert answer(uri, system="Answer like a pirate of the old days.") != plain
    assert len({answer(uri, temperature=2.0, max_tokens=12) for _ in range(3)}) > 1


@pytest.mark.parametrize(("template", "reason"), [(DEAF, ""), (STRICT, "System role not supported")])
def test_a_template_without_a_system_role_is_an_error_and_never_silence(
    tiny_package: Package, tmp_path: Path, template: str, reason: str
) -> None:
    uri = saved(tiny_package, tmp_path, template)
    assert answer(uri)
    with pytest.raises(SourceError, match=r"no place for a system message.*; leave the system message out$") as caught:
        answer(uri, system="Be short.")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_prompt_interface_takes_limits_and_refuses_a_system_message(tiny_package: Package, tmp_path: Path) -> None:
    uri = saved(tiny_package, tmp_path, interface="prompt")
    whole = "".join(Conversation(load_model(uri, trust_code=True), {}).ask("Hello"))
    assert whole.startswith(answer(uri, max_tokens=2))
    with pytest.raises(SourceError, match="has the prompt interface"):
        answer(uri, system="Be short.")


def test_a_question_is_sent_with_the_turns_before_it_and_without_those_that_were_forgotten(
    tiny_package: Package, tmp_path: Path
) -> None:
    conversation = chat(uri := saved(tiny_package, tmp_path))
    first = "".join(conversation.ask("Hello"))
    second = "".join(conversation.ask("Hello"))
    assert (first, second != first) == (answer(uri), True)
    conversation.reset()
    assert "".join(conversation.ask("Hello")) == first


def test_an_answer_that_is_left_early_is_remembered_as_far_as_it_came_and_a_failed_question_is_not(
    tiny_package: Package, tmp_path: Path
) -> None:
    conversation, cut = chat(uri := saved(tiny_package, tmp_path)), chat(uri)
    whole = "".join(cut.ask("Hello"))
    with closing(conversation.ask("Hello")) as pieces:
        begun = next(piece for piece in pieces if piece)
    assert whole.startswith(begun)
    after = "".join(conversation.ask("Go on"))
    assert after != "".join(cut.ask("Go on"))  # which goes on from the whole answer
    with pytest.raises(SourceError, match="the context window has 4096 tokens"):
        list(conversation.ask("word " * 5000))
    assert "".join(conversation.ask("And now?"))


def test_the_prompt_interface_has_no_turns(tiny_package: Package, tmp_path: Path) -> None:
    conversation = chat(saved(tiny_package, tmp_path, interface="prompt"))
    assert "".join(conversation.ask("Hello")) == "".join(conversation.ask("Hello"))


def test_the_command_reads_its_prompt_from_standard_input(tiny_package: Package, tmp_path: Path) -> None:
    uri = saved(tiny_package, tmp_path)

    def chat(prompt: str, stdin: bytes) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [SLMPACK, "chat", uri, prompt, "--max-tokens", "6", "--trust-code"], input=stdin, env=environment(),
            cwd=tmp_path, capture_output=True, check=False,
        )  # fmt: skip
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    piped = chat("-", b"Hello")
    assert (piped.returncode, piped.stdout) == (0, answer(uri) + "\n"), piped.stderr
    damaged = chat("-", b"\xff\xfe\xff")
    assert (damaged.returncode, damaged.stdout) == (2, "")
    assert error_lines(damaged) == ["slmpack: byte 0 of standard input is not UTF-8; UTF-8 text; convert it"]
