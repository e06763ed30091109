r"""Chats as training reads them: token ids, and which of them are to be learnt.

    messages before an answer --chat template, with the generation prompt--> prompt ids    label -100
    the answer -------------what the template adds to that prompt for it---> answer ids    label: the id

A prompt is what the model reads before it answers. An answer ends with the first token that ends a turn, which is
learnt too; what the template writes after it belongs to the next prompt. Templates rarely mark answers
themselves (`{% generation %}`), so both are rendered, and the first has to begin the second.

A chat of several answers is one example where each prompt begins with the text before it, as most templates have it.
Where a template rewrites earlier turns, as those do that drop an old answer's reasoning, it is an example an answer.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from slmpack.checkpoint.tokenizer import end_ids_of, read_tokenizer
from slmpack.errors import TrainError
from slmpack.machine.child import limited

CHATS_A_LIMIT = 1000  # within one limit of time and memory; they take a second
IGNORED = -100  # the label of what is not learnt. Source: torch.nn.CrossEntropyLoss, `ignore_index`.
Message = dict[str, str]


class Example(NamedTuple):
    """What the model reads and what it learns, of one length; `labels` are `ids` or `IGNORED`."""

    ids: list[int]
    labels: list[int]

    @property
    def learnt(self) -> int:
        """How many tokens have a label; the first of an example has nothing before it, and none."""
        return sum(label != IGNORED for label in self.labels)


class Examples(NamedTuple):
    """All of a file's examples, in its order, and how many were too long and left out."""

    fitting: list[Example]
    left_out: int

    @property
    def longest(self) -> int:
        return max(len(example.ids) for example in self.fitting)

    @property
    def learnt(self) -> int:
        return sum(example.learnt for example in self.fitting)


def read_examples(checkpoint: Path, chats: Path, max_length: int) -> Examples:
    """Read every chat of a file with a checkpoint's own tokenizer and chat template.

    Args:
        checkpoint: a folder with `tokenizer.json` and a chat template.
        chats: JSON Lines, an object with `messages` a line, checked before.
        max_length: examples of more tokens are left out: a cut one would teach to stop in the middle.

    Raises:
        TrainError: the template cannot be read in this way, or no chat is short enough.
    """
    found: list[Example] = []
    file, all_chats = f"the tokenizer or the chat template of {checkpoint}", _chats(chats)
    with limited(file):
        tokenizer = read_tokenizer(checkpoint)
        ends = end_ids_of(checkpoint, tokenizer).keys()
    while some := list(islice(all_chats, CHATS_A_LIMIT)):
        with limited(file):
            found += [example for messages in some for example in examples_of(tokenizer, ends, messages)]
    fitting = [example for example in found if len(example.ids) <= max_length]
    if not fitting:
        shortest = min((len(example.ids) for example in found), default=0)
        raise TrainError(
            f"no chat in {chats.name} has an answer within {max_length:,} tokens (the shortest needs {shortest:,})",
            "chats that fit",
            "give a larger max_length, or shorter chats",
        )
    return Examples(fitting, len(found) - len(fitting))


def _chats(path: Path) -> Iterator[list[Message]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            try:
                messages = json.loads(line)["messages"]
            except (ValueError, KeyError, TypeError) as error:
                raise TrainError(
                    f"line {number} of {path.name} is no chat ({type(error).__name__}: {error})",
                    'an object with "messages"',
                    "have the data checked first",
                ) from error
            yield messages


def examples_of(tokenizer: Any, ends: Collection[int], messages: Sequence[Message]) -> list[Example]:
    """Return the examples of one chat, most often one.

    Args:
        tokenizer: transformers', with a chat template.
        ends: the ids that end a turn, see `end_ids_of`.
        messages: each with `role` and `content`.

    Raises:
        TrainError: the template refuses the chat, does not begin an answer with its own generation prompt, or does
            not end it.
    """
    examples: list[Example] = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, answer = _turn(tokenizer, ends, messages[: at + 1])
        known: list[int] = []
        if examples and prompt[: len(examples[-1].ids)] == examples[-1].ids:
            known = examples.pop().labels
        labels = [*known, *[IGNORED] * (len(prompt) - len(known)), *answer]
        examples.append(Example(prompt + answer, labels))
    return examples


def _turn(tokenizer: Any, ends: Collection[int], messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and those of the answer in the last message, its end of turn included."""
    for _ in range(2):  # a template that writes the date: midnight may come between the two
        prompt_text = _render(tokenizer, messages[:-1], asks=True)
        whole = _render(tokenizer, messages, asks=False)
        if whole.startswith(prompt_text):
            break
    else:
        raise TrainError(
            "the chat template does not begin an answer with its own generation prompt",
            f"{_shown(prompt_text)} before it, as callers ask the model",
            "train with a template whose chats go on from it",
        )
    prompt, both = _ids(tokenizer, prompt_text), _ids(tokenizer, whole)
    # Where a token would span the border, such as two line ends, the prompt's own ids count, as a caller's prompt has.
    answer = both[len(prompt) :] if both[: len(prompt)] == prompt else _ids(tokenizer, whole[len(prompt_text) :])
    end = next((at for at, token in enumerate(answer) if token in ends), None)
    if end is None:
        named = ", ".join(sorted(map(str, tokenizer.convert_ids_to_tokens(sorted(ends)))))
        raise TrainError(
            f"the chat template does not end an answer (it writes {_shown(whole[-40:])})",
            f"one of {named} after it",
            "correct the template or eos_token_id",
        )
    return prompt, answer[: end + 1]


def _render(tokenizer: Any, messages: Sequence[Message], *, asks: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
    except MemoryError:
        raise
    except Exception as error:  # a template may raise anything: that is its way to refuse
        roles = ", ".join(message["role"] for message in messages)
        raise TrainError(
            f"the chat template refuses a chat of {roles or 'no message'} ({str(error)[:200]})",
            "turns that it takes",
            "leave such chats out",
        ) from error
    return str(text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes them itself
    return ids


def _shown(text: str) -> str:
    return repr(text[-60:])
