"""Adapter: what is one, what it was trained on, and what is refused by name before anything expensive."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import edit_config
from safetensors.numpy import save_file
from small_tokenizers import CHATML, QWEN2, byte_level, split, write_source

from slmpack.checkpoint.chat_templates import templates_of
from slmpack.errors import SourceError
from slmpack.source.adapter import AdapterFacts, inspect_folder, is_adapter, write_small_files
from slmpack.source.files import adapter_files
from slmpack.source.resolve import resolve_source

FACTOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The two files that make an adapter."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base", "r": 4,
              "target_modules": ["q_proj"], "inference_mode": True}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({FACTOR: np.ones((4, 64), np.float32)}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"adapter_config.json", "adapter_model.safetensors"}, True),
        ({"adapter_config.json", "adapter_model.bin", "config.json", "model.safetensors"}, True),
        ({"adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors.index.json"}, True),
        ({"adapter_config.json", "config.json"}, True),  # its weights are missing, which is said next
        ({"adapter_config.json", "config.json", "model.safetensors"}, False),  # merged, and left there
        ({"config.json", "model.safetensors"}, False),
    ],
)
def test_knows_an_adapter_by_its_files(names: set[str], expected: bool) -> None:
    assert is_adapter(names) is expected


def test_reads_what_it_was_trained_on(adapter: Path) -> None:
    assert inspect_folder(adapter) == AdapterFacts(base="org/base", revision=None)
    edit_config(adapter, revision="v2", task_type=None)
    assert inspect_folder(adapter) == AdapterFacts(base="org/base", revision="v2")


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def weights(content: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / "adapter_model.safetensors").write_bytes(content))


def void(_: object) -> None:
    return None


def only_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


BAD = {
    "IA3": (config(peft_type="IA3"), r"is an adapter of the kind IA3; LORA, which can be merged exactly; merge it wit"),
    "prefix tuning": (config(peft_type="PREFIX_TUNING"), r"of the kind PREFIX_TUNING; LORA"),
    "no kind": (config(peft_type=None), r"of the kind None; LORA"),
    "a classifier": (config(task_type="SEQ_CLS"), r"an adapter for the task SEQ_CLS; CAUSAL_LM; name one of a"),
    "no base": (config(base_model_name_or_path=None), r"names no base model; base_model_name_or_path in adapter_confi"),
    "an empty base": (config(base_model_name_or_path=" "), r"names no base model"),
    "a start out of the base": (config(init_lora_weights="pissa_niter_4"), r"init_lora_weights 'pissa_niter_4', which"),
    "LoftQ": (config(init_lora_weights="loftq"), r"init_lora_weights 'loftq', which changes the base"),
    "repeated layers": (config(layer_replication=[[0, 2], [1, 3]]), r"has layer_replication '\[\[0, 2\], \[1, 3\]\]'"),
    "switched on by tokens": (config(alora_invocation_tokens=[1, 2]), r"has alora_invocation_tokens '\[1, 2\]' in"),
    "another library": (config(megatron_config={"a": 1}, megatron_core="os"), r"has megatron_config"),
    "what nobody knows yet": (config(use_magic=True), r"has use_magic 'True' in adapter_config\.json; a LoRA that can"),
    "no JSON": (lambda folder: void((folder / "adapter_config.json").write_text("{")), r"adapter_config\.json is not "),
    "only a pickle": (only_a_pickle, r"has its weights as a pickle \(adapter_model\.bin\); adapter_model\.safetensors"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"adapter_config\.json and no weig"),
    "a pickle in disguise": (weights(b"\x80\x04.." * 9), r"adapter_model\.safetensors is a pickle"),
    "a file cut off": (weights(b"\x10\0\0\0\0\0\0\0{"), r"adapter_model\.safetensors is damaged"),
    "no tensors": (weights(b"\x02\0\0\0\0\0\0\0{}"), r"adapter_model\.safetensors has no tensors"),
    "a base elsewhere": (config(base_model_name_or_path="/data/models/base"), r"trained on /data/models/base, which i"),
    "a base beside it": (config(base_model_name_or_path="../base"), r"was trained on \.\./base, which is not here; a "),
    "an adapter of itself": (config(base_model_name_or_path="."), r"the base of .*: .* is an adapter itself; a whole "),
    "a base without weights": (config(base_model_name_or_path="../empty"), r"the base of .*empty has no weights; mod"),
    "a quantised base": (config(base_model_name_or_path="../4bit"), r"the base of .*4bit is quantised by bitsandbytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refuses(adapter: Path, case: str) -> None:
    (adapter.parent / "empty").mkdir()
    (adapter.parent / "4bit").mkdir()
    (adapter.parent / "4bit" / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    damage, message = BAD[case]
    damage(adapter)
    with pytest.raises(SourceError, match=message) as caught:
        resolve_source(str(adapter))
    assert "\n" not in str(caught.value)


def test_settings_that_are_off_are_let_pass(adapter: Path) -> None:
    edit_config(adapter, layer_replication=None, use_magic=False, loftq_config={}, qalora_group_size=16)
    assert inspect_folder(adapter).base == "org/base"


# ---------------------------------------------------------------------------------------------- the small files


def base_of(folder: Path) -> Path:
    rules = byte_level(split(QWEN2), specials=SPECIALS)
    write_source(folder, rules, CHATML, {"eos_token": "<|im_end|>"}, ("<|im_end|>",), "PreTrainedTokenizerFast")
    for name in ("config.json", "LICENSE", "README.md", "model.safetensors"):
        (folder / name).write_text("the base's")
    return folder


def written(base: Path, adapter: Path, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "into").mkdir()
    write_small_files(base, adapter, tmp_path / "into")
    return {path.name: path.read_text() for path in (tmp_path / "into").rglob("*") if path.is_file()}


def test_a_bare_adapter_takes_everything_from_its_base(adapter: Path, tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    found = written(base, adapter, tmp_path)
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"}
    assert found == {name: (base / name).read_text() for name in names}


def test_a_tokenizer_and_template_that_were_saved_with_the_adapter_are_taken(adapter: Path, tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    rules = byte_level(split(QWEN2), specials=(*SPECIALS, "<|tool|>"))
    own = write_source(tmp_path / "own", rules, "{{ own }}", {"eos_token": "<|tool|>"}, (), "PreTrainedTokenizerFast")
    shutil.copytree(own, adapter, dirs_exist_ok=True)
    (adapter / "generation_config.json").unlink()
    (adapter / "LICENSE").write_text("the adapter's")
    (adapter / "config.json").write_text("as some trainers leave it")
    found = written(base, adapter, tmp_path)
    assert found["tokenizer.json"] == (adapter / "tokenizer.json").read_text()
    assert found["chat_template.jinja"] == "{{ own }}"
    assert found["generation_config.json"] == (base / "generation_config.json").read_text()
    assert (found["LICENSE"], found["LICENSE.adapter"]) == ("the base's", "the adapter's")
    assert not {"config.json", "README.md", "adapter_config.json"} & found.keys()


def test_a_tokenizer_without_a_template_gets_the_bases(adapter: Path, tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    shutil.copyfile(base / "tokenizer.json", adapter / "tokenizer.json")
    (adapter / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    found = written(base, adapter, tmp_path)
    assert found["tokenizer_config.json"] == '{"eos_token": "<|endoftext|>"}'
    assert found["chat_template.jinja"] == CHATML


def test_a_template_in_the_adapters_settings_counts_more_than_the_bases_file(adapter: Path, tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    settings = {"chat_template": [{"name": "default", "template": "{{ a }}"}, {"name": "rag", "template": "{{ b }}"}]}
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings))
    found = written(base, adapter, tmp_path)
    assert found["tokenizer_config.json"] == (base / "tokenizer_config.json").read_text()
    assert {name: each.text for name, each in templates_of(tmp_path / "into").items()} == {
        "default": "{{ a }}", "rag": "{{ b }}",
    }  # fmt: skip
    shutil.copyfile(base / "tokenizer.json", adapter / "tokenizer.json")  # now it is the tokenizer's own
    shutil.rmtree(tmp_path / "into")
    found = written(base, adapter, tmp_path)
    assert "chat_template.jinja" not in found
    assert found["tokenizer_config.json"] == json.dumps(settings)


def test_what_lies_beside_an_adapter_is_not_its_content(adapter: Path) -> None:
    for name in ("config.json", "model.safetensors", "optimizer.pt", "training_args.bin", "tokenizer.json"):
        (adapter / name).write_text("x")
    assert set(adapter_files(adapter)) == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
