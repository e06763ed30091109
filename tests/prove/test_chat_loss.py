"""Chat loss: what transformers itself says of the answers, and of nothing else."""

import math
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_random
from families import PLAIN, TOKENIZERS
from invented_town import chats, write_chats

from slmpack.chats.examples import IGNORED, Example, read_examples
from slmpack.errors import QualityError, SourceError
from slmpack.prove.quality.chat_loss import chat_loss, chat_perplexity, parts_of


def example(size: int) -> Example:
    return Example([1] * size, [IGNORED] + [1] * (size - 1))


def test_texts_that_are_alike_are_read_together_and_none_is_lost() -> None:
    parts = list(parts_of([example(size) for size in (9, 2, 3, 50, 2)], tokens=10))
    assert [[len(each.ids) for each in part] for part in parts] == [[2, 2, 3], [9], [50]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers in bfloat16."""
    folder = TOKENIZERS["qwen"](tmp_path_factory.mktemp("loss") / "llama")
    kept = (folder / "generation_config.json").read_bytes()
    write_random(folder, "Llama", PLAIN)
    (folder / "generation_config.json").write_bytes(kept)
    return folder


def loss_by_transformers(folder: Path, file: Path) -> float:
    """Return the mean over all answers' tokens, a chat at a time, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    examples, total = read_examples(folder, file, 4096), 0.0
    for each in examples.fitting:
        with torch.no_grad():
            said = model(input_ids=torch.tensor([each.ids]), labels=torch.tensor([each.labels]))
        total += float(said.loss) * each.learnt
    return total / examples.learnt


@pytest.mark.slow
def test_the_loss_is_the_one_that_transformers_gives(checkpoint: Path, tmp_path: Path) -> None:
    file = write_chats(tmp_path / "town.jsonl", chats()[:12])
    found = chat_loss(checkpoint, file, tmp_path)
    assert found.answers == 12
    assert found.loss == pytest.approx(loss_by_transformers(checkpoint, file), rel=1e-5)
    assert chat_perplexity(checkpoint, file, tmp_path) == math.exp(found.loss)


@pytest.mark.slow
def test_a_model_that_says_nothing_finite_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], math.inf)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    file = write_chats(tmp_path / "town.jsonl", chats()[:4])
    with pytest.raises(QualityError, match="a loss that is not finite"):
        chat_loss(broken, file, tmp_path)


def test_a_folder_without_a_checkpoint_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        chat_loss(tmp_path, tmp_path / "none.jsonl", tmp_path)
