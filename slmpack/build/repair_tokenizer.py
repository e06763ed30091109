r"""Repairs of a freshly built package's tokenizer files, where the runtime would read them wrongly.

The wrapper reads `tokenizer.json` by `tokenizers` and the source's template from chat_format.json, so that its answers
depend on no repair; the runtime without the wrapper does. Every repair is tried on the inputs of `parity` and made only
if Hugging Face's own reading stays what the checkpoint's files give: the same ids, the same decoded text, the same
prompts. Whether the runtime then reads it right is reported by `runtime_reading`. What is repaired:

* The builder saves the tokenizer through the class that `tokenizer_config.json` names, and since transformers 5 some
  classes (`LlamaTokenizer`, `GPT2Tokenizer`) replace the file's normalizer and pre-tokenizer: the checkpoint's own
  `tokenizer.json` comes back.
* The runtime, too, goes by that class: it adds a BOS token for `LlamaTokenizer` regardless of the post-processor. The
  package names a class that means the file as it is.
* A `Replace` of U+2581 before `ByteLevel` in the decoder, left by conversions of GGUF files, makes the runtime take
  byte-level merges for SentencePiece and give mostly -1: `ByteLevel` alone decodes the same.
* Within a `Sequence` the runtime knows `Split` only: `Digits` becomes `Split` at `\p{N}`, and `ByteLevel` with its own
  expression becomes that expression and `ByteLevel` without.
* The runtime renders chat templates without `trim_blocks` and `lstrip_blocks`, which transformers sets: the white
  space that these would take away is taken out of the template.

Source: microsoft/onnxruntime-extensions, operators/tokenizer/bpe_tokenizer_model.hpp: `LoadPreTokenizer`;
huggingface/tokenizers, pre_tokenizers/byte_level.rs: the expression of `ByteLevel`.
"""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from slmpack.checkpoint.chat_templates import template_environment
from slmpack.checkpoint.texts.inputs import ParityInputs, inputs_of
from slmpack.checkpoint.texts.sample_texts import CHATS
from slmpack.machine.json_file import read_json, write_json

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
BYTE_LEVEL_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

Rules = dict[str, Any]


def repair_tokenizer(package: Path, snapshot: Path, source: Any) -> tuple[str, ...]:
    """Repair `tokenizer.json` and the chat template of a package that is not sealed yet.

    Args:
        package: the builder's folder; its files are written anew where need be.
        snapshot: the checkpoint that it was built from, whose files say what is right.
        source: its tokenizer as transformers has it.

    Returns:
        One sentence for each repair made, for the version's tags.
    """
    inputs = inputs_of(snapshot, source)
    rules = _repair_rules(package, snapshot, source, inputs)
    return rules + _repair_class(package) + _repair_template(package)


# ---------------------------------------------------------------------------------------------- tokenizer.json


def _repair_rules(package: Path, snapshot: Path, source: Any, inputs: ParityInputs) -> tuple[str, ...]:
    reader = _Reader(source, inputs)
    rules, made = read_json(package / TOKENIZER), []
    if not reader.reads_right(rules):
        rules = read_json(snapshot / TOKENIZER)
        made.append(_RESTORED)
    if not reader.reads_right(rules):
        rules = json.loads(reader.whole)
        made = [_COMPLETED]
    for sentence, change in _REPAIRS:
        changed = change(rules)
        if changed is not None and reader.reads_right(changed):
            rules = changed
            made.append(sentence)
    if made == [_RESTORED]:
        (package / TOKENIZER).write_bytes((snapshot / TOKENIZER).read_bytes())
    elif made:
        write_json(package / TOKENIZER, rules)
    return tuple(made)


class _Reader:
    """Compares other rules with those of the source on all inputs, which takes seconds; equal rules are not read."""

    def __init__(self, source: Any, inputs: ParityInputs) -> None:
        self.whole: str = source.backend_tokenizer.to_str()
        self._source, self._inputs = source, inputs

    @cached_property
    def _expected(self) -> tuple[list[list[int]], list[str]]:
        return self._reading(self._parsed(self.whole))

    @cached_property
    def _spelling(self) -> str:
        return str(self._parsed(self.whole).to_str())

    def reads_right(self, rules: Rules) -> bool:
        """Compare the ids of every text and the text of every id sequence; `to_str` spells equal rules the same."""
        tokenizer = self._parsed(json.dumps(rules))
        return tokenizer.to_str() == self._spelling or self._reading(tokenizer) == self._expected

    def _parsed(self, rules: str) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(rules)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = self._source.split_special_tokens
        return tokenizer

    def _reading(self, tokenizer: Any) -> tuple[list[list[int]], list[str]]:
        """Return the ids of every text, with special tokens of the post-processor, and the text of every sequence."""
        ids = [tokenizer.encode(text).ids for text in self._inputs.texts]
        sequences = [*ids, *map(list, self._inputs.sequences)]
        return ids, [tokenizer.decode(each, skip_special_tokens=True) for each in sequences]


def _plain_decoder(rules: Rules) -> Rules | None:
    """Decode by `ByteLevel` alone where it stands last in a sequence that also replaces U+2581."""
    decoders = (rules.get("decoder") or {}).get("decoders", [])
    if (
        len(decoders) < 2
        or decoders[-1]["type"] != "ByteLevel"
        or "ByteLevel" not in json.dumps(rules["pre_tokenizer"])
    ):
        return None
    return {**rules, "decoder": decoders[-1]}


def _split_pre_tokenizer(rules: Rules) -> Rules | None:
    """Spell every step of a sequence as `Split`."""
    steps = (rules.get("pre_tokenizer") or {}).get("pretokenizers", [])
    if len(steps) < 2:  # the runtime reads a lone ByteLevel right
        return None
    splits = [split for step in steps for split in _as_splits(step)]
    return None if splits == steps else {**rules, "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits}}


def _as_splits(step: Rules) -> list[Rules]:
    if step["type"] == "Digits" and step["individual_digits"]:
        return [_split(r"\p{N}")]
    if step["type"] == "ByteLevel" and step["use_regex"] and not step["add_prefix_space"]:
        return [_split(BYTE_LEVEL_WORDS), {**step, "use_regex": False}]
    return [step]


def _split(expression: str) -> Rules:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


_RESTORED = "tokenizer.json is the checkpoint's own: the builder had saved one that gives other token ids"
_COMPLETED = "tokenizer.json has the added tokens of the checkpoint's other files as well, as transformers reads them"
_REPAIRS: tuple[tuple[str, Callable[[Rules], Rules | None]], ...] = (
    ("tokenizer.json decodes by ByteLevel alone, which the runtime knows, with the same result", _plain_decoder),
    ("tokenizer.json splits words by Split alone, which the runtime knows, with the same result", _split_pre_tokenizer),
)


def _repair_class(package: Path) -> tuple[str, ...]:
    config = read_json(package / CONFIG)
    named = config.get("tokenizer_class")
    if named in AS_IT_IS:
        return ()
    write_json(package / CONFIG, {**config, "tokenizer_class": AS_IT_IS[0]})
    return (f"tokenizer_config.json names {AS_IT_IS[0]}, not {named}, so that tokenizer.json alone decides",)


# ---------------------------------------------------------------------------------------------- the chat template


def _repair_template(package: Path) -> tuple[str, ...]:
    path = package / TEMPLATE
    if not path.is_file():
        return ()
    template = path.read_text(encoding="utf-8")
    expected = _prompts(template, trims=True)
    if _prompts(template, trims=False) == expected:
        return ()
    trimmed = _trimmed(template)
    if _prompts(trimmed, trims=False) != expected:
        return ()
    path.write_text(trimmed, encoding="utf-8", newline="")
    return ("the chat template has the white space taken out that transformers trims and the runtime does not",)


def _environment(*, trims: bool) -> Any:
    """Return Jinja as transformers has it, or without its trimming, as the runtime has it."""
    return template_environment().overlay(trim_blocks=trims, lstrip_blocks=trims)


def _trimmed(template: str) -> str:
    """Take out the line ends after blocks and the indentation before them, as Jinja's own lexer finds them."""
    pieces = []
    for _, kind, text in _environment(trims=True).lex(template):
        if kind in ("block_end", "comment_end") and not text.lstrip().startswith("-"):
            pieces.append(text.lstrip("+").removesuffix("\n"))
        else:
            pieces.append(text.replace("{%+", "{%") if kind == "block_begin" else text)
    return "".join(pieces)


def _prompts(template: str, *, trims: bool) -> list[str | None]:
    """Render every chat, with and without a generation prompt; None where the template refuses."""
    from jinja2 import TemplateError

    def refuse(message: str) -> None:
        raise TemplateError(message)

    compiled = _environment(trims=trims).from_string(template)
    given = {"bos_token": "<bos>", "eos_token": "<eos>", "raise_exception": refuse, "strftime_now": lambda form: form}
    prompts: list[str | None] = []
    for _, chat in CHATS:
        for asks in (True, False):
            try:
                prompts.append(compiled.render(messages=chat, add_generation_prompt=asks, **given))
            except MemoryError:
                raise
            except Exception:  # a template may raise anything: that is its way to refuse
                prompts.append(None)
    return prompts
