r"""A package's tokenizer beside its source's, and the differences between the two that are known.

Four differences are known, the runtime's for every such model:

* text that is not in normalisation form C, where the tokenizer normalises to it (Qwen): the runtime does not;
* words cut by an expression with `\s*[\r\n]+` (Llama 3, Qwen): white space around a line end is cut elsewhere, such as
  a space before it and an indented line after it;
* SentencePiece: more than about 100 bytes without white space are merged in parts;
* SentencePiece: a literal U+2581, which is what a space becomes.

A fifth is not looked for: a template's `trim` takes off ASCII white space in the runtime, all of Unicode's in Python.

Source: microsoft/onnxruntime-extensions, operators/tokenizer: `KernelBpeTokenizer::SpmTokenize` (parts of 100),
`PreTokenizerWithRegEx::Compile` (matchers by the expression's text), `JsonFastTokenizer::LoadSpmModelParams` (a decoder
that replaces U+2581 is SentencePiece, whatever the model is).
"""

import json
import re
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import Any

from slmpack.errors import CheckError
from slmpack.json_file import read_json
from slmpack.parity_corpus import texts_with

ADVICE = "use --target transformers, which has the source's own tokenizer"
SHOWN_IDS = 6
SHOWN_CHARACTERS = 60
MOST_SPECIALS = 12
UNBROKEN_BYTES = 90
LINE_ENDS = r"\s*[\r\n]+"


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint as its `tokenizer.json` says, whatever class is named beside it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


class Pair:
    """The two tokenizers: `source` is transformers', `runtime` is ONNX Runtime GenAI's."""

    def __init__(self, package: Path, snapshot: Path) -> None:
        self.package = package
        self.snapshot = snapshot
        self.source = read_tokenizer(snapshot)
        self.runtime = self.open_runtime()
        self.vocabulary: int = read_json(package / "genai_config.json")["model"]["vocab_size"]
        rules = read_json(snapshot / "tokenizer.json")
        self.normalises = '"NFC"' in json.dumps(rules.get("normalizer"))
        self.cuts_at_line_ends = LINE_ENDS in _expressions(rules.get("pre_tokenizer"))
        decoder = read_json(package / "tokenizer.json").get("decoder")
        self.sentencepiece = "\u2581" in json.dumps(decoder, ensure_ascii=False)

    def open_runtime(self) -> Any:
        """Open the package's tokenizer once more, with options of its own.

        Raises:
            CheckError: the runtime cannot read it.
        """
        import onnxruntime_genai as og

        og.disable_telemetry_events()
        try:
            return og.Tokenizer(og.Config(str(self.package)))
        except RuntimeError as error:
            raise CheckError(
                f"tokenizer: the runtime cannot read it ({' '.join(str(error).split())[:200]})",
                "one of a kind that it knows", ADVICE,
            ) from error  # fmt: skip

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """The special tokens that a prompt may hold: the named ones and those that the chat template writes."""
        template = self.source.get_chat_template() if self.source.chat_template else ""
        named = [self.source.bos_token, self.source.eos_token, self.source.pad_token]
        written = [text for text in self.source.get_added_vocab() if text in template]
        return tuple(dict.fromkeys([*filter(None, named), *written]))[:MOST_SPECIALS]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        return texts_with(self.specials)

    def known_limit(self, text: str) -> str | None:
        """Return why the runtime is known to cut this text differently, or None."""
        if self.normalises and unicodedata.normalize("NFC", text) != text:
            return "text not in NFC"
        if self.cuts_at_line_ends and re.search(r"[^\S\r\n][\r\n]+[^\S\r\n]", text):
            return "line ends within white space"
        if self.sentencepiece and "\u2581" in text:
            return "a literal U+2581"
        if self.sentencepiece and max(map(_bytes, re.findall(r"[^ \r\n]+|[ \r\n]+", text)), default=0) > UNBROKEN_BYTES:
            return "long unbroken text"
        return None


def _expressions(pre_tokenizer: Any) -> str:
    """Return every expression that a pre-tokenizer splits words by, one a line."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer] if pre_tokenizer else [])
    return "\n".join(str(step["pattern"].get("Regex", "")) for step in steps if step["type"] == "Split")


def _bytes(text: str) -> int:
    return len(text.encode())


class Limits:
    """Compares ids, and keeps what differs only as the runtime is known to."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._found: dict[str, int] = {}

    def compare(self, name: str, text: str, found: list[int], expected: list[int]) -> None:
        """Raise CheckError if the ids differ and no known limit of the runtime is the reason."""
        if found == expected:
            return
        if (limit := self._pair.known_limit(text)) is None:
            raise ids_differ(name, text, found, expected)
        self._found[limit] = self._found.get(limit, 0) + 1

    @property
    def told(self) -> str:
        if not self._found:
            return ""
        return "; other ids for " + ", ".join(f"{count} of {limit}" for limit, count in self._found.items())


def ids_differ(name: str, text: str, found: list[int], expected: list[int]) -> CheckError:
    equal = (index for index, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
    at = next(equal, min(len(found), len(expected)))
    return CheckError(
        f"{name}: {shown(text)} gives {_around(found, at)} in the runtime, {len(found)} ids",
        f"{_around(expected, at)}, {len(expected)} ids, by the source's tokenizer", ADVICE,
    )  # fmt: skip


def _around(ids: list[int], at: int) -> str:
    """Return the ids from shortly before the first difference, with the index of the first one shown."""
    start = max(at - 2, 0)
    shown = ", ".join(map(str, ids[start : start + SHOWN_IDS]))
    before = f"... (from {start}) " if start else ""
    return f"[{before}{shown}{' ...' if len(ids) > start + SHOWN_IDS else ''}]"


def shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "...")


def text_differs(name: str, found: str, expected: str, by: str) -> CheckError:
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((index for index, (a, b) in pairs if a != b), min(len(found), len(expected)))
    start = max(at - 20, 0)
    return CheckError(f"{name}: {shown(found[start:])} in the runtime", f"{shown(expected[start:])} {by}", ADVICE)
