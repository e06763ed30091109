"""Quantised checkpoint: a safetensors checkpoint whose matrices are codes, as GPTQ, AWQ and Olive write them.

    config.json: quantization_config --> method, bits, groups
    headers: qweight, scales, qzeros, g_idx of a module --> the matrix `[N, K]` that they stand for

Here everything is known from config.json and the headers, in no time and without torch; `quantised_codes` reads the
codes, `dequantise` makes a plain checkpoint of them.

Source: the layouts are those of onnxruntime_genai/models/loaders (gptq.py, awq.py, olive.py), which are those of
AutoGPTQ's `QuantLinear`, AutoAWQ's `WQLinear_GEMM` and Olive's `QuantLinear`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from slmpack.checkpoint.blocks import Bits
from slmpack.checkpoint.headers import Tensor
from slmpack.errors import SourceError
from slmpack.records import Record

Method = Literal["gptq", "awq", "olive"]
METHODS: dict[str, Method] = {"gptq": "gptq", "awq": "awq", "olive": "olive"}
WIDTHS: dict[Method, tuple[Bits, ...]] = {"gptq": (4, 8), "awq": (4,), "olive": (4, 8)}
PARTS = ("qweight", "scales", "qzeros", "g_idx")
_ORIGINAL = "name the model that it was made from: others are not supported yet"


class QuantisedForm(Record):
    """How a checkpoint is quantised, as its config.json says.

    Attributes:
        group_size: weights of a row that share a scale; -1: the whole row.
        zero_offset: what is added to a stored zero point: 1 in GPTQ's first format.
        overrides: bits and group size of modules that have others.
    """

    method: Method
    bits: Bits
    group_size: int
    zero_offset: int
    overrides: dict[str, tuple[Bits, int]]

    @property
    def label(self) -> str:
        """Such as `GPTQ, 4 bits, groups of 128`."""
        name = self.method.upper() if self.method != "olive" else "Olive"
        groups = "a scale a row" if self.group_size == -1 else f"groups of {self.group_size}"
        return f"{name}, {self.bits} bits, {groups}"


class QuantisedMatrix(Record):
    """A module's matrix `[rows, columns]`, in groups of `group_size` along its rows."""

    module: str
    rows: int
    columns: int
    bits: Bits
    group_size: int

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group_size)


def quantised_form(path: Path, config: Mapping[str, Any]) -> QuantisedForm | None:
    """Return how the checkpoint with the `config.json` at `path` is quantised; None if it is not.

    Raises:
        SourceError: by a method, or in a form of one, that has no reader here.
    """
    settings = config.get("quantization_config")
    if not settings:
        return None
    method = METHODS.get(str(settings.get("quant_method"))) if isinstance(settings, dict) else None
    if method is None:
        name = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise SourceError(
            f"{path} says that its weights are quantised by {name!r}", f"{', '.join(METHODS)} or floats", _ORIGINAL
        )
    _refuse_other_layouts(path, method, settings)
    bits, group_size = _width(path, method, settings.get("bits")), _group_size(path, method, settings.get("group_size"))
    return QuantisedForm(
        method=method,
        bits=bits,
        group_size=group_size,
        zero_offset=int(method == "gptq" and settings.get("checkpoint_format", "gptq") == "gptq"),
        overrides=_overrides(path, method, settings, bits, group_size),
    )


def _width(path: Path, method: Method, bits: object) -> Bits:
    for width in WIDTHS[method]:
        if bits == width and not isinstance(bits, bool):
            return width
    raise SourceError(
        f"{path} says that its weights are quantised by {method} to {bits} bits",
        " or ".join(map(str, WIDTHS[method])),
        _ORIGINAL,
    )


def _group_size(path: Path, method: Method, size: object) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and (size > 0 or size == -1):
        return size
    raise SourceError(
        f"{path} says that its weights are quantised by {method} in groups of {size}",
        "a positive whole number, or -1 for a row",
        "save the model again",
    )


def _overrides(
    path: Path, method: Method, settings: Mapping[str, Any], bits: Bits, group_size: int
) -> dict[str, tuple[Bits, int]]:
    """Return what Olive says of single modules; GPTQ says it by patterns, which are not read.

    Raises:
        SourceError: for GPTQ's, and if it is laid out otherwise.
    """
    if method == "gptq" and settings.get("dynamic"):
        raise SourceError(
            f"{path} says that single modules are quantised otherwise (dynamic)",
            "one width and group size for all",
            _ORIGINAL,
        )
    named = (settings.get("overrides") or {}) if method == "olive" else {}
    if not (isinstance(named, dict) and all(isinstance(own, dict) for own in named.values())):
        raise SourceError(f"overrides in {path} is {str(named)[:60]!r}", "settings by module", "save the model again")
    return {
        module: (
            _width(path, method, own.get("bits", bits)),
            _group_size(path, method, own.get("group_size", group_size)),
        )
        for module, own in named.items()
    }


def _refuse_other_layouts(path: Path, method: Method, settings: Mapping[str, Any]) -> None:
    layout = {
        "gptq": settings.get("checkpoint_format", "gptq"),
        "awq": settings.get("version", "gemm"),
        "olive": "olive",
    }
    known = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",), "olive": ("olive",)}
    if str(layout[method]).lower() not in known[method]:
        raise SourceError(
            f"{path} says that its weights are quantised by {method}, laid out as {layout[method]}",
            " or ".join(known[method]),
            _ORIGINAL,
        )


def matrices_of(folder: Path, form: QuantisedForm, tensors: Mapping[str, Tensor]) -> dict[str, QuantisedMatrix]:
    """Return the matrices that the tensors of a checkpoint stand for, by their module's name.

    Raises:
        SourceError: the tensors of one do not fit each other, or there are none.
    """
    modules = sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
    if not modules:
        raise SourceError(
            f"{folder} has no quantised weights (qweight)",
            f"some, by {form.method} as config.json says",
            "take the config.json that the weights were saved with",
        )
    return {module: _matrix(folder, form, module, tensors) for module in modules}


def _matrix(folder: Path, form: QuantisedForm, module: str, tensors: Mapping[str, Tensor]) -> QuantisedMatrix:
    """Take the size of a matrix from its codes, and require the other tensors to fit it."""
    bits, group_size = form.overrides.get(module, (form.bits, form.group_size))
    packed = tensors[f"{module}.qweight"]
    if len(packed.shape) != 2:
        raise _other_shape(folder, f"{module}.qweight", packed, "a matrix")
    first, second = packed.shape
    items = (8 if form.method == "olive" else 32) // bits
    match form.method:
        case "gptq":
            rows, columns = second, first * items
        case "awq":
            rows, columns = second * items, first
        case "olive":
            rows, columns = first, second * items
    matrix = QuantisedMatrix(
        module=module, rows=rows, columns=columns, bits=bits, group_size=columns if group_size == -1 else group_size
    )
    for part, (dtypes, shape) in _expected(form.method, matrix, items).items():
        tensor = tensors.get(f"{module}.{part}")
        if tensor is None and part in ("qzeros", "g_idx") and (part, form.method) != ("qzeros", "awq"):
            continue  # the zero point is then the middle, and groups are in their order
        if tensor is None or tensor.dtype not in dtypes or tensor.shape != shape:
            raise _other_shape(folder, f"{module}.{part}", tensor, f"{' or '.join(dtypes)} {list(shape)}")
    return matrix


def _expected(
    method: Method, matrix: QuantisedMatrix, items: int
) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return the dtypes and the shape of each tensor of a module whose matrix is as large as `matrix`."""
    rows, columns, groups = matrix.rows, matrix.columns, matrix.groups
    codes = ("U8",) if method == "olive" else ("I32",)
    floats = ("F16", "BF16", "F32")
    shapes = {
        "gptq": ((columns // items, rows), (groups, rows), (groups, rows // items)),
        "awq": ((columns, rows // items), (groups, rows), (groups, rows // items)),
        "olive": ((rows, columns // items), (rows, groups), (rows, -(-groups // items))),
    }
    qweight, scales, qzeros = shapes[method]
    return {
        "qweight": (codes, qweight),
        "scales": (floats, scales),
        "qzeros": (codes, qzeros),
        "g_idx": (("I32", "I64"), (columns,)),
    }


def _other_shape(folder: Path, name: str, found: Tensor | None, expected: str) -> SourceError:
    what = f"{name} in {folder} is {found.dtype} {list(found.shape)}" if found else f"{folder} has no {name}"
    return SourceError(what, expected, "take the config.json that the weights were saved with")


def plain_tensors(folder: Path, form: QuantisedForm, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that the checkpoint has once it is not quantised any more, all of them float32.

    Raises:
        SourceError: as `matrices_of`.
    """
    matrices = matrices_of(folder, form, tensors)
    rest = {name: tensor.model_copy(update={"dtype": "F32"}) for name, tensor in others(matrices, tensors).items()}
    return rest | {
        f"{module}.weight": Tensor(dtype="F32", shape=(matrix.rows, matrix.columns))
        for module, matrix in matrices.items()
    }


def others(matrices: Mapping[str, QuantisedMatrix], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that are not parts of a quantised matrix."""
    own = {f"{module}.{part}" for module in matrices for part in PARTS}
    return {name: tensor for name, tensor in tensors.items() if name not in own}
