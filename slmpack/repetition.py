"""Repetition: greedy answers that loop, which a model too coarsely quantised gives before its perplexity tells.

Small models loop by themselves on some questions. So only a package's answer that loops is held against its source,
which then gets the same question, and only a loop that the source does not have is new.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmpack.child import run_in_child
from slmpack.errors import QualityError
from slmpack.progress import report
from slmpack.records import Record, Snapshot, digest_of
from slmpack.store import log_folder, store_folder

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 96
ANSWER_LIMIT_SECONDS = 1800.0
ANSWERS_FILE = "answers.json"
MIN_LOOP_TOKENS = 32
MIN_LOOP_COPIES = 3


class SourceQuestions(Record):
    """What the source's process is asked: each prompt is the token ids of one question, in its chat template."""

    snapshot: Path
    dtype: str
    prompts: tuple[tuple[int, ...], ...]


class Answer(Record):
    """New token ids of one greedy answer; `ended` is whether the model ended it itself."""

    ids: tuple[int, ...]
    ended: bool

    @property
    def loops(self) -> bool:
        return not self.ended and loops(self.ids)


class SourceAnswers(Record):
    """One answer a prompt, in order."""

    answers: tuple[Answer, ...]


def loops(ids: Sequence[int]) -> bool:
    """Tell whether the end of an answer is one passage over and over, token for token.

    The passage must stand there three times or more, over 32 tokens or more. Twice is what refrains do. Thirty-two
    keeps rows of zeros, table rules and laughter out, which are short. A count, a list or a litany changes a
    token each time, and so has no period. Within 96 tokens, passages of up to 32 tokens are found.
    """
    for period in range(1, len(ids) // MIN_LOOP_COPIES + 1):
        if _periodic_tail(ids, period) >= max(MIN_LOOP_TOKENS, MIN_LOOP_COPIES * period):
            return True
    return False


def _periodic_tail(ids: Sequence[int], period: int) -> int:
    """Return how many tokens at the end repeat with `period`, the first copy included."""
    start = len(ids) - period
    while start > 0 and ids[start - 1] == ids[start - 1 + period]:
        start -= 1
    return len(ids) - start


def package_answer(model: Any, prompt: Sequence[int]) -> Answer:
    """Let the ONNX Runtime GenAI `model` answer greedily, without the penalties its configuration may ask for."""
    import onnxruntime_genai as og

    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + ANSWER_TOKENS, do_sample=False, repetition_penalty=1.0)
    generator = og.Generator(model, parameters)
    generator.append_tokens(list(prompt))
    ids: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
    return Answer(ids=tuple(ids), ended=len(ids) < ANSWER_TOKENS)


def count_new_loops(
    answers: Sequence[Answer], prompts: Sequence[tuple[int, ...]], snapshot: Snapshot, dtype: str, workspace: Path
) -> int:
    """Count the answers of a package that loop where the source's answer to the same prompt does not.

    Raises:
        QualityError: the source cannot be run.
    """
    looping = tuple(prompt for answer, prompt in zip(answers, prompts, strict=True) if answer.loops)
    if not looping:
        return 0
    return sum(not answer.loops for answer in source_answers(looping, snapshot, dtype, workspace))


def source_answers(
    prompts: tuple[tuple[int, ...], ...], snapshot: Snapshot, dtype: str, workspace: Path
) -> tuple[Answer, ...]:
    """Return the source's own greedy answers, asked once and kept in the workspace.

    Raises:
        QualityError: the source cannot be run.
    """
    key = digest_of(["answers", snapshot.digest, dtype, prompts, ANSWER_TOKENS])

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("greedy answers of the package that loop: %d; asking its source the same", len(prompts))
        answers, _ = run_in_child(
            answer_as_source,
            SourceQuestions(snapshot=snapshot.path, dtype=dtype, prompts=prompts),
            log=log_folder(workspace) / f"answers-{key[:12]}.log",
            limit_seconds=ANSWER_LIMIT_SECONDS,
            failure=QualityError,
            doing="the answering by the source",
        )
        (into / ANSWERS_FILE).write_text(answers.model_dump_json())
        return {"snapshot": snapshot.digest, "dtype": dtype}

    folder = store_folder(workspace, "references", key, make)
    return SourceAnswers.model_validate_json((folder / ANSWERS_FILE).read_text()).answers


def answer_as_source(questions: SourceQuestions) -> SourceAnswers:
    """Run in a child: answer greedily with transformers, as `package_answer` does with the package."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        questions.snapshot, dtype=getattr(torch, questions.dtype), local_files_only=True
    )
    answers = []
    for prompt in questions.prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            answer = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=ANSWER_TOKENS,
                repetition_penalty=1.0,
            )[0, len(prompt) :].tolist()  # fmt: skip
        answers.append(Answer(ids=tuple(answer), ended=len(answer) < ANSWER_TOKENS))
        report("measure", len(answers), len(questions.prompts), "answers by the source")
    return SourceAnswers(answers=tuple(answers))
