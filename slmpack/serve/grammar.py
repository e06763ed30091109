"""Grammar: which tokens may follow, so that an answer has the form it was to have; by llguidance.

A schema is a stranger's program, and llguidance runs where all answers are computed. So its size is bounded, and what
llguidance may spend on it: at its beginning and at each token some tens of milliseconds.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LONGEST_GRAMMAR = 1 << 16  # characters
LONGEST_TEXT = 4096  # characters of one text or name in a schema: a step takes time for each of them
MOST_FIELDS = 1000  # of one object: reading them takes quadratic time
OPTIONS = "x-guidance"  # of llguidance in a schema; `lenient` would have it leave out what it does not know
WHITESPACE = r"[ \n\t]{0,40}"  # between two parts: without an end, a small model writes spaces until it is cut off
# Source: llguidance 1.9.1, `LLParserLimits`, whose defaults for the last three are 250_000, 500_000 and 2_000.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_lexer_states": 50_000,
    "max_grammar_size": 50_000, "max_items_in_row": 5_000,
}  # fmt: skip


class GrammarError(ValueError):
    """A grammar or JSON schema that llguidance cannot follow; the message is its first line."""


class Grammars:
    """Makes matchers for one tokenizer, which is read when the first is needed: that takes a quarter of a second."""

    def __init__(self, folder: Path, vocabulary: int, end_tokens: frozenset[int]) -> None:
        self._folder, self._vocabulary, self._end_tokens = folder, vocabulary, end_tokens
        self._tokenizer: Any = None

    def matcher(self, grammar: str) -> "Matcher":
        """Return what follows one answer.

        Raises:
            GrammarError: the grammar cannot be followed.
        """
        from llguidance import LLMatcher, LLParserLimits, LLTokenizer

        if self._tokenizer is None:
            text = (self._folder / "tokenizer.json").read_text(encoding="utf-8")
            end = min(self._end_tokens)
            self._tokenizer = LLTokenizer(text, n_vocab=self._vocabulary, eos_token=end)
        limits = LLParserLimits(**LIMITS, verbose_errors=False)
        matcher = Matcher(
            LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits), self._vocabulary, self._end_tokens
        )
        matcher.require_no_error()
        matcher.mask()  # whether there is a first token at all shows only here
        return matcher


class Matcher:
    """Follows one answer through its grammar."""

    def __init__(self, matcher: Any, vocabulary: int, end_tokens: frozenset[int]) -> None:
        from llguidance.numpy import allocate_token_bitmask

        self._matcher, self._vocabulary = matcher, vocabulary
        self._ends = np.array(sorted(end_tokens), np.int64)
        self._bits = allocate_token_bitmask(1, vocabulary)

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may follow, bool `[vocabulary]`; where the form is whole, those that end the answer.

        Raises:
            GrammarError: llguidance gives up; an answer that ended here would not have the form.
        """
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits, 0)
        self.require_no_error()
        allowed = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")[: self._vocabulary].astype(bool)
        if self._matcher.is_accepting() or not allowed.any():
            allowed[self._ends] = True
        return allowed

    def require_no_error(self) -> None:
        """Raise what llguidance could not do.

        Raises:
            GrammarError: the form cannot be followed.
        """
        if self._matcher.is_error():
            raise GrammarError(_first_line(self._matcher.get_error()))

    def push(self, token: int) -> None:
        """Take the token that was chosen."""
        if token not in self._ends:
            self._matcher.consume_token(token)


def _first_line(error: str) -> str:
    """Return the reason without llguidance's state and without lines that draw where it is."""
    reason = " ".join(error.partition("<state>")[0].split())[:300]
    return "a form that no text has" if reason.startswith("NoExtension") else reason or "a form that llguidance refuses"


def json_grammar(schema: object | None) -> str:
    """Return the grammar of a JSON schema; None: of any JSON object.

    Raises:
        GrammarError: it is too long, or has options for llguidance.
    """
    found = {"type": "object"} if schema is None else schema
    text = json.dumps(found)
    if len(text) > LONGEST_GRAMMAR:
        raise GrammarError(f"a schema of {len(text)} characters was found; at most {LONGEST_GRAMMAR} are expected")
    require_bounded_schema(found)
    if isinstance(found, dict):
        found = {OPTIONS: {"whitespace_pattern": WHITESPACE}, **found}
    return json.dumps({"grammars": [{"json_schema": found}]})


def require_bounded_schema(value: object) -> None:
    """Look at every text and object in a schema; the depth of a request is bounded already.

    Raises:
        GrammarError: one is too long, or an option for llguidance.
    """
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise GrammarError(f"a text of {len(value)} characters was found; at most {LONGEST_TEXT} are expected")
    if isinstance(value, dict):
        if OPTIONS in value:
            raise GrammarError(f"{OPTIONS} was found; keywords of JSON Schema are expected")
        if len(value) > MOST_FIELDS:
            raise GrammarError(f"an object of {len(value)} fields was found; at most {MOST_FIELDS} are expected")
        for key, each in value.items():
            require_bounded_schema(key)
            require_bounded_schema(each)
    elif isinstance(value, list):
        for each in value:
            require_bounded_schema(each)
