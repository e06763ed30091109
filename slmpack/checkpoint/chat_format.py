"""Chat format: what the wrapper needs beside `tokenizer.json` to render chats as the source's tokenizer does.

    <package>/chat_format.json
        chat_template          the template of ordinary chats, to the letter
        tool_template          the one that transformers takes when tools are given, if the source has one by that name
        special_tokens         the names that a template may write, such as bos_token, to their texts
        split_special_tokens   whether special tokens in a text are read as ordinary text

The package's `chat_template.jinja` is for the runtime without the wrapper, and may be spelt for it (see
`build.repair_tokenizer`).
"""

from pathlib import Path
from typing import Any

from slmpack.machine.json_file import write_json

CHAT_FORMAT = "chat_format.json"
# What transformers is given so that it returns the template that it takes when there are tools.
_ANY_TOOL = [{"type": "function", "function": {"name": "any"}}]


def write_chat_format(package: Path, source: Any) -> None:
    """Write the file into a package that is not sealed yet.

    Args:
        source: the checkpoint's tokenizer as transformers has it.
    """
    template, with_tools = source.get_chat_template(), source.get_chat_template(tools=_ANY_TOOL)
    chat_format = {
        "chat_template": template,
        "tool_template": None if with_tools == template else with_tools,
        "special_tokens": dict(source.special_tokens_map),
        "split_special_tokens": bool(source.split_special_tokens),
    }
    write_json(package / CHAT_FORMAT, chat_format)
