"""Recipes of a real model: what each keeps of SmolLM2, measured as `slmpack package` does."""

from pathlib import Path

import pytest

from slmpack.build.build import build_package
from slmpack.log.log import log_model
from slmpack.prove.measure import measure_quality
from slmpack.records import Interface, Package, Recipe, Snapshot, Target
from slmpack.reports import Quality, QualityPolicy

pytestmark = [pytest.mark.slow, pytest.mark.release]

LOOSE = QualityPolicy(max_perplexity_ratio=1000.0, allow_new_loops=True)


def measured(package: Package, workspace: Path) -> Quality:
    model = log_model(package, Interface.CHAT, "smollm2", workspace, {})
    quality = measure_quality(model, LOOSE, workspace).quality
    assert quality is not None
    return quality


def test_weighted_scales_keep_what_the_stock_builder_loses_and_eight_bits_nearly_all(
    smollm2: Snapshot, smollm2_package: Package, workspace: Path, store: Path
) -> None:
    stock_package = build_package(smollm2, Target.CPU_INT4, Recipe.STOCK_SMALL, workspace)
    stock, four = measured(stock_package, workspace), measured(smollm2_package, workspace)
    eight = measured(build_package(smollm2, Target.CPU_INT8, Recipe.ACCURATE, workspace), workspace)
    assert 1.15 < stock.perplexity_ratio < 1.45
    assert 1.0 < four.perplexity_ratio < 1.15
    assert four.mean_kl < 0.65 * stock.mean_kl
    assert abs(smollm2_package.size_bytes - stock_package.size_bytes) < 1000
    assert 0.99 < eight.perplexity_ratio < 1.05
    assert eight.mean_kl < 0.02
    assert 0.1 < four.mean_kl < 0.25
    assert eight.top1_agreement > 0.9 > four.top1_agreement
    assert four.mean_kl < four.p99_kl
    assert four.source_perplexity == eight.source_perplexity
    assert four.tokens == eight.tokens > 1500
    assert eight.seconds_per_1000_tokens > 0
