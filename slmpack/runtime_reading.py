"""Runtime reading: what ONNX Runtime GenAI makes of a package's text files by itself, without the wrapper.

A package is an ordinary ONNX Runtime GenAI folder, which people may open without slmpack. The runtime's own tokenizer
and template engine differ from transformers' in silence: text that a normaliser changes, words cut at line ends,
added tokens with flags, tests such as `'</think>' in content`. Nothing of this reaches who loads the published model,
so nothing is refused for it; the version's page says how many of the inputs of `parity` the runtime reads otherwise.
"""

import json
from pathlib import Path
from typing import Any

from slmpack.chat_format import CHAT_FORMAT
from slmpack.child import run_in_child
from slmpack.errors import CheckError
from slmpack.json_file import read_json
from slmpack.parity_inputs import ParityInputs
from slmpack.records import Check, Record
from slmpack.template_chats import TemplateChat
from slmpack.tokenizer_pair import shown

LIMIT_SECONDS = 300.0
NAME = "without the wrapper"


class ReadingRequest(Record):
    """The ONNX Runtime GenAI folder, whose text files the wrapper reads as transformers reads their source."""

    package: Path


def compare_runtime(package: Path, log: Path) -> Check:
    """Count the texts and chats that the runtime by itself reads otherwise than the wrapper; refuse nothing.

    In a process of its own: a reader that crashes on a file that nobody needs it for is no reason to refuse a model.
    """
    try:
        check, _ = run_in_child(
            read_both, ReadingRequest(package=package), log=log.with_name(f"{log.stem}-runtime.log"),
            limit_seconds=LIMIT_SECONDS, failure=CheckError, doing="it",
        )  # fmt: skip
    except CheckError as error:
        return Check(name=NAME, found=f"the runtime cannot read the text files by itself: {str(error).split(';')[0]}")
    return check


def read_both(request: ReadingRequest) -> Check:
    """Run in a child: read every text and chat by the wrapper and by the runtime."""
    import onnxruntime_genai as og

    from slmpack.chat_model import ChatTemplate, TextTokenizer

    tokenizer, template = TextTokenizer(request.package), ChatTemplate(request.package)
    try:
        runtime = og.Tokenizer(og.Config(str(request.package)))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return Check(name=NAME, found=f"the runtime cannot read tokenizer.json by itself: {reason}")
    inputs = _inputs_of(request.package)
    texts = [text for text in inputs.texts if _ids(runtime, text) != tokenizer.encode(text)]
    chats = [chat for chat in inputs.chats if chat.tools is None]
    prompts = [chat for chat in chats if _rendered_by(runtime, chat) != _rendered(template, chat)]
    found = f"the runtime by itself reads {len(texts)} of {len(inputs.texts)} texts otherwise"
    if texts:
        found += f", such as {shown(min(texts, key=len))}"
    return Check(name=NAME, found=f"{found}; it renders {len(prompts)} of {len(chats)} chats otherwise")


def _inputs_of(package: Path) -> ParityInputs:
    chat_format = read_json(package / CHAT_FORMAT)
    templates = [chat_format["chat_template"], chat_format["tool_template"]]
    given = tuple(template for template in templates if template is not None)
    return ParityInputs(read_json(package / "tokenizer.json"), given, chat_format["special_tokens"])


def _ids(runtime: Any, text: str) -> list[int] | None:
    try:
        return list(map(int, runtime.encode(text)))
    except RuntimeError:
        return None


def _rendered(template: Any, chat: TemplateChat) -> str | None:
    try:
        return str(template.render(list(chat.messages), add_generation_prompt=chat.add_generation_prompt))
    except Exception:  # a template may raise whatever it likes: that is its way to refuse
        return None


def _rendered_by(runtime: Any, chat: TemplateChat) -> str | None:
    messages, asks = json.dumps(list(chat.messages)), chat.add_generation_prompt
    try:
        return str(runtime.apply_chat_template(messages, add_generation_prompt=asks))
    except RuntimeError:
        return None
