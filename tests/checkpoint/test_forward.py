"""The source itself: a module's weights at a time gives what transformers gives with all of them in float32."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import SMALL, write_random

from slmpack.checkpoint.forward import load_source, logits_of, vocabulary_of
from slmpack.errors import QualityError

WINDOWS = ((1, 5, 9, 7, 3, 88, 2), (4, 6, 8), (11, 12, 13, 14, 99))
# The square root of 64, by which Gemma scales, is the same number in any precision.
# What is special about each: where a run module by module could go wrong.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied, scaled embeddings and capped logits": ("Gemma2", {}),
    "scaled logits": ("Granite", {"logits_scaling": 8.0, "embedding_multiplier": 3.0}),
    "a head with a bias": ("Phi", {"num_key_value_heads": 4}),
    "experts in one tensor": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "a window shorter than the text": ("Mistral", {"sliding_window": 3}),
}


def compare(plain: Any, folder: Path, dtype: str) -> None:
    import torch

    calls = []
    model = load_source(folder, dtype)
    assert vocabulary_of(model) == 100
    found = torch.cat(list(logits_of(model, WINDOWS, lambda *call: calls.append(call))))
    with torch.inference_mode():
        expected = torch.cat([plain(input_ids=torch.tensor([window])).logits[0, :-1] for window in WINDOWS])
    assert found.dtype == torch.float32
    assert expected.std() > 0.02
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ARCHITECTURES)
def test_the_logits_are_those_of_the_same_weights_in_float32(what: str, tmp_path: Path) -> None:
    name, more = ARCHITECTURES[what]
    compare(write_random(tmp_path, name, SMALL | more), tmp_path, "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_precisions_are_taken_as_they_are(dtype: str, tmp_path: Path) -> None:
    import torch
    import transformers

    plain = write_random(
        tmp_path, "GPT2", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    )
    plain.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    same = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32)
    compare(same, tmp_path, dtype)


def test_a_model_that_is_its_own_decoder_is_refused() -> None:
    import torch

    class Bare(torch.nn.Module):
        @property
        def base_model(self) -> torch.nn.Module:
            return self

    with pytest.raises(QualityError, match="Bare without a decoder of its own; a decoder and a head"):
        next(logits_of(Bare(), WINDOWS))
