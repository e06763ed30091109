"""Repetition: what counts as a loop, on token ids and on real answers."""

import pytest

from slmpack.prove.quality.repetition import ANSWER_TOKENS, Answer, loops
from slmpack.records import Snapshot

SENTENCE = " The lighthouse keeper was a man of great courage and he was always ready to help."
LOOPS = {
    "one token": " the" * 96,
    "one line": "A list:\n" + "- a bottle of water\n" * 30,
    "one sentence": "Once there was a lighthouse." + SENTENCE * 8,
    "two sentences": "It is blue because of light." + " The sky is blue. The sky is blue because it is blue." * 10,
    "code": "def is_palindrome(word):\n" + "    if word == word:\n        return True\n" * 12,
    "cut inside the passage": "Here it is:" + " I am sorry, I can not" * 20 + " I am",
}
HONEST = {
    "a list": "\n".join(
        f"{number}. {thing}"
        for number, thing in enumerate(
            ["Warm clothes", "A map", "A compass", "Water", "Food", "A torch", "A tent", "A knife", "Soap", "Boots"], 1
        )
    ),
    "counting": ", ".join(str(number) for number in range(1, 60)),
    "counting down": "\n".join(f"{number} green bottles hanging on the wall," for number in range(20, 5, -1)),
    "steps": "\n".join(f"Step {number}: turn the wheel once and write the number down." for number in range(1, 9)),
    "multiplication": "\n".join(f"{number} x 7 = {7 * number}" for number in range(1, 16)),
    "a refrain said twice": "Row, row, row your boat, gently down the stream.\nMerrily, merrily, merrily, merrily, "
    "life is but a dream.\nRow, row, row your boat, gently down the stream.\nMerrily, merrily, merrily, merrily, life "
    "is but a dream.",
    "laughter": "He read the letter again, put it down, looked at us all and said: ha ha ha ha ha ha ha",
    "a row of zeros": "def empty_board():\n    return [[0, 0, 0, 0, 0, 0, 0, 0]]",
    "the rule of a table": "| station | high | low | range | at | by |\n|---|---|---|---|---|---|",
    "code": "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n\n"
    "    def __add__(self, other):\n        return Point(self.x + other.x, self.y + other.y)\n\n"
    "    def __sub__(self, other):\n        return Point(self.x - other.x, self.y - other.y)\n\n"
    "    def __mul__(self, k):\n        return Point(self.x * k, self.y * k)\n",
    "nothing": "",
}


def last_answer_tokens(text: str, snapshot: Snapshot) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(snapshot.path / "tokenizer.json")).encode(text).ids
    return ids[:ANSWER_TOKENS]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_finds_a_loop_of(name: str, smollm2: Snapshot) -> None:
    assert loops(last_answer_tokens(LOOPS[name], smollm2))


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_takes_for_honest(name: str, smollm2: Snapshot) -> None:
    assert not loops(last_answer_tokens(HONEST[name], smollm2))


@pytest.mark.parametrize("period", [1, 2, 7, 10, 11, 31, 32])
def test_every_period_up_to_a_third_of_the_answer_is_found(period: int) -> None:
    passage = list(range(1000, 1000 + period))
    whole = (passage * ANSWER_TOKENS)[:ANSWER_TOKENS]
    assert loops(whole)
    assert not loops([*whole[:-1], 5])  # it found its way out
    assert loops([*range(ANSWER_TOKENS - 3 * period if period > 10 else 0), *whole[: max(3 * period, 32)]])
    assert not loops([*range(500), *whole[: max(3 * period, 32) - 1]])


def test_an_answer_that_the_model_ended_itself_does_not_loop() -> None:
    ids = (7,) * 40
    assert Answer(ids=ids, ended=False).loops
    assert not Answer(ids=ids, ended=True).loops
