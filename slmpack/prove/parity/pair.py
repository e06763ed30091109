"""A package's text files as its wrapper reads them, beside its source's as transformers reads those."""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from slmpack.checkpoint.texts.inputs import ParityInputs, inputs_of
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.errors import CheckError, is_failure
from slmpack.machine.json_file import read_json

ADVICE = "use --target transformers, which has the source's own tokenizer"
MOST_REMEMBERED = 1 << 16  # decoded texts of one to a few tokens: some megabytes
SHOWN_IDS = 6
SHOWN_CHARACTERS = 60


class Pair:
    """The two readers: `source` is transformers' tokenizer, `tokenizer` and `template` are the wrapper's.

    Raises:
        CheckError: the wrapper cannot read the package's files.
    """

    def __init__(self, package: Path, snapshot: Path) -> None:
        from slmpack.log.chat_model import ChatTemplate, TextTokenizer

        self.package = package
        self.snapshot = snapshot
        self.source = read_tokenizer(snapshot)
        self.vocabulary: int = read_json(package / "genai_config.json")["model"]["vocab_size"]
        try:
            self.tokenizer = TextTokenizer(package, limit_seconds=None)
            self.template = ChatTemplate(package)
        except BaseException as error:  # `tokenizers` raises Exception itself and panics, Jinja has its own
            if not is_failure(error):
                raise
            raise CheckError(
                f"text files: the wrapper cannot read the package's ({' '.join(str(error).split())[:200]})",
                "tokenizer.json and chat_format.json, as the build writes them",
                "build the package again",
            ) from error

    @cached_property
    def inputs(self) -> ParityInputs:
        return inputs_of(self.snapshot, self.source)

    @cached_property
    def source_ids(self) -> list[list[int]]:
        """The source's token ids of each of the texts, without special tokens of the post-processor."""
        ids: list[list[int]] = self.source(list(self.inputs.texts), add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def for_streams(self) -> Any:
        """The wrapper's tokenizer for many streams; the same few ids in a row are decoded once.

        A stream decodes each token behind the one before it and by itself, hence most of them again and again.
        """
        return _Remembering(self.tokenizer)


class _Remembering:
    def __init__(self, tokenizer: Any) -> None:
        self.ends_within_character = tokenizer.ends_within_character
        self._decode = lru_cache(MOST_REMEMBERED)(lambda ids: tokenizer.decode(list(ids)))

    def decode(self, ids: list[int]) -> str:
        return str(self._decode(tuple(ids)))


def ids_differ(name: str, text: str, found: list[int], expected: list[int]) -> CheckError:
    equal = (index for index, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
    at = next(equal, min(len(found), len(expected)))
    return CheckError(
        f"{name}: {shown(text)} gives {_around(found, at)} in the package, {len(found)} ids",
        f"{_around(expected, at)}, {len(expected)} ids, by the source's tokenizer",
        ADVICE,
    )


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
    return CheckError(f"{name}: {shown(found[start:])} in the package", f"{shown(expected[start:])} {by}", ADVICE)
