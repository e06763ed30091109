"""Comparing: a package and its source are scored at the positions at which transformers scores a text."""

import math
from pathlib import Path

import pytest

from slmpack.checkpoint.windows import REFERENCE_FILE
from slmpack.prove.quality.compare import ComparisonRequest, run_package
from slmpack.prove.quality.reference import Reference, source_reference
from slmpack.prove.quality.text import read_text
from slmpack.records import Package


@pytest.mark.slow
def test_perplexities_are_those_that_transformers_gives(tiny_package: Package, workspace: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = tiny_package.snapshot
    reference = source_reference(source, read_text(None), workspace)
    fed = Reference.model_validate_json((reference / REFERENCE_FILE).read_text())
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    losses = []
    with torch.inference_mode():
        for window in fed.windows:
            ids = torch.tensor([window])
            losses.append(float(model(input_ids=ids, labels=ids).loss) * (len(window) - 1))
    expected = math.exp(math.fsum(losses) / fed.positions)

    found = run_package(ComparisonRequest(package=tiny_package.path, reference=reference))

    assert found.source_perplexity == pytest.approx(expected, rel=1e-3)
    assert found.perplexity == pytest.approx(expected, rel=0.05)  # of 4 bits
