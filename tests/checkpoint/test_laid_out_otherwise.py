"""Small files of a checkpoint that are JSON and laid out otherwise: refused by the field's name."""

from pathlib import Path
from typing import Any

import pytest

from slmpack.checkpoint.inspect import inspect_model
from slmpack.checkpoint.quantised_layout import quantised_form
from slmpack.checkpoint.rowless_tokens import find_rowless
from slmpack.checkpoint.tokenizer_rules import read_rules
from slmpack.errors import SourceError
from slmpack.machine.json_file import write_json

SOUND: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", ["a", "b"]]},
    "added_tokens": [{"content": "<s>", "id": 3, "special": True}],
}
UNIGRAM: list[Any] = [["a", -1.0], ["b", -2]]


def changed(place: str, value: Any) -> dict[str, Any]:
    rules: dict[str, Any] = {**SOUND, "model": dict(SOUND["model"])}
    inside = rules["model"] if place.startswith("model.") else rules
    inside[place.removeprefix("model.")] = value
    return rules


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.vocab", {"a": "0"}), ("model.vocab", {"a": True}), ("model.vocab", 7), ("model.vocab", [["a"]]),
        ("model.vocab", [7]), ("model.vocab", [[1, "a"]]), ("model.merges", [7]), ("model.merges", [["a", 1.5]]),
        ("model.merges", {"a": "b"}), ("added_tokens", [{"content": "x"}]), ("added_tokens", ["x"]),
        ("added_tokens", {"content": "x", "id": 1}), ("added_tokens", [{"content": "x", "id": "1"}]),
    ],
)  # fmt: skip
def test_rules_that_are_laid_out_otherwise_are_refused_by_name(tmp_path: Path, place: str, value: Any) -> None:
    write_json(tmp_path / "tokenizer.json", changed(place, value))
    for read in (lambda: read_rules(tmp_path / "tokenizer.json"), lambda: find_rowless(tmp_path, 1)):
        with pytest.raises(SourceError, match=f"^{place} in .*tokenizer.json is laid out otherwise; "):
            read()


@pytest.mark.parametrize("rules", [SOUND, changed("model.vocab", UNIGRAM), changed("added_tokens", None)])
def test_rules_as_the_library_writes_them_are_read(tmp_path: Path, rules: dict[str, Any]) -> None:
    write_json(tmp_path / "tokenizer.json", rules)
    assert read_rules(tmp_path / "tokenizer.json") == rules


@pytest.mark.parametrize("overrides", [1.5, ["x"], {"model.a": 4}, {"model.a": [4]}])
def test_overrides_that_are_no_settings_are_refused(overrides: Any) -> None:
    settings = {"quant_method": "olive", "bits": 4, "group_size": 32, "overrides": overrides}
    with pytest.raises(SourceError, match=r"^overrides in config\.json is "):
        quantised_form(Path("config.json"), {"quantization_config": settings})


@pytest.mark.parametrize("kind", [["llama"], {"llama": 1}, None, 7])
def test_a_model_type_that_is_no_text_is_refused(tmp_path: Path, kind: Any) -> None:
    write_json(tmp_path / "config.json", {"architectures": ["LlamaForCausalLM"], "model_type": kind})
    with pytest.raises(SourceError, match=r"names LlamaForCausalLM, model_type "):
        inspect_model(tmp_path)
