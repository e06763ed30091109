"""Runtime reading: what ONNX Runtime GenAI makes of a package's text files by itself, without the wrapper.

A package is an ordinary ONNX Runtime GenAI folder, which people may open without slmpack. The runtime's own tokenizer
and template engine differ from transformers' in silence: text that a normaliser changes, words cut at line ends,
added tokens with flags, tests such as `'</think>' in content`. Nothing of this reaches who loads the published model,
so nothing is refused for it; the version's page says how many of the inputs of `parity` the runtime reads otherwise.
"""

import json
from typing import Any

from slmpack.checkpoint.texts.template_chats import TemplateChat
from slmpack.prove.parity.pair import Pair, shown
from slmpack.reports import Check

NAME = "without the wrapper"


def compare_runtime(pair: Pair) -> Check:
    """Count the texts and chats that the runtime by itself reads otherwise than the wrapper; refuse nothing.

    The wrapper was found to read each text as the source does.
    """
    import onnxruntime_genai as og

    try:
        runtime = og.Tokenizer(og.Config(str(pair.package)))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return Check(name=NAME, found=f"the runtime cannot read tokenizer.json by itself: {reason}")
    read = zip(pair.inputs.texts, pair.source_ids, strict=True)
    texts = [text for text, ids in read if _ids(runtime, text) != ids]
    chats = [chat for chat in pair.inputs.chats if chat.tools is None]
    prompts = [chat for chat in chats if _rendered_by(runtime, chat) != _rendered(pair.template, chat)]
    found = f"the runtime by itself reads {len(texts)} of {len(pair.inputs.texts)} texts otherwise"
    if texts:
        found += f", such as {shown(min(texts, key=len))}"
    return Check(name=NAME, found=f"{found}; it renders {len(prompts)} of {len(chats)} chats otherwise")


def _ids(runtime: Any, text: str) -> list[int] | None:
    try:
        return list(map(int, runtime.encode(text)))
    except RuntimeError:
        return None


def _rendered(template: Any, chat: TemplateChat) -> str | None:
    try:
        return str(template.render(list(chat.messages), add_generation_prompt=chat.add_generation_prompt))
    except Exception:  # a template may raise anything: that is its way to refuse
        return None


def _rendered_by(runtime: Any, chat: TemplateChat) -> str | None:
    messages, asks = json.dumps(list(chat.messages)), chat.add_generation_prompt
    try:
        return str(runtime.apply_chat_template(messages, add_generation_prompt=asks))
    except RuntimeError:
        return None
