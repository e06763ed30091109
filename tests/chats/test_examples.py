"""Examples: what of a chat is learnt is the answers, as the model is asked, in each template's own way."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import TOKENIZERS

from slmpack.chats.examples import IGNORED, Example, examples_of, read_examples
from slmpack.checkpoint.tokenizer import end_ids_of, read_tokenizer
from slmpack.errors import TrainError

FIRST = [
    {"role": "user", "content": "What is the river?"},
    {"role": "assistant", "content": "It's the Sorrel."},
]
SECOND = [*FIRST, {"role": "user", "content": "And the hill?"}, {"role": "assistant", "content": "Mount Pebble, 12 m."}]
ENDS = {"llama3": "<|eot_id|>", "qwen": "<|im_end|>", "gpt2": "<|im_end|>", "phi3": "<|end|>", "gemma": "<end_of_turn>"}
# As Gemma's own file has it: an assistant is a model, and content is trimmed.
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def write_tokenizer(name: str, folder: Path, template: str | None = None) -> Path:
    TOKENIZERS[name](folder)
    if name == "gemma" or template:
        (folder / "chat_template.jinja").write_text(template or GEMMA_CHAT)
    return folder


def tokenizer_of(folder: Path) -> tuple[Any, Any]:
    tokenizer = read_tokenizer(folder)
    return tokenizer, end_ids_of(folder, tokenizer).keys()


def learnt(tokenizer: Any, example: Example) -> str:
    """Return the text of what is learnt."""
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_the_answer_and_its_end_of_turn_are_learnt(name: str, tmp_path: Path) -> None:
    tokenizer, ends = tokenizer_of(write_tokenizer(name, tmp_path / name))
    (example,) = examples_of(tokenizer, ends, FIRST)
    assert learnt(tokenizer, example).strip() == f"It's the Sorrel.{ENDS[name]}"
    assert all(label in (IGNORED, token) for token, label in zip(example.ids, example.labels, strict=True))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_model_learns_after_the_very_prompt_it_is_asked_with(name: str, tmp_path: Path) -> None:
    tokenizer, ends = tokenizer_of(write_tokenizer(name, tmp_path / name))
    (example,) = examples_of(tokenizer, ends, FIRST)
    prompt = tokenizer.apply_chat_template(FIRST[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert example.ids[: len(prompt)] == prompt
    assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert IGNORED not in example.labels[len(prompt) :]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_two_answers_of_a_chat_are_one_example_with_both_learnt(name: str, tmp_path: Path) -> None:
    tokenizer, ends = tokenizer_of(write_tokenizer(name, tmp_path / name))
    (example,) = examples_of(tokenizer, ends, SECOND)
    whole = tokenizer.apply_chat_template(SECOND, tokenize=True, return_dict=False)
    assert example.ids == whole[: len(example.ids)]
    both = learnt(tokenizer, example)
    assert "It's the Sorrel." in both
    assert "Mount Pebble, 12 m." in both
    assert both.count(ENDS[name]) == 2
    assert "hill" not in both


def test_a_template_that_rewrites_earlier_answers_gives_an_example_an_answer(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ m['content'] if loop.last or m['role'] == 'user' else 'left out' }}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer, ends = tokenizer_of(write_tokenizer("qwen", tmp_path / "qwen", template))
    first, second = examples_of(tokenizer, ends, SECOND)
    assert learnt(tokenizer, first) == "It's the Sorrel.<|im_end|>"
    assert learnt(tokenizer, second) == "Mount Pebble, 12 m.<|im_end|>"
    assert "left out" in tokenizer.decode(second.ids)


def test_an_answer_that_begins_with_a_line_end_still_follows_the_prompts_own_tokens(tmp_path: Path) -> None:
    tokenizer, ends = tokenizer_of(TOKENIZERS["qwen"](tmp_path / "qwen"))
    answer = "\n\nOn a line of its own."
    (example,) = examples_of(tokenizer, ends, [FIRST[0], {"role": "assistant", "content": answer}])
    prompt = tokenizer.apply_chat_template(FIRST[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert example.ids[: len(prompt)] == prompt
    assert learnt(tokenizer, example) == f"{answer}<|im_end|>"


def test_a_template_whose_prompt_does_not_begin_the_answer_is_refused(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>bot' }}{% endif %}"
    )
    tokenizer, ends = tokenizer_of(write_tokenizer("qwen", tmp_path / "qwen", template))
    with pytest.raises(TrainError, match="does not begin an answer with its own generation prompt"):
        examples_of(tokenizer, ends, FIRST)


def test_a_template_that_does_not_end_an_answer_is_refused(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer, ends = tokenizer_of(write_tokenizer("qwen", tmp_path / "qwen", template))
    with pytest.raises(TrainError, match=r"does not end an answer .*<\|im_end\|>"):
        examples_of(tokenizer, ends, FIRST)


def test_a_chat_that_the_template_refuses_is_told_with_its_roles(tmp_path: Path) -> None:
    folder = write_tokenizer("gemma", tmp_path / "gemma")
    template = (folder / "chat_template.jinja").read_text()
    guard = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(guard + template)
    tokenizer, ends = tokenizer_of(folder)
    with pytest.raises(TrainError, match=r"refuses a chat of system, user.*System role not supported"):
        examples_of(tokenizer, ends, [{"role": "system", "content": "Be brief."}, *FIRST])


def test_a_chat_that_is_too_long_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = TOKENIZERS["qwen"](tmp_path / "qwen")
    long = [FIRST[0], {"role": "assistant", "content": "Sorrel " * 200}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (FIRST, long, SECOND)))
    examples = read_examples(folder, chats, 128)
    assert (len(examples.fitting), examples.left_out) == (2, 1)
    assert examples.longest <= 128
    with pytest.raises(TrainError, match=r"no chat in chats\.jsonl has an answer within 4 tokens \(the shortest needs"):
        read_examples(folder, chats, 4)


def test_a_line_that_is_no_chat_is_named(tmp_path: Path) -> None:
    folder = TOKENIZERS["qwen"](tmp_path / "qwen")
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": FIRST}) + "\n{}\n")
    with pytest.raises(TrainError, match=r"line 2 of chats\.jsonl is no chat"):
        read_examples(folder, chats, 128)
