"""Fold map: which channels of an architecture can be scaled on one side and divided on the other, exactly.

    norm ------> q, k, v        norm --> gate, up        rows of v --heads--> columns of o        rows of up --> down
       1/s       * s               1/s      * s              1/s                 * s                 1/s         * s

What gives a channel is divided by a number and all that reads it is multiplied by the same number, so nothing changes
but rounding. A norm's channel is its multiplier. A row of v gives a channel since attention only averages values over
positions, a head at a time, and a row of up does since it is multiplied with what the activation makes of gate. With
grouped queries a head of v is read by several heads of o's input, which have its scales.

A layer must hold the tensors that are known here and no others: one that is not known may read a norm, too.

Source: transformers 5.22, `modeling_<model_type>.py` of the architectures below: the decoder layer's and the MLP's
`forward`, the attention's order of heads (`repeat_kv`), the RMSNorm's multiplier.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # counts up when a map gives other pairs
_LAYER = re.compile(r"((?:.*\.)?layers\.\d+\.)(.+)")
Shapes = Mapping[str, tuple[int, ...]]


class NoFoldError(Exception):
    """Why a checkpoint has no fold; never leaves the fold, whose facts have its message."""


@dataclass(frozen=True)
class Pair:
    """Channels that are divided by a scale each where they come from, and multiplied where they are read.

    Attributes:
        giver: a norm's weight `[channels]`; or a matrix, some of whose rows give the channels.
        rows: of that matrix; of a norm, its channels.
        start: the first row that gives a channel.
        channels: how many rows do.
        readers: matrices whose columns read them, all with the same input.
        heads: the channels are this many heads.
        repeats: every head is read by as many consecutive heads of the readers' columns.
    """

    giver: str
    rows: int
    channels: int
    readers: tuple[str, ...]
    norm: bool = False
    start: int = 0
    heads: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class FoldMap:
    """All pairs of a checkpoint.

    Attributes:
        norm_offset: what a norm adds to its weight before it multiplies with it.
    """

    pairs: tuple[Pair, ...]
    norm_offset: float


class _Names(NamedTuple):
    """What an architecture calls the tensors of a layer that have a part in the fold."""

    input_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"


class _Architecture(NamedTuple):
    """An architecture whose layers are: norm, attention, sum; norm, gated MLP, sum.

    Attributes:
        others: tensors of a layer that read none of the channels: norms of single heads, and of a branch's end.
    """

    names: _Names = _Names()
    others: tuple[str, ...] = ()
    norm_offset: float = 0.0


_FUSED = _Names(
    q="self_attn.qkv_proj",
    k="self_attn.qkv_proj",
    v="self_attn.qkv_proj",
    gate="mlp.gate_up_proj",
    up="mlp.gate_up_proj",
)
_SANDWICH = _Names(mlp_norm="pre_feedforward_layernorm")
_BRANCH_ENDS = ("post_attention_layernorm", "post_feedforward_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")

ARCHITECTURES: Mapping[str, _Architecture] = {
    "llama": _Architecture(),
    "mistral": _Architecture(),
    "smollm3": _Architecture(),
    "qwen2": _Architecture(),
    "qwen3": _Architecture(others=_HEAD_NORMS),
    "phi3": _Architecture(_FUSED),
    "gemma": _Architecture(norm_offset=1.0),
    "gemma2": _Architecture(_SANDWICH, _BRANCH_ENDS, norm_offset=1.0),
    "gemma3_text": _Architecture(_SANDWICH, (*_BRANCH_ENDS, *_HEAD_NORMS), norm_offset=1.0),
}


def fold_map(config: Any, shapes: Shapes) -> FoldMap:
    """Return the pairs of a checkpoint: four a layer.

    Args:
        config: transformers' own, with its defaults.
        shapes: of all tensors, by the checkpoint's names.

    Raises:
        NoFoldError: an architecture that is not known, or a layer with other tensors than its architecture's.
    """
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        raise NoFoldError(f"no fold is known for the architecture {config.model_type}")
    layers: dict[str, set[str]] = {}
    for name in shapes:
        if match := _LAYER.fullmatch(name):
            layers.setdefault(match[1], set()).add(match[2])
    if len(layers) != config.num_hidden_layers:
        raise NoFoldError(f"{len(layers)} layers in the checkpoint where its config has {config.num_hidden_layers}")
    pairs = []
    for prefix, tensors in layers.items():
        _require_known(prefix, tensors, known)
        pairs += _pairs(_Names(*(prefix + name for name in known.names)), shapes, config)
    return FoldMap(tuple(pairs), known.norm_offset)


def _require_known(prefix: str, tensors: set[str], known: _Architecture) -> None:
    expected = {f"{name}.weight" for name in (*known.names, *known.others)}
    biases = {f"{name}.bias" for name in known.names[2:]}
    if missing := sorted(expected - tensors):
        raise NoFoldError(f"the checkpoint has no {prefix}{missing[0]}")
    if unknown := sorted(tensors - expected - biases):
        raise NoFoldError(f"{prefix}{unknown[0]} is not known: it may read what would be folded")


def _pairs(names: _Names, shapes: Shapes, config: Any) -> list[Pair]:
    """Return the four pairs of the layer whose modules have these names."""

    def shape(module: str) -> tuple[int, ...]:
        return shapes[f"{module}.weight"]

    hidden, heads = shape(names.down)[0], config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = shape(names.o)[1] // heads
    values, inner = key_heads * head_size, shape(names.down)[1]
    projected = heads * head_size + 2 * values if names.v == names.q else values
    expanded = 2 * inner if names.up == names.gate else inner
    if heads % key_heads or (shape(names.v)[0], shape(names.up)[0]) != (projected, expanded):
        raise NoFoldError(f"{names.v}, {names.o} or {names.up} has another shape than its config says")
    return [
        Pair(f"{names.input_norm}.weight", hidden, hidden, _weights(names.q, names.k, names.v), norm=True),
        Pair(
            f"{names.v}.weight",
            projected,
            values,
            _weights(names.o),
            start=projected - values,
            heads=key_heads,
            repeats=heads // key_heads,
        ),
        Pair(f"{names.mlp_norm}.weight", hidden, hidden, _weights(names.gate, names.up), norm=True),
        Pair(f"{names.up}.weight", expanded, inner, _weights(names.down), start=expanded - inner),
    ]


def _weights(*modules: str) -> tuple[str, ...]:
    """Return the weights' names, each once."""
    return tuple(dict.fromkeys(f"{module}.weight" for module in modules))


@dataclass(frozen=True)
class Fold:
    """`W' = diag(rows) W diag(columns)` of matrices, and norms' multipliers, by the checkpoint's names.

    Attributes:
        columns: float32 `[K]` for a matrix `[N, K]`.
        rows: float32 `[N]` for a matrix `[N, K]`, and for the bias beside it.
        norms: float32 `[H]`: what a norm multiplies with, its weight or 1 + weight, is multiplied by it.
    """

    columns: "dict[str, Tensor]" = field(default_factory=dict)
    rows: "dict[str, Tensor]" = field(default_factory=dict)
    norms: "dict[str, Tensor]" = field(default_factory=dict)
