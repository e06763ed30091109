"""Chats as lines of JSONL."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Message = dict[str, Any]


def user(content: Any = "Who rules the town?") -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any = "The mayor.") -> Message:
    return {"role": "assistant", "content": content}


def system(content: Any = "Be brief.") -> Message:
    return {"role": "system", "content": content}


def line_of(*messages: Any, **others: Any) -> str:
    return json.dumps({"messages": list(messages), **others})


def lines(count: int, start: int = 0) -> list[str]:
    return [line_of(user(f"How much is {n}?"), assistant(f"It is {n}.")) for n in range(start, start + count)]


def written(path: Path, text: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path
