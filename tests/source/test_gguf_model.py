import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import CONTEXT, HEADS, HIDDEN, byte_level_fields, write_gguf

from slmpack.errors import SourceError
from slmpack.machine.store import digest_files
from slmpack.records import Snapshot
from slmpack.source.gguf.convert import ARCHITECTURES, QUANTISED, GgufConversion, convert_gguf, inspect_gguf
from slmpack.source.gguf.header import read_header


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    fields = byte_level_fields("smollm", eos_token_id=0, eot_token_id=2, padding_token_id=0)
    return write_gguf(tmp_path / "model.gguf", fields, general__name="Tiny", general__license="mit")


def test_tells_what_the_file_is_from_its_header(tiny: Path) -> None:
    facts = inspect_gguf(tiny)
    assert (facts.architecture, facts.name, facts.licence) == ("llama", "Tiny", "mit")
    assert (facts.layers, facts.context_length, facts.dtype) == (1, CONTEXT, "F32")
    assert facts.parameters == sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(tiny).tensors)
    assert facts.checkpoint_bytes == 4 * facts.parameters


def test_keeps_the_dtype_of_weights_that_are_not_quantised(tmp_path: Path) -> None:
    facts = inspect_gguf(write_gguf(tmp_path / "half.gguf", byte_level_fields(), weights=np.float16))
    assert (facts.dtype, facts.checkpoint_bytes) == ("F16", 2 * facts.parameters)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", "")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (pickle.dumps({"weight": 1}, protocol=2), "a Python pickle"),
        (pickle.dumps({"weight": 1}), "a Python pickle"),
        (zipped(), "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"", "starts with b''"),
        (b"GGUF\x03\x00", "ends within its header"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(16), "of GGUF version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(16), "big-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2, r"has 1,152,\S+ tensors"),
    ],
)
def test_refuses_what_is_not_a_gguf_file(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(SourceError, match=found):
        inspect_gguf(tmp_path / "model.gguf")


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        inspect_gguf(tmp_path / "nowhere.gguf")


def test_refuses_a_file_cut_short_anywhere(tiny: Path) -> None:
    content = tiny.read_bytes()
    for size in (30, 1000, len(content) // 2, len(content) - 4096):
        tiny.write_bytes(content[:size])
        with pytest.raises(SourceError, match=r"ends within its header|where tensor"):
            inspect_gguf(tiny)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"general__architecture": "bert"}, "general.architecture is 'bert'"),
        ({"general__architecture": "clip"}, "general.architecture is 'clip'"),
        ({"split__count": 3}, "one of 3 parts"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ({"llama__block_count": None}, "has no llama.block_count"),
        ({"llama__context_length": "long"}, "llama.context_length is 'long'; a whole number"),
        ({"llama__context_length": 64.0}, "llama.context_length is 64.0; a whole number"),
        ({"llama__context_length": [64]}, r"llama.context_length is \[64\]; a whole number"),
        ({"llama__context_length": True}, "llama.context_length is True; a whole number"),
        ({"llama__context_length": -1}, "llama.context_length is -1; a whole number"),
        ({"llama__context_length": 1 << 40}, "llama.context_length is 1099511627776; a whole number"),
        ({"llama__block_count": 0}, "llama.block_count is 0; a whole number from 1"),
        ({"llama__block_count": 1 << 30}, "llama.block_count is 1073741824; at most"),
        ({"llama__embedding_length": 1 << 30}, "llama.embedding_length is 1073741824; a size that one of the tensors"),
        ({"llama__feed_forward_length": [64]}, r"llama.feed_forward_length is \[64\]; a whole number"),
        ({"llama__attention__head_count": 0}, "llama.attention.head_count is 0; a whole number from 1"),
        ({"llama__attention__head_count_kv": [2]}, r"llama.attention.head_count_kv is \[2\]; a whole number"),
        ({"llama__rope__dimension_count": [16]}, r"llama.rope.dimension_count is \[16\]; a whole number"),
        (
            {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0},
            "scaling.type is 'linear'; none",
        ),
        ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": "1"}, "factor is '1'; a positive"),
        ({"llama__rope__scaling__type": 1}, "llama.rope.scaling.type is 1; a text"),
        ({"llama__rope__freq_base": "10000"}, "llama.rope.freq_base is '10000'; a positive number"),
        ({"llama__rope__freq_base": float("inf")}, "llama.rope.freq_base is inf; a positive number"),
        ({"llama__attention__layer_norm_rms_epsilon": [1e-5]}, r"rms_epsilon is \[.*\]; a positive number"),
        ({"general__architecture": ["llama"]}, r"general.architecture is \['llama'\]; a text"),
        ({"split__count": "3"}, "one of 3 parts"),
        ({"split__count": "many"}, "split.count is 'many'; a whole number"),
        ({"split__count": [1]}, r"split.count is \[1\]; a whole number"),
        ({"general__alignment": True}, "general.alignment True"),
    ],
)
def test_refuses_models_that_cannot_be_converted_faithfully(
    changes: dict[str, Any], found: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=found):
        inspect_gguf(write_gguf(tmp_path / "model.gguf", byte_level_fields(), **changes))


@pytest.mark.parametrize(
    ("name", "licence", "told"),
    [
        (7, ["apache-2.0", "mit"], ("7", "apache-2.0 and mit")),
        (["Tiny", "Model"], 2, ("Tiny and Model", "2")),
        (True, [True], (None, None)),
        ("  ", "see\nbelow " + "x" * 1000, (None, "see below " + "x" * 190)),
    ],
)
def test_takes_keys_of_no_consequence_as_they_come(
    name: Any, licence: Any, told: tuple[str | None, str | None], tmp_path: Path
) -> None:
    odd = {"general__name": name, "general__license": licence, "general__tags": 3, "split__count": "1"}
    odd |= {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 1.0}  # which is no scaling
    path = write_gguf(tmp_path / "model.gguf", byte_level_fields(), **odd)
    facts = inspect_gguf(path)
    assert (facts.name, facts.licence) == told
    (tmp_path / "into").mkdir()
    assert convert_gguf(GgufConversion(path=path, into=tmp_path / "into")) == facts


def test_refuses_an_unknown_tensor_type(tiny: Path) -> None:
    content = tiny.read_bytes()
    entry = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    tiny.write_bytes(content[:entry] + (99).to_bytes(4, "little") + content[entry + 4 :])
    with pytest.raises(SourceError, match="unknown type 99"):
        inspect_gguf(tiny)


@pytest.mark.slow
def test_accepts_only_what_the_installed_libraries_convert() -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    assert set(ARCHITECTURES) <= set(GGUF_SUPPORTED_ARCHITECTURES)
    for name in QUANTISED:
        kind = gguf.GGMLQuantizationType[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        assert gguf.dequantize(np.zeros((1, size), np.uint8), kind).shape == (1, values)


@pytest.mark.slow
def test_converts_to_the_same_bytes_every_time_and_tells_nothing_of_this_machine(tiny: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        assert convert_gguf(GgufConversion(path=tiny, into=folder)) == inspect_gguf(tiny)
    assert digest_files(folders[0], "test") == digest_files(folders[1], "test")
    for text in (path.read_text() for path in folders[0].glob("*config.json")):
        assert str(tmp_path) not in text
        assert "name_or_path" not in text
    assert json.loads((folders[0] / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


@pytest.mark.slow
def test_converted_weights_are_those_of_the_file(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    convert_gguf(GgufConversion(path=tiny, into=tmp_path))
    weights = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny).tensors}
    # llama.cpp rotates neighbouring columns of a head, transformers its halves: rows of q and k are in another order
    pairs = np.asarray(tensors["blk.0.attn_q.weight"]).reshape(HEADS, HIDDEN // HEADS // 2, 2, HIDDEN)
    halves = pairs.swapaxes(1, 2).reshape(HIDDEN, HIDDEN)
    assert np.array_equal(weights["model.layers.0.self_attn.q_proj.weight"].numpy(), halves)
    for ours, theirs in {"embed_tokens": "token_embd", "layers.0.mlp.down_proj": "blk.0.ffn_down"}.items():
        assert np.array_equal(weights[f"model.{ours}.weight"].numpy(), tensors[f"{theirs}.weight"])


@pytest.mark.slow
def test_refuses_a_file_whose_tensors_are_not_the_models(tiny: Path, tmp_path: Path) -> None:
    tiny.write_bytes(tiny.read_bytes().replace(b"blk.0.ffn_down.weight", b"blk.0.ffn_dawn.weight"))
    (tmp_path / "into").mkdir()
    with pytest.raises(SourceError, match=r"none for model\.layers\.0\.mlp\.down_proj\.weight"):
        convert_gguf(GgufConversion(path=tiny, into=tmp_path / "into"))


@pytest.mark.slow
def test_real_weights_are_scale_times_code_plus_minimum(smollm2_gguf: Path, smollm2: Snapshot) -> None:
    from safetensors import safe_open

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_gguf).tensors}
    names = {"model.embed_tokens": "token_embd", "model.layers.7.mlp.gate_proj": "blk.7.ffn_gate",
             "model.layers.29.self_attn.v_proj": "blk.29.attn_v", "model.norm": "output_norm"}  # fmt: skip
    with safe_open(smollm2.path / "model.safetensors", framework="numpy") as weights:
        for ours, theirs in names.items():
            tensor = tensors[f"{theirs}.weight"]
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(weights.get_tensor(f"{ours}.weight"), expected)
        rotated = gguf.dequantize(tensors["blk.3.attn_k.weight"].data, tensors["blk.3.attn_k.weight"].tensor_type)
        heads = rotated.reshape(3, 32, 2, 576).swapaxes(1, 2).reshape(192, 576)
        assert np.array_equal(weights.get_tensor("model.layers.3.self_attn.k_proj.weight"), heads)


def test_refuses_a_file_that_ends_within_its_last_tensor(tiny: Path) -> None:
    last = max(read_header(tiny).tensors, key=lambda tensor: tensor.start)
    content = tiny.read_bytes()
    tiny.write_bytes(content[: last.start + last.size_bytes])
    inspect_gguf(tiny)
    tiny.write_bytes(content[: last.start + last.size_bytes - 1])
    with pytest.raises(SourceError, match=f"where tensor {last.name} ends"):
        inspect_gguf(tiny)
