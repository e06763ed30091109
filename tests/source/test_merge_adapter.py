"""Adapter, merged: the whole model says what peft's own unmerged one says, or nothing is made of it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapters import distance, edit_config, logits_of_folder, write_adapter, write_base

from slmpack import progress
from slmpack.checkpoint.headers import Tensor, read_weights
from slmpack.errors import SourceError
from slmpack.source.merge_adapter import MergeRequest, MergeResult, merge_adapter, merge_bytes

pytestmark = pytest.mark.slow  # torch, transformers and peft are imported

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every matrix": {"target_modules": "all-linear"},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 3},
    "ranks and alphas by pattern": {"rank_pattern": {"layers.0.*q_proj": 2}, "alpha_pattern": {"down_proj": 5}},
    "one layer": {"layers_to_transform": [1]},
    "DoRA": {"use_dora": True},
    "biases": {"bias": "all"},
    "embeddings and head, whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embeddings, whole": {"modules_to_save": ["embed_tokens"]},
    "embeddings, by factors": {"target_modules": ["q_proj", "embed_tokens"]},
    "head, by factors": {"target_modules": ["q_proj", "lm_head"]},
    "a few tokens": {"trainable_token_indices": [3, 4]},
    "more rows": {"rows": 108},
    "more rows, trained": {"rows": 108, "modules_to_save": ["embed_tokens", "lm_head"]},
}


def merge(base: Path, adapter: Path, into: Path) -> MergeResult:
    into.mkdir()
    return merge_adapter(MergeRequest(base=base, adapter=adapter, into=into))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_answers_as_peft_does(tmp_path: Path, kind: str, tied: bool) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=tied, attention_bias=kind == "biases")
    expected = write_adapter(tmp_path / "adapter", base, **KINDS[kind])
    assert merge(base, tmp_path / "adapter", tmp_path / "into").distance < 1e-5
    assert distance(logits_of_folder(tmp_path / "into"), expected) < 1e-5
    assert distance(logits_of_folder(base), expected[:, :100]) > 0.01 if "rows" not in KINDS[kind] else True


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_a_base_keeps_its_precision(tmp_path: Path, dtype: str, limit: float) -> None:
    base = write_base(tmp_path / "base", dtype)
    expected = write_adapter(tmp_path / "adapter", base, modules_to_save=["lm_head"])
    merge(base, tmp_path / "adapter", tmp_path / "into")
    assert {tensor.dtype for tensor in read_weights(tmp_path / "into").values()} == {
        "bfloat16": {"BF16"}, "float16": {"F16"},
    }[dtype]  # fmt: skip
    assert distance(logits_of_folder(tmp_path / "into"), expected) < limit


@pytest.mark.parametrize(
    "content",
    ['{"do_sample": false, "temperature": 0.9, "top_p": 0.6}', '{"num_beams": 1, "early_stopping": true}', "null", "{"],
)
def test_the_bases_generation_settings_are_neither_read_nor_written(tmp_path: Path, content: str) -> None:
    base, into = write_base(tmp_path / "base"), tmp_path / "into"
    write_adapter(tmp_path / "adapter", base)
    (base / "generation_config.json").write_text(content)
    into.mkdir()
    (into / "generation_config.json").write_text(content)
    request = MergeRequest(base=base, adapter=tmp_path / "adapter", into=into)
    assert merge_adapter(request).distance < 1e-5
    assert (into / "generation_config.json").read_text() == content


def test_merging_is_told_as_a_step_of_the_stage_that_it_is_in(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            report = record.__dict__["progress"]
            told.append((report.stage, report.done))

    base, handler = write_base(tmp_path / "base"), Listen()
    write_adapter(tmp_path / "adapter", base)
    (tmp_path / "into").mkdir()
    progress.logger.addHandler(handler)
    merge_adapter(MergeRequest(base=base, adapter=tmp_path / "adapter", into=tmp_path / "into", stage="train"))
    progress.logger.removeHandler(handler)
    assert told == [("train", step) for step in (1, 2, 3, 4)]


def test_a_tied_head_is_untied_only_where_the_adapter_changes_one_end(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "head": {"target_modules": ["lm_head"]}}
    for name, settings in kinds.items():
        write_adapter(tmp_path / name, base, **settings)
        merge(base, tmp_path / name, tmp_path / f"{name}-merged")
        config = json.loads((tmp_path / f"{name}-merged" / "config.json").read_text())
        assert config["tie_word_embeddings"] is (name == "plain")
        assert ("lm_head.weight" in read_weights(tmp_path / f"{name}-merged")) is (name == "head")


def test_the_same_adapter_gives_the_same_bytes_and_names_no_path(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "bfloat16")
    write_adapter(tmp_path / "adapter", base, use_dora=True)
    edit_config(tmp_path / "adapter", switch_of_a_later_release=False)
    for name in ("first", "second"):
        merge(base, tmp_path / "adapter", tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"config.json", "model.safetensors"}


Tensors = dict[str, Any]
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def edit_tensors(adapter: Path, change: Callable[[Tensors], object]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def not_a_number(tensors: Tensors) -> None:
    tensors[Q][0, 0] = float("nan")


def too_large(tensors: Tensors) -> None:
    tensors[Q] = tensors[Q].fill_(3e38)
    tensors[Q.replace("lora_A", "lora_B")].fill_(3e38)


def of_another_width(tensors: Tensors) -> None:
    tensors[Q] = tensors[Q].new_zeros(4, 80)


def of_another_layer(tensors: Tensors) -> None:
    tensors[Q.replace("layers.0", "layers.7")] = tensors[Q].clone()


def incomplete(tensors: Tensors) -> None:
    del tensors[Q]


def with_rows_for_the_embeddings_only(tensors: Tensors) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = tensors[Q].new_zeros(108, 64)


def unchanged(_: Tensors) -> None:
    return None


BAD: dict[str, tuple[Callable[[Tensors], None], dict[str, Any], str]] = {
    "NaN": (not_a_number, {}, r"q_proj\.lora_A\.weight in .*adapter has numbers that are not finite; finite numbers; "),
    "overflow": (too_large, {}, r"peft cannot merge the adapter \(.*NaNs detected|logits .* away from its own"),
    "another width": (of_another_width, {}, r"does not fit its base \(.*size mismatch for .*q_proj.*; the model that "),
    "another layer": (of_another_layer, {}, r"adapter has \S*layers\.7\.self_attn\.q_proj\.lora_A\S*; the tensors tha"),
    "incomplete": (incomplete, {}, r"adapter lacks \S*layers\.0\.self_attn\.q_proj\.lora_A\S*; the tensors that"),
    "other ranks": (unchanged, {"rank_pattern": {"q_proj": 2}}, r"does not fit its base \(.*size mismatch"),
    "modules that the base lacks": (unchanged, {"target_modules": ["Wqkv"]}, r"does not fit its base \(.*Wqkv.*not fo"),
    "DoRA without magnitudes": (unchanged, {"use_dora": True}, r"adapter lacks \S*lora_magnitude_vector"),
    "a bias that nothing has": (unchanged, {"lora_bias": True}, r"does not fit its base|lacks \S*lora_B\S*bias"),
    "a setting of another type": (unchanged, {"r": "four"}, r"does not fit its base \("),
    "rows for one end only": (with_rows_for_the_embeddings_only, {}, r"108 rows for tokens and has none for lm_head; "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refuses(tmp_path: Path, case: str) -> None:
    base, adapter = write_base(tmp_path / "base"), tmp_path / "adapter"
    write_adapter(adapter, base)
    change, settings, message = BAD[case]
    edit_tensors(adapter, change)
    edit_config(adapter, **settings)
    with pytest.raises(SourceError, match=message) as caught:
        merge(base, adapter, tmp_path / "into")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_does_not_fit(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", base)
    other = write_base(tmp_path / "other", hidden_size=80, head_dim=20)
    with pytest.raises(SourceError, match=r"does not fit its base \(.*size mismatch"):
        merge(other, tmp_path / "adapter", tmp_path / "into")


def test_memory_is_asked_for_by_the_models_size() -> None:
    base = {"a": Tensor(dtype="BF16", shape=(1000, 1_000_000)), "b": Tensor(dtype="F32", shape=(1_000_000,))}
    adapter = {"c": Tensor(dtype="F32", shape=(16, 1000))}
    assert merge_bytes(base, adapter) > 2_000_000_000 + 4_000_000
    few = {"base_model.model.b.lora_A.weight": Tensor(dtype="F32", shape=(16, 1000))}
    base["b.weight"] = Tensor(dtype="BF16", shape=(1000, 1000))
    assert merge_bytes(base, few) < merge_bytes(base, adapter)
