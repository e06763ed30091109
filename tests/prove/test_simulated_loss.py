"""Simulation: what 4 bits cost can be told without the runtime; the runtime's own figure is the same but for noise."""

import shutil
from pathlib import Path

import pytest
import torch
from package_weights import all_weights
from runtime import logits_of

from slmpack.prove.quality.text import CORPUS
from slmpack.records import Package

NOISE = 0.01  # nats a token
TOKENS = 256


def mean_kl(source: torch.Tensor, other: torch.Tensor) -> float:
    said, found = torch.log_softmax(source.double(), -1), torch.log_softmax(other.double(), -1)
    return float((said.exp() * (said - found)).sum(-1).mean())


@pytest.mark.slow
def test_the_runtime_loses_what_the_weights_of_the_package_lose(smollm2_package: Package, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    snapshot = smollm2_package.snapshot.path
    ids = AutoTokenizer.from_pretrained(snapshot)(CORPUS.read_text(encoding="utf-8"))["input_ids"][:TOKENS]
    model = AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32)
    for name in ("model.onnx", "model.onnx.data"):  # files with other names elsewhere are not read by ONNX
        shutil.copyfile(smollm2_package.path / name, tmp_path / name)
    weights = all_weights(tmp_path)
    with torch.no_grad():
        source = model(torch.tensor([ids])).logits[0]
        for number, layer in enumerate(model.model.layers):
            attention, mlp, name = layer.self_attn, layer.mlp, f"/model/layers.{number}"
            parts = [attention.q_proj, attention.k_proj, attention.v_proj]
            rows = torch.split(weights[f"{name}/attn/qkv_proj/MatMul_Q4"], [part.out_features for part in parts])
            for part, own in zip(parts, rows, strict=True):
                part.weight.copy_(own)
            attention.o_proj.weight.copy_(weights[f"{name}/attn/o_proj/MatMul_Q4"])
            for part in ("gate_proj", "up_proj", "down_proj"):
                getattr(mlp, part).weight.copy_(weights[f"{name}/mlp/{part}/MatMul_Q4"])
        model.lm_head.weight.copy_(weights["/lm_head/MatMul_Q4"])  # the embedding, too
        simulated = mean_kl(source, model(torch.tensor([ids])).logits[0])
    found = mean_kl(source, logits_of(smollm2_package.path, ids))
    assert found == pytest.approx(simulated, abs=NOISE)
    assert 0.05 < simulated < 0.4  # 4 bits cost something here, and not everything
