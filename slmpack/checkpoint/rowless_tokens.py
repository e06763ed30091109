"""Rowless tokens: tokens of a checkpoint's tokenizer whose ids are beyond the rows of its embedding.

A pad token is often added for training and the embedding never resized (`[PAD]` of QLoRA), or a tokenizer is shared
with a larger model (Gemma 3 1B has a special token for images). Such a token is idle where nothing writes it, and is
taken out of the tokenizer's files; the end-of-sequence token then pads. One that something writes has no meaning to the
model, and is refused.

    tokenizer.json            added_tokens, padding, and the model's vocabulary where it is there too
    tokenizer_config.json     added_tokens_decoder, and every setting that names it
    special_tokens_map.json   every entry that names it
    added_tokens.json         its entry
    config.json, generation_config.json    pad_token_id

Source: issue 37011 of huggingface/transformers; Dettmers et al., qlora.py, `DEFAULT_PAD_TOKEN`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slmpack.checkpoint.chat_templates import templates_of
from slmpack.checkpoint.tokenizer_rules import read_rules
from slmpack.machine.json_file import read_json
from slmpack.records import Record

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
MODEL_SETTINGS = ("config.json", "generation_config.json")
PAD = "pad_token"
_WRITTEN_ROLES = ("bos_token", "eos_token", "unk_token")
_WRITTEN_IDS = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


class Rowless(Record):
    """The tokens without a row.

    Attributes:
        rows: of the embedding.
        idle: the text of each that nothing writes, by its id.
        written: the text of each other one, by its id, and what writes it.
    """

    rows: int
    idle: dict[int, str]
    written: dict[int, tuple[str, str]]


def find_rowless(folder: Path, rows: int) -> Rowless:
    """Sort the tokens of a checkpoint's tokenizer whose ids are `rows` or more.

    Raises:
        SourceError: a file that says what a token is for cannot be read.
    """
    rules, _ = read_rules(folder / TOKENIZER), _read(folder / SETTINGS)
    beyond = {number: text for text, number in _tokens(rules) if number >= rows}
    idle: dict[int, str] = {}
    written: dict[int, tuple[str, str]] = {}
    for number, text in sorted(beyond.items()):
        writer = _writer(folder, rules, text, number)
        if writer is None:
            idle[number] = text
        else:
            written[number] = text, writer
    return Rowless(rows=rows, idle=idle, written=written)


def _tokens(rules: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield every token and its id: of the vocabulary, and added."""
    vocabulary = rules["model"].get("vocab") or {}
    yield from (
        vocabulary.items() if isinstance(vocabulary, dict) else ((each[0], at) for at, each in enumerate(vocabulary))
    )
    yield from ((token["content"], token["id"]) for token in rules.get("added_tokens") or ())


def _writer(folder: Path, rules: dict[str, Any], text: str, number: int) -> str | None:
    """Return what writes a token into a prompt or an answer; None if nothing does."""
    own = [role for role, content in _roles(folder).items() if content == text]
    return next(_writers(folder, rules, text, own), None) or _writer_by_id(folder, number)


def _writers(folder: Path, rules: dict[str, Any], text: str, own: list[str]) -> Iterator[str]:
    """Yield what writes a token by its text, which has the roles `own`."""
    model = rules["model"]
    added = next((token for token in rules.get("added_tokens") or () if token["content"] == text), None)
    if added is None or any("".join(_parts(merge)) == text for merge in model.get("merges") or ()):
        yield "the vocabulary"
    elif not added.get("special") and PAD not in own:
        yield "any text that holds it"
    yield from (f"{role} in {SETTINGS}" for role in _WRITTEN_ROLES if role in own)
    for each in templates_of(folder).values():
        if text in each.text or any(re.search(rf"\b{re.escape(role)}\b", each.text) for role in own):
            yield f"the chat template {each.name}"
    if json.dumps(text) in json.dumps(rules.get("post_processor")):
        yield f"the post-processor of {TOKENIZER}"
    if model.get("unk_token") == text:
        yield f"unk_token in {TOKENIZER}"


def _parts(merge: Any) -> list[str]:
    """Return the two tokens of a merge; older files have them as "left right"."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def _writer_by_id(folder: Path, number: int) -> str | None:
    for name in MODEL_SETTINGS:
        settings = _read(folder / name)
        for key in _WRITTEN_IDS:
            value = settings.get(key)
            if number in (value if isinstance(value, list) else [value]):
                return f"{key} in {name}"
    return None


def _roles(folder: Path) -> dict[str, str]:
    """Return the token that each role has, such as `pad_token`; tokenizer_config.json counts more."""
    settings = _read(folder / SPECIAL_TOKENS) | _read(folder / SETTINGS)
    return {
        role: content for role, value in settings.items() if role.endswith("_token") and (content := _content(value))
    }


def _content(value: Any) -> str | None:
    """Return a token's text, which files give alone or with its flags."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def without_idle(folder: Path, rowless: Rowless) -> tuple[str | None, dict[str, Any]]:
    """Return what the small files of a checkpoint hold once idle tokens are out of them.

    Returns:
        One sentence that says what was taken out, None if nothing is; and the new content of each file that changes.
    """
    texts, files = set(rowless.idle.values()), dict[str, Any]()
    eos = _roles(folder).get("eos_token")
    if texts:
        files[TOKENIZER] = _cut_tokenizer(read_rules(folder / TOKENIZER), rowless)
        for name in (SETTINGS, SPECIAL_TOKENS):
            files[name] = _cut_settings(_read(folder / name), texts, eos)
        files[ADDED_TOKENS] = {text: at for text, at in _read(folder / ADDED_TOKENS).items() if text not in texts}
    for name in MODEL_SETTINGS:
        files[name] = _cut_pad_id(_read(folder / name), rowless.rows, _end_id(folder, eos, rowless.rows))
    changed = {
        name: value for name, value in files.items() if (folder / name).is_file() and value != _read(folder / name)
    }
    return (_sentence(folder, rowless, eos) if changed else None), changed


def _sentence(folder: Path, rowless: Rowless, eos: str | None) -> str:
    named = ", ".join(f"{text!r} ({number})" for number, text in rowless.idle.items())
    what = f"{named} is taken out of the tokenizer: nothing writes it, and" if named else "pad_token_id is another:"
    pads = rowless.idle and _roles(folder).get(PAD) in rowless.idle.values()
    instead = f"; {eos!r} pads in its place" if eos and (pads or not rowless.idle) else ""
    return f"{what} the embedding has {rowless.rows} rows and none for it{instead}"


def _cut_tokenizer(rules: dict[str, Any], rowless: Rowless) -> dict[str, Any]:
    texts, model = set(rowless.idle.values()), dict(rules["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {text: number for text, number in vocabulary.items() if text not in texts}
    elif isinstance(vocabulary, list):  # the place is the id
        model["vocab"] = vocabulary[: rowless.rows]
    padding = rules.get("padding")
    return {
        **rules,
        "model": model,
        "added_tokens": [token for token in rules.get("added_tokens") or () if token["content"] not in texts],
        "padding": None if isinstance(padding, dict) and padding.get("pad_token") in texts else padding,
    }


def _cut_settings(settings: dict[str, Any], texts: set[str], eos: str | None) -> dict[str, Any]:
    pads = _content(settings.get(PAD)) in texts
    cut: dict[str, Any] = {
        key: value if key == "chat_template" else _without(value, texts)
        for key, value in settings.items()
        if _content(value) not in texts
    }
    return cut | ({PAD: eos} if pads and eos else {})


def _without(value: Any, texts: set[str]) -> Any:
    """Return a setting without the entries that are one of these tokens."""
    if isinstance(value, dict):
        return {key: _without(each, texts) for key, each in value.items() if _content(each) not in texts}
    if isinstance(value, list):
        return [_without(each, texts) for each in value if _content(each) not in texts]
    return value


def _cut_pad_id(settings: dict[str, Any], rows: int, end: int | None) -> dict[str, Any]:
    """Return a model's settings with the end of an answer in place of a pad token that has no row."""
    nested = {key: _cut_pad_id(value, rows, end) for key, value in settings.items() if key == "text_config" and value}
    pad = settings.get("pad_token_id")
    without_row = isinstance(pad, int) and pad >= rows
    return settings | nested | ({"pad_token_id": end} if without_row else {})


def _end_id(folder: Path, eos: str | None, rows: int) -> int | None:
    """Return the id that ends an answer: the tokenizer's, else the first that the model's settings have."""
    ids: Mapping[str, int] = dict(_tokens(read_rules(folder / TOKENIZER)))
    values = [_read(folder / name).get("eos_token_id") for name in MODEL_SETTINGS]
    flat = [number for value in values for number in (value if isinstance(value, list) else [value])]
    candidates = [ids.get(eos or ""), *flat]
    return next((number for number in candidates if isinstance(number, int) and 0 <= number < rows), None)
