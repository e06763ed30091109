"""The tokens that must end an answer, and who asks for each."""

from pathlib import Path
from typing import Any

from slmpack.machine.json_file import read_json

MARKED = "slmpack marks the answer"


def end_ids_of(snapshot: Path, source: Any) -> dict[int, str]:
    """Return the ids that must end an answer, and who asks for each.

    Three may ask, and nobody else: `generation_config.json`'s `eos_token_id` (where there is none, `config.json`'s),
    which transformers' `generate` stops at; the tokenizer's `eos_token`; and the chat template, by the special token
    that it writes straight after an assistant's turn.
    """
    origins: dict[int, str] = {}
    for name in ("generation_config.json", "config.json"):
        path = snapshot / name
        value = read_json(path).get("eos_token_id") if path.is_file() else None
        if value is not None:
            origins |= dict.fromkeys(value if isinstance(value, list) else [value], name)
            break
    if source.eos_token_id is not None:
        origins.setdefault(source.eos_token_id, "the tokenizer's eos_token")
    written = _end_of_turn(source)
    if written is not None:
        origins.setdefault(written, "the chat template")
    return origins


def _end_of_turn(source: Any) -> int | None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": MARKED}]
    text = source.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
    after = source(str(text).rpartition(MARKED)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return after[0] if after and after[0] in source.get_added_vocab().values() else None


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint as its `tokenizer.json` says, regardless of the class named beside it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
