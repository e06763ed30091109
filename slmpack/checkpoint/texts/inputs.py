"""What two readers of a tokenizer and a chat template are compared on: pinned, made from these very two, and random."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slmpack.checkpoint.texts.sample_texts import CHATS, special_chat, texts_with
from slmpack.checkpoint.texts.template_chats import TemplateChat, chats_of
from slmpack.checkpoint.texts.tokenizer_texts import id_sequences, random_texts, texts_of
from slmpack.machine.json_file import read_json

MOST_SPECIALS = 12
RANDOM_TEXTS = 500
SEED = 20260101


@dataclass(frozen=True)
class ParityInputs:
    """The inputs for one tokenizer with its templates; the same for the same arguments.

    Attributes:
        rules: tokenizer.json.
        templates: every chat template that transformers may take.
        named: `bos_token` and its kin to their texts.
    """

    rules: dict[str, Any]
    templates: tuple[str, ...]
    named: Mapping[str, str]

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """The special tokens that a prompt may hold: the named ones and those that a chat template writes."""
        added = [token["content"] for token in self.rules["added_tokens"]]
        written = [text for text in added if any(text in template for template in self.templates)]
        return tuple(dict.fromkeys([*self.named.values(), *written]))[:MOST_SPECIALS]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        drawn = random_texts(RANDOM_TEXTS, SEED, self.specials)
        return tuple(dict.fromkeys([*texts_with(self.specials), *texts_of(self.rules), *drawn]))

    @cached_property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Token ids to decode that no text need give: each by itself, and bytes that make characters or none."""
        return id_sequences(self.rules, SEED)

    @cached_property
    def chats(self) -> tuple[TemplateChat, ...]:
        pinned = [TemplateChat(name, tuple(chat), None, True) for name, chat in (*CHATS, special_chat(self.specials))]
        return (*pinned, *(chat for template in self.templates for chat in chats_of(template, self.named)))


def inputs_of(snapshot: Path, source: Any) -> ParityInputs:
    """Return what readers of a checkpoint's text files are compared on; `source` is transformers' tokenizer of it."""
    found = source.chat_template or ""
    templates = tuple(found.values()) if isinstance(found, dict) else (found,)
    return ParityInputs(read_json(snapshot / "tokenizer.json"), templates, source.special_tokens_map)
