"""Repetition: greedy answers that loop, which a model too coarsely quantised gives before its perplexity tells.

Small models loop by themselves on some questions. So only a package's answer that loops is compared with its source's,
and only a loop that the source does not have is new. The source runs only then, with all questions at once: a token
costs the reading of every weight, however many answers it is for. It runs in its own precision, mapped: float32 would
be made anew for every token.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.forward import load_source
from slmpack.errors import QualityError
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.remember import ChildWork, remembered
from slmpack.progress import report
from slmpack.records import Record, Snapshot, digest_of

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 96
ANSWER_LIMIT_SECONDS = 1800.0
ANSWERS_FILE = "answers.json"
MIN_LOOP_TOKENS = 32
MIN_LOOP_COPIES = 3


class AnswersRequest(Record):
    """What the source is to answer: each prompt is the token ids of one question, in its chat template.

    Attributes:
        into: the folder for the file of the answers.
    """

    snapshot: Path
    dtype: str
    prompts: tuple[tuple[int, ...], ...]
    into: Path


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
    looping = [answer.loops for answer in answers]
    if not any(looping):
        return 0
    logger.info("greedy answers of the package that loop: %d of %d", sum(looping), len(looping))
    own = source_answers(tuple(prompts), snapshot, dtype, workspace)
    return sum(loops and not answer.loops for loops, answer in zip(looping, own, strict=True))


def source_answers(
    prompts: tuple[tuple[int, ...], ...], snapshot: Snapshot, dtype: str, workspace: Path
) -> tuple[Answer, ...]:
    """Return the source's own greedy answers, computed once and stored in the workspace.

    Raises:
        QualityError: the source cannot be run.
    """
    key = digest_of(["answers", snapshot.digest, dtype, prompts, ANSWER_TOKENS])

    def request(into: Path) -> AnswersRequest:
        logger.info("asking the source the same: %d answers of up to %d tokens", len(prompts), ANSWER_TOKENS)
        return AnswersRequest(snapshot=snapshot.path, dtype=dtype, prompts=prompts, into=into)

    work = ChildWork(answer_as_source, "answers", ANSWER_LIMIT_SECONDS, QualityError, "the answering by the source")
    folder = remembered("references", key, snapshot, workspace, work, request, lambda _: {"dtype": dtype})
    return SourceAnswers.model_validate_json((folder / ANSWERS_FILE).read_text()).answers


@forked_with(*TORCH)
def answer_as_source(questions: AnswersRequest) -> SourceAnswers:
    """Run in a child: answer greedily with transformers, as `package_answer` does with the package; write the file."""
    import torch
    from transformers import GenerationConfig

    model = load_source(questions.snapshot, questions.dtype)
    ends = model.generation_config.eos_token_id
    plain: Any = GenerationConfig  # no beams or penalties, which a package has not
    model.generation_config = plain(eos_token_id=ends)
    stops = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    longest = max(map(len, questions.prompts))
    # padding comes first, so that every answer begins at the same place; the mask hides it
    ids = torch.tensor([[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in questions.prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in questions.prompts])

    def tell(so_far: "Tensor", _scores: object) -> "Tensor":
        report("measure", so_far.shape[1] - longest, ANSWER_TOKENS, "tokens of the source's answers")
        return torch.zeros(len(so_far), dtype=torch.bool)  # a criterion that stops nothing: called at every token

    with torch.inference_mode():
        answered = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=ANSWER_TOKENS,
            repetition_penalty=1.0,
            pad_token_id=min(stops, default=None),
            stopping_criteria=[tell],
        )
    answers = SourceAnswers(answers=tuple(_answer_of(row.tolist(), stops) for row in answered[:, longest:]))
    (questions.into / ANSWERS_FILE).write_text(answers.model_dump_json())
    return answers


def _answer_of(ids: list[int], stops: set[int]) -> Answer:
    """Cut one row of a batch after the token that ends it; what follows is padding."""
    end = next((at for at, token in enumerate(ids, start=1) if token in stops), len(ids))
    return Answer(ids=tuple(ids[:end]), ended=end < ANSWER_TOKENS)
