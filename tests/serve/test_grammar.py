"""Grammars of one tokenizer: what is followed, what is refused, and that neither takes long."""

import json
import time
from typing import Any

import numpy as np
import pytest

from slmpack.records import Package
from slmpack.serve.grammar import LONGEST_GRAMMAR, GrammarError, Grammars, json_grammar

END = 2
HOSTILE: dict[str, Any] = {
    "a pattern of many repetitions": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
    "a pattern of many states": {"type": "string", "pattern": "^[ab]*a[ab]{40}$"},
    "a pattern that searches": {"type": "string", "pattern": "(.*a){100}.{300}"},
    "a long text": {"type": "string", "minLength": 100_000, "maxLength": 10**9},
    "a long list": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "many texts": {"enum": [f"value {index}" for index in range(4000)]},
    "many fields": {"type": "object", "properties": {f"k{index}": {"type": "integer"} for index in range(1000)}},
    "many needed fields": {"type": "object", "required": [f"k{index}" for index in range(2000)]},
    "a tree without an end": {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}},
    },
}


@pytest.fixture(scope="module")
def grammars(small_package: Package) -> Grammars:
    found = Grammars(small_package.path, 8192, frozenset({END}))
    found.matcher(json_grammar(None))  # reads the tokenizer
    return found


def follow(grammars: Grammars, schema: Any, tokens: int = 60) -> list[int]:
    """Return random tokens that a schema allows, up to the end of the turn."""
    matcher, random, found = grammars.matcher(json_grammar(schema)), np.random.default_rng(0), [0]
    while len(found) <= tokens and found[-1] != END:
        found.append(int(random.choice(np.flatnonzero(matcher.mask()))))
        matcher.push(found[-1])
    return found[1:]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_takes_little_time(grammars: Grammars, name: str) -> None:
    """It is half a second at most; of this thread's processor time, since others of the process have theirs."""
    begun = time.thread_time()
    assert follow(grammars, HOSTILE[name])
    assert time.thread_time() - begun < 30


@pytest.mark.parametrize(("schema", "reason"), [
    ({"$ref": "#"}, "a form that no text has"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "a form that no text"),
    ({"$ref": "file:///etc/passwd"}, "not fetch"),
    ({"type": "integer", "minimum": 5, "maximum": 1}, "nsatisfiable"),
    ({"not": {}}, "not"),
    ({"const": "x" * 5000}, "a text of 5000 characters"),
    ({"x" * 5000: 1}, "a text of 5000 characters"),
    ({"enum": ["x" * 4000] * 20}, f"at most {LONGEST_GRAMMAR}"),
    ({"properties": {f"k{index}": {} for index in range(1001)}}, "an object of 1001 fields"),
    ({"items": {"x-guidance": {"lenient": True}}}, "x-guidance"),
    ({"const": "\ud800"}, "hex escape"),
])  # fmt: skip
def test_a_schema_that_cannot_be_followed_says_why(grammars: Grammars, schema: Any, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as refusal:
        grammars.matcher(json_grammar(schema))
    assert "\n" not in str(refusal.value)
    assert "<state>" not in str(refusal.value)


def test_white_space_between_two_parts_has_an_end(grammars: Grammars) -> None:
    """A small model writes it without an end, until its answer is cut off."""
    matcher = grammars.matcher(json_grammar({"type": "array", "items": {"type": "integer"}}))
    (bracket,) = (token for token in range(8192) if grammars._tokenizer.decode_str([token]) == "[")
    (line,) = (token for token in range(8192) if grammars._tokenizer.decode_str([token]) == "\n")
    matcher.push(bracket)
    lines = 0
    while matcher.mask()[line]:
        matcher.push(line)
        lines += 1
    assert 10 < lines < 100


def test_the_turn_ends_only_where_the_form_is_whole(grammars: Grammars) -> None:
    matcher = grammars.matcher(json_grammar({"const": "ab"}))
    text = b""
    while not matcher.mask()[END]:
        token = int(np.flatnonzero(matcher.mask())[0])
        text += grammars._tokenizer.decode_bytes([token])
        matcher.push(token)
    assert json.loads(text) == "ab"
    assert np.flatnonzero(matcher.mask()).tolist() == [END]
