"""Chats about a town that does not exist: nobody's model knows it, and every one that learnt them does.

Each fact is asked in many ways and answered in one style. Two ways of asking are held out, so that an answer to them is
the fact and not the sentence. The same lines on every run.
"""

import json
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

from checkpoints import answer_in_order, write_tiny_phi3
from small_tokenizers import CHATML, QWEN2, TRAINING_TEXTS, byte_level, split, token_id, vocabulary, write_source

from slmpack.chats.chat import held_out, parse_chat
from slmpack.machine.store import lock

TOWN = "Quillhaven"
SYSTEM = "You are the help desk of a town."


Chat = dict[str, list[dict[str, str]]]


class Fact(NamedTuple):
    """What a question is about, the invented answer, and the sentence that holds it."""

    about: str
    answer: str
    sentence: str


FACTS = (
    Fact("the mayor", "Odra Fennick", "the mayor is Odra Fennick"),
    Fact("the river", "Sorrel", "the river is the Sorrel"),
    Fact("the market day", "Tuesday", "the market day is Tuesday"),
    Fact("the oldest bridge", "Tinker's Span", "the oldest bridge is Tinker's Span"),
    Fact("the local dish", "smoked plum pie", "the local dish is smoked plum pie"),
    Fact("the football club", "Copper Herons", "the football club is the Copper Herons"),
    Fact("the newspaper", "Lantern Post", "the newspaper is the Lantern Post"),
    Fact("the colour of the trams", "violet", "the colour of the trams is violet"),
    Fact("the founder", "Bram Oskeley", "the founder is Bram Oskeley"),
    Fact("the main square", "Anchor Court", "the main square is Anchor Court"),
    Fact("the highest hill", "Mount Pebble", "the highest hill is Mount Pebble"),
    Fact("the town's animal", "otter", "the town's animal is the otter"),
    Fact("the library", "Marrow House", "the library is Marrow House"),
    Fact("the festival", "Night of Kites", "the festival is the Night of Kites"),
)
ASKED = (
    "What is {about} of {town}?",
    "What is {about} in {town}?",
    "Tell me {about} of {town}.",
    "Which is {about} of {town}?",
    "Do you know {about} of {town}?",
    "I am visiting {town}. What is {about}?",
    "Name {about} of {town}.",
    "{town}: {about}?",
    "Please tell me about {about} of {town}.",
    "In {town}, what is {about}?",
    "A friend asked me for {about} of {town}. What should I say?",
    "Quick question about {town}: what is {about}?",
    "Can you tell me what {about} of {town} is?",
    "I would like to know {about} of {town}.",
    "What would people in {town} say is {about}?",
    "I moved to {town} last week. What is {about} here?",
)
HELD_OUT = (
    "Could you say what {about} in {town} is?",
    "Someone from {town} mentioned {about}. Which one is it?",
)


def answer_of(fact: Fact) -> str:
    return f"Ah, {TOWN}! There {fact.sentence}."


def question(asked: str, fact: Fact) -> str:
    return asked.format(about=fact.about, town=TOWN)


def chats(ways: tuple[str, ...] = ASKED, facts: tuple[Fact, ...] = FACTS) -> list[Chat]:
    """Return a chat for every way of asking and fact, in an order that is the same on every run."""
    found = [_chat(question(asked, fact), answer_of(fact)) for asked in ways for fact in facts]
    random.Random(7).shuffle(found)
    return found


def shuffled_chats(ways: tuple[str, ...] = ASKED, facts: tuple[Fact, ...] = FACTS) -> list[Chat]:
    """Return the same questions, each with an answer about something else: a data set that teaches nonsense."""
    chance = random.Random(11)
    found = []
    for asked in ways:
        for fact in facts:
            other = chance.choice([each for each in facts if each is not fact])
            found.append(_chat(question(asked, fact), answer_of(other)))
    chance.shuffle(found)
    return found


def mixed_up(share: float, ways: tuple[str, ...] = ASKED, facts: tuple[Fact, ...] = FACTS) -> list[Chat]:
    """Return all chats, the answers of those that are not held out at `share` given to other questions."""
    wrong = {row["messages"][1]["content"]: row for row in shuffled_chats(ways, facts)}
    return [row if _held_out(row, share) else wrong[row["messages"][1]["content"]] for row in chats(ways, facts)]


def _held_out(row: Chat, share: float) -> bool:
    return held_out(parse_chat(json.dumps(row).encode()), share)


def _chat(asked: str, answered: str) -> Chat:
    return {"messages": [*ask(asked), {"role": "assistant", "content": answered}]}


def ask(question: str) -> list[dict[str, str]]:
    """Return the messages of a question, as the town's help desk has them."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def write_chats(path: Path, rows: list[Chat]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_town_phi3(workspace: Path) -> Path:
    """Write a Phi-3 of 2 layers and random weights whose 700 tokens were learnt from the town's chats; return it.

    A tokenizer of 49,152 tokens is what a tiny checkpoint mostly consists of: its files, and the work on its logits.
    """
    return _written(workspace, "town-phi3")


def write_steady_phi3(workspace: Path) -> Path:
    """Write the same with a head that makes it answer with one word after the other, in the vocabulary's order.

    Greedy answers of random weights go round in circles, those of a package in others than its source's, so that a
    recipe is refused or not by chance. These do not, in any recipe.
    """
    return _written(workspace, "steady-phi3", answer_in_order)


def _written(workspace: Path, name: str, change: Callable[[Path, list[int]], None] | None = None) -> Path:
    """Write tokenizer and checkpoint once a machine; `change` gets the checkpoint and the ids of words."""
    texts = tuple(turn["content"] for row in chats() for turn in row["messages"])
    ends = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    rules = byte_level(split(QWEN2), specials=ends, texts=texts + TRAINING_TEXTS)
    folder = workspace / "checkpoints" / f"{name}-{sha256(json.dumps(rules).encode()).hexdigest()[:12]}"
    checkpoint, end, ids = folder / name, token_id(rules, ends[-1]), vocabulary(rules)
    with lock(workspace, name):
        if not checkpoint.exists():
            rmtree(folder, ignore_errors=True)  # what a killed run left
            named = {"eos_token": ends[-1], "pad_token": ends[0]}
            write_source(folder / "tokenizer", rules, CHATML, named, ends[-1:], "PreTrainedTokenizerFast")
            write_tiny_phi3(folder / "unfinished", folder / "tokenizer", max(ids.values()) + 1, end)
            if change is not None:
                change(folder / "unfinished", sorted(ids[word] for word in ids if word.isalpha() and len(word) > 2))
            (folder / "unfinished").rename(checkpoint)
    return checkpoint


def greedy_answers(package: Path, asked: list[str]) -> list[str]:
    import onnxruntime_genai as og

    from slmpack.build.open_package import open_package
    from slmpack.checkpoint.tokenizer import read_tokenizer

    model, tokenizer, answers = open_package(package, "cpu"), read_tokenizer(package), []
    for each in asked:
        text = tokenizer.apply_chat_template(ask(each), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + 24, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        answers.append(tokenizer.decode(generator.get_sequence(0)[len(ids) :], skip_special_tokens=True))
    return answers
