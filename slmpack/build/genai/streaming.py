"""Streaming: the builder's own package, its weights quantised while they are written and never all in memory.

The stock builder puts every weight as float32 into one ONNX message and quantises that: 19 GB for 3.8 billion
parameters. Here the builder makes the graph, for which it reads no weight; its MatMuls then become MatMulNBits; and
the weights are quantised as `model.onnx.data` is written:

    builder --graph--> matmul_nbits.replace_matmuls --places in the file--> data_file.write_data --> model.onnx.data
       |                                                                         ^                  model.onnx
       +--the matrix behind every initializer------------------------------------+

The result is the stock builder's, to the byte. `CHECKED` is the builder of which that is known: some of its methods
are replaced here. What has no streaming form goes the stock builder's way, and the log says so.

Source: onnxruntime_genai/models/builders/base.py, `Model.make_initializer`, `make_packed_matmul_float_class` and
`save_model`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from slmpack.build.genai.apply_fold import fold_for, folded_tensors, part_of
from slmpack.build.genai.data_file import Entry, FloatEntry, Part, QuantisedEntry, write_data
from slmpack.build.genai.matmul_nbits import (
    HEAD,
    MATRIX,
    Form,
    Matrix,
    QuantisedWeight,
    TransposedMatrix,
    replace_matmuls,
    unsupported_reason_in,
)
from slmpack.checkpoint.blocks import Bits
from slmpack.checkpoint.mapped_rows import Maps, Rows
from slmpack.machine.runtimes import release_of
from slmpack.quantise.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

CHECKED = {"onnxruntime-genai": "0.18.0", "onnxruntime": "1.31.1", "onnx-ir": "1.1.0"}


def unchecked_builder(checked_versions: Mapping[str, str] = CHECKED) -> str | None:
    """Name the first package that is not the version that streaming was checked against; None if all are."""
    for name, checked in checked_versions.items():
        if (found := release_of(name)) != checked:
            return f"{name} {found} is not {checked}, against which streaming was checked"
    return None


@dataclass
class Streaming:
    """What became of it.

    Attributes:
        unsupported_reason: why the stock builder quantised all the same, None if it did not.
        searched: how many weights had their scales searched.
        unfolded: why the plan's fold was not used, None if it was or there was none.
        lossless: the checkpoint's tensors that lost nothing, since they were whole multiples already.
    """

    unsupported_reason: str | None = None
    searched: int = 0
    unfolded: str | None = None
    lossless: tuple[str, ...] = ()


def stream_weights(
    model_class: Any, threads: int, before_stock: Callable[[], None], plan: Plan | None = None
) -> Streaming:
    """Make every model of the builder's class `model_class` stream; for a process that builds one and ends.

    Args:
        model_class: `builders.base.Model`.
        threads: how many pieces of weights are worked on at once.
        before_stock: called before the stock builder quantises all the same.
        plan: what is done with each weight; None: what the stock builder does.
    """
    import torch

    streaming = Streaming()
    stock_initializer, stock_save = model_class.make_initializer, model_class.save_model

    def make_initializer(self: Any, tensor: Any, /, name: str, *, to: Any = None, raw: bool = False) -> None:
        if isinstance(tensor, TransposedMatrix):
            value = self.make_value(name, to, tensor.shape)
            value.const_value = tensor.joined(name, to)
            self.model.graph.register_initializer(value)
        else:
            stock_initializer(self, tensor, name, to=to, raw=raw)
        if isinstance(tensor, (torch.Tensor, TransposedMatrix)) and len(tensor.shape) == 2 and not raw:
            self.values[name].meta[MATRIX] = tensor

    def make_packed_matmul_float_class(self: Any, q: Any, k: Any, v: Any, **_: Any) -> Any:
        return SimpleNamespace(weight=Matrix((q.weight, k.weight, v.weight)))

    def save_model(self: Any, out_dir: str) -> None:
        streaming.unsupported_reason = unsupported_reason_in(self)
        if streaming.unsupported_reason:
            before_stock()
            stock_save(self, out_dir)
        else:
            _save(self, Path(out_dir), threads, plan or Plan(), streaming)

    model_class.make_initializer = make_initializer
    model_class.make_packed_matmul_float_class = make_packed_matmul_float_class
    model_class.save_model = save_model
    # The builder splits q, k, v and gate, up into Linears of its own, whose random weights it throws away.
    torch.nn.Linear.reset_parameters = lambda self: None  # type: ignore[method-assign]
    return streaming


def raise_to_int8(model_class: Any, nodes: Sequence[str]) -> None:
    """Make every model of the builder's class quantise some MatMuls to 8 bits, streamed or not.

    The stock builder, not streamed, writes a tied head in 8 bits under names that its embedding does not read.
    """
    stock_init = model_class.make_quant_init

    def make_quant_init(self: Any, config: Any) -> None:
        stock_init(self, config)
        self.int4_customized_weight_config |= {node: {"bits": 8} for node in nodes}
        self.named_nodes = nodes
        if HEAD in nodes:
            self.matmul_mixed_precision["last_matmul"] = "int8"  # which the embedding asks for the head's width

    model_class.make_quant_init = make_quant_init


def _save(model: Any, out_dir: Path, threads: int, plan: Plan, streaming: Streaming) -> None:
    """Write `model.onnx` and `model.onnx.data` of a builder's model whose graph is made and not yet quantised."""
    import onnx_ir as ir
    import torch

    graph, data = model.model.graph, f"{model.filename}.data"
    with Maps() as maps:
        replaced = replace_matmuls(model, partial(_form_of, plan, maps))
        weights = [(weight, _rows_of(weight, maps)) for weight in replaced]
        plan, streaming.unfolded = fold_for(graph, weights, plan)
        made = {value for weight in replaced for value in (weight.codes, weight.scales, weight.zeros)}
        given = {value: value.const_value for value in graph.initializers.values() if value not in made}
        given |= folded_tensors(graph, weights, plan.fold)
        size_bytes = _lay_out(graph, out_dir, data)
        floats = [value for value in given if isinstance(value.meta.get(MATRIX), torch.Tensor)]
        block_size = model.quant_attrs["matmul_block_size"]
        quantised = [_quantised_entry(weight, rows, block_size, plan) for weight, rows in weights]
        entries: list[Entry] = [*(_float_entry(value, maps) for value in floats), *quantised]
        small = [(_offset(value), tensor) for value, tensor in given.items() if value not in floats]
        write_data(out_dir / data, size_bytes, entries, small, threads)
    saved = ir.from_proto(ir.to_proto(model.model))  # the stock builder's, too, comes back from ONNX's own form
    saved.graph.sort()
    model.stamp_build_metadata(saved)
    ir.save(saved, out_dir / model.filename)
    with suppress(OSError):  # the builder's cache, which it removes here if it is empty
        Path(model.cache_dir).rmdir()
    streaming.searched = sum(entry.energy is not None for entry in quantised)
    streaming.lossless = _lossless_names(quantised)


def _lay_out(graph: "ir.Graph", folder: Path, data: str) -> int:
    """Give every initializer its place in the data file, one after the other; return the file's size in bytes."""
    import onnx_ir as ir

    end = 0
    value: Any
    for name, value in graph.initializers.items():
        size = math.prod(value.shape) * value.dtype.bitwidth // 8
        value.const_value = ir.ExternalTensor(
            data, end, size, value.dtype, shape=value.shape, name=name, base_dir=folder
        )
        end += size
    return end


def _offset(value: Any) -> int:
    return int(value.const_value.offset)


def _float_entry(value: Any, maps: Maps) -> Entry:
    from onnx_ir.tensor_adapters import to_torch_dtype

    matrix = value.meta[MATRIX]
    return FloatEntry((Part(maps.rows_of(matrix, value.name)),), to_torch_dtype(value.dtype), _offset(value))


def _form_of(plan: Plan, maps: Maps, parts: "tuple[Tensor, ...]", bits: Bits) -> Form:
    names = [maps.rows_of(part, "").name for part in parts]
    if bits == 4 and plan.int8.intersection(names):
        return Form(8)
    searched = all(name in plan.energies for name in names)
    return Form(bits, zeros=bits == 4 and plan.zero_points and searched and not _are_lossless(plan, names, bits))


def _are_lossless(plan: Plan, names: Sequence[str], bits: Bits) -> bool:
    return all(plan.lossless.get(name) == bits for name in names)


def _rows_of(weight: QuantisedWeight, maps: Maps) -> tuple[Rows, ...]:
    return tuple(maps.rows_of(part, weight.codes.name) for part in weight.parts)


def _quantised_entry(weight: QuantisedWeight, rows: tuple[Rows, ...], block_size: int, plan: Plan) -> QuantisedEntry:
    from onnx_ir.tensor_adapters import to_torch_dtype

    parts = tuple(part_of(part, plan.fold) for part in rows)
    names = [part.name for part in rows]
    energy = plan.energies.get(names[0]) if weight.bits == 4 else None  # parts share their input
    columns = parts[0].column_factors
    return QuantisedEntry(
        parts=parts,
        bits=weight.bits,
        block_size=block_size,
        dtype=to_torch_dtype(weight.scales.dtype),
        codes_offset=_offset(weight.codes),
        scales_offset=_offset(weight.scales),
        zeros_offset=None if weight.zeros is None else _offset(weight.zeros),
        energy=energy if energy is None or columns is None else energy / columns.square(),
        stored=plan.stored if weight.zeros is not None else {},
        is_lossless=_are_lossless(plan, names, weight.bits),
    )


def _lossless_names(entries: Sequence[QuantisedEntry]) -> tuple[str, ...]:
    names = {part.rows.name for entry in entries if entry.is_lossless for part in entry.parts}
    return tuple(sorted(names - {name for entry in entries for name in entry.missed}))
