"""Dequantise: from a checkpoint of GPTQ, AWQ or Olive to a plain one, and to one that the builder takes as it is.

    original --codes * scales, float32--> the snapshot: what every stage compares with
             --the same codes, Olive's layout--> codes/<key>/: what the builder reads for targets of as many bits

The builder has loaders of its own for all three. Olive's hands the codes through; the others compute the weights in the
scales' dtype and round them back to codes, which goes wrong for 8 bits with scales in bfloat16, and GPTQ's adds one to
the zero points of its second format. So the codes are always written as Olive does.

Source: onnxruntime_genai/models/loaders, base.py `dequant_weight` and `quant_weight`, gptq.py `handle_qzeros`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack import progress
from slmpack.checkpoint.headers import WEIGHTS, Tensor, read_weights, weight_files
from slmpack.checkpoint.quantised_codes import Codes, olive_parts, read_codes
from slmpack.checkpoint.quantised_layout import (
    PARTS,
    QuantisedForm,
    QuantisedMatrix,
    matrices_of,
    others,
    plain_tensors,
    quantised_form,
)
from slmpack.checkpoint.tensor_file import Planned, write_tensors
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.json_file import read_json, write_json
from slmpack.records import Original, Record

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
VERSION = 1  # counts up when what is made of a quantised checkpoint changes, so that snapshots are made again
PIECE_WEIGHTS = 1 << 24  # in float32 64 MB
# What MatMulNBits takes. Source: docs/ContribOperators.md of microsoft/onnxruntime, MatMulNBits, block_size.
GROUP_SIZES = (16, 32, 64, 128, 256)
# The modules that the builder's loaders know, with codes and without; floats beside codes in a layer's matrices they
# take for codes. Source: onnxruntime_genai/models/loaders/base.py, `QuantizedModel`.
_LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn\.([qkvo]|qkv)_proj|mlp\.(gate|up|down|gate_up)_proj)")
_PLAIN = re.compile(
    r"model\.embed_tokens\.weight|(model\.norm|lm_head)\.(weight|bias)|"
    r"model\.layers\.\d+\.((input|post_attention|pre_feedforward|post_feedforward)_layernorm\.(weight|bias)|"
    r"self_attn\.([qk]_norm\.(weight|bias)|rotary_emb\.inv_freq|([qkvo]|qkv)_proj\.bias)|"
    r"mlp\.(gate|up|down|gate_up)_proj\.bias)"
)
HEAD = "lm_head"
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class DequantiseRequest(Record):
    """The quantised checkpoint, and the folders for the plain one and the one to keep; both have the small files."""

    original: Path
    plain: Path
    codes: Path


@forked_with(*TORCH)
def dequantise_checkpoint(request: DequantiseRequest) -> Original:
    """Run in a child: write the weights and config.json of the plain checkpoint, and of the one to keep.

    Raises:
        SourceError: as `quantised_form` and `matrices_of`.
    """
    import torch

    torch.set_num_threads(1)
    config = read_json(request.original / CONFIG)
    form = quantised_form(request.original / CONFIG, config)
    assert form is not None  # who asks has looked
    with ExitStack() as stack:
        original = _QuantisedCheckpoint(request.original, form, stack)
        _write_plain(request.plain, original, config)
        reason = original.unsupported_reason()
        if reason is None:
            _write_codes(request.codes, original, config)
    return Original(form=form.label, bits=form.bits, unsupported_reason=reason, version=VERSION)


def _write_plain(folder: Path, original: "_QuantisedCheckpoint", config: Mapping[str, Any]) -> None:
    headers = plain_tensors(original.folder, original.form, original.tensors)
    planned = {name: Planned(header, partial(original.plain_pieces, name)) for name, header in headers.items()}
    write_tensors(
        folder / WEIGHTS,
        planned,
        lambda number: progress.report("fetch", number, len(planned), "tensors dequantised"),
    )
    left_out = ("quantization_config", "torch_dtype")
    plain = {name: value for name, value in config.items() if name not in left_out}
    write_json(folder / CONFIG, plain | {"dtype": "float32"} | _own_head(original))


def _write_codes(folder: Path, original: "_QuantisedCheckpoint", config: Mapping[str, Any]) -> None:
    """Write the same codes as Olive does: fused matrices apart, since its loader cuts their zero points wrongly."""
    planned = {
        name: Planned(tensor, partial(original.whole, name))
        for name, tensor in others(original.matrices, original.tensors).items()
    }
    form, overrides = original.form, {}
    for matrix in original.matrices.values():
        for module, rows in _parts_of(matrix, config):
            planned |= {f"{module}.{part}": plan for part, plan in original.olive_plans(matrix, rows).items()}
            if matrix.bits != form.bits or matrix.module in form.overrides:
                overrides[module] = {"bits": matrix.bits, "group_size": matrix.group_size}
    write_tensors(folder / WEIGHTS, planned)
    quantization = {
        "quant_method": "olive",
        "bits": form.bits,
        "group_size": form.group_size,
        "symmetric": False,
        "lm_head": HEAD in original.matrices,
        "overrides": overrides,
    }
    write_json(folder / CONFIG, {**config, "quantization_config": quantization} | _own_head(original))


def _own_head(original: "_QuantisedCheckpoint") -> dict[str, bool]:
    """Return the setting of a head with codes of its own, which is not the embeddings any more."""
    return {"tie_word_embeddings": False} if HEAD in original.matrices else {}


def _parts_of(matrix: QuantisedMatrix, config: Mapping[str, Any]) -> list[tuple[str, range]]:
    """Return the modules that the builder's loader has for a matrix, and the rows of each."""
    stem, _, last = matrix.module.rpartition(".")
    if last not in _FUSED:
        return [(matrix.module, range(matrix.rows))]
    ends = [matrix.rows // 2, matrix.rows]
    if last == "qkv_proj":
        heads = config["num_attention_heads"]
        pairs = config.get("num_key_value_heads") or heads
        head = matrix.rows // (heads + 2 * pairs)
        ends = [head * heads, head * (heads + pairs), matrix.rows]
    starts = [0, *ends]
    return [(f"{stem}.{part}", range(start, end)) for part, start, end in zip(_FUSED[last], starts, ends, strict=False)]


class _QuantisedCheckpoint:
    """A quantised checkpoint, of which one matrix at a time is in memory."""

    def __init__(self, folder: Path, form: QuantisedForm, stack: ExitStack) -> None:
        from safetensors import safe_open

        self.folder, self.form = folder, form
        self.tensors = read_weights(folder)
        self.matrices = matrices_of(folder, form, self.tensors)
        files = [stack.enter_context(safe_open(str(path), framework="pt")) for path in weight_files(folder)]
        self._places: dict[str, Any] = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self._latest: tuple[str, Codes] | None = None

    def _tensor(self, name: str) -> "torch.Tensor":
        tensor: torch.Tensor = self._places[name].get_tensor(name)
        return tensor

    def _codes(self, matrix: QuantisedMatrix) -> Codes:
        if self._latest is None or self._latest[0] != matrix.module:
            names = {part: f"{matrix.module}.{part}" for part in PARTS}
            parts = {part: self._tensor(name) for part, name in names.items() if name in self.tensors}
            self._latest = matrix.module, read_codes(self.form, matrix, parts)
        return self._latest[1]

    def whole(self, name: str) -> "Iterator[torch.Tensor]":
        yield self._tensor(name)

    def plain_pieces(self, name: str) -> "Iterator[torch.Tensor]":
        """Yield a tensor of the plain checkpoint, a matrix some rows at a time."""
        matrix = self.matrices.get(name.removesuffix(".weight"))
        if matrix is None or not name.endswith(".weight"):
            yield self._tensor(name)
            return
        codes, step = self._codes(matrix), max(1, PIECE_WEIGHTS // matrix.columns)
        for start in range(0, matrix.rows, step):
            yield codes.weights(start, min(start + step, matrix.rows))

    def olive_plans(self, matrix: QuantisedMatrix, rows: range) -> dict[str, Planned]:
        """Return what is to be written of some rows of a matrix, by the last part of its name."""
        items, dtype = 8 // matrix.bits, self.tensors[f"{matrix.module}.scales"].dtype
        headers = {
            "qweight": Tensor(dtype="U8", shape=(len(rows), matrix.columns // items)),
            "scales": Tensor(dtype=dtype, shape=(len(rows), matrix.groups)),
            "qzeros": Tensor(dtype="U8", shape=(len(rows), -(-matrix.groups // items))),
        }

        def pieces(part: str) -> "Iterator[torch.Tensor]":
            yield olive_parts(self._codes(matrix), matrix.bits)[part][rows.start : rows.stop]

        return {part: Planned(header, partial(pieces, part)) for part, header in headers.items()}

    def unsupported_reason(self) -> str | None:
        """Return why the builder cannot take the codes as they are, None if it can."""
        for name in others(self.matrices, self.tensors):
            if not _PLAIN.fullmatch(name):
                return f"the builder's loader of quantised checkpoints has no place for {name}"
        for matrix in self.matrices.values():
            if not _LINEAR.fullmatch(matrix.module) and matrix.module != HEAD:
                return f"the builder's loader of quantised checkpoints has no place for codes of {matrix.module}"
            if matrix.group_size not in GROUP_SIZES or matrix.columns % matrix.group_size:
                return f"ONNX Runtime has no groups of {matrix.group_size} in rows of {matrix.columns}"
            if not self._in_order(matrix):
                return "its groups are not in order (desc_act), which ONNX Runtime has no fast form for"
        return None

    def _in_order(self, matrix: QuantisedMatrix) -> bool:
        import torch

        name = f"{matrix.module}.g_idx"
        order = torch.arange(matrix.columns) // matrix.group_size
        return name not in self.tensors or torch.equal(self._tensor(name).long(), order)
