"""The builder's folders of several checkpoints, stock and streamed, all made in one process of its own."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from slmpack.build.genai.streaming import Streaming, raise_to_int8, stream_weights
from slmpack.quantise.plan import Plan
from slmpack.quantise.prepare import Prepared, plan_of
from slmpack.records import Record
from slmpack.targets import BuilderOptions

METHODS = ("make_quant_init", "make_initializer", "make_packed_matmul_float_class", "save_model")


class Case(Record):
    """One folder to make; `zero_points` and `prepared` are for a streamed one."""

    checkpoint: Path
    into: Path
    precision: str
    execution_provider: str
    block_size: int
    int8_nodes: tuple[str, ...] = ()
    streamed: bool
    zero_points: bool = False
    prepared: Prepared = Prepared()


class Cases(Record):
    cases: tuple[Case, ...]


class Ended(Record):
    """Why the stock builder took each of them over, and why none was folded, "" where it was otherwise."""

    unsupported_reasons: tuple[str, ...]
    unfolded: tuple[str, ...]


def build_all(cases: Cases) -> Ended:
    """Run in a child."""
    import torch

    torch.set_num_threads(1)
    done = [_build(case) for case in cases.cases]
    return Ended(
        unsupported_reasons=tuple(each.unsupported_reason or "" for each in done),
        unfolded=tuple(each.unfolded or "" for each in done),
    )


def _build(case: Case) -> Streaming:
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    where = (None, str(case.checkpoint), str(case.into), case.precision, case.execution_provider, f"{case.into}.cache")
    options = [f"block_size={case.block_size}", "algo_config=default", "hf_token=false"]
    with methods_put_back() as model_class, contextlib.redirect_stdout(io.StringIO()):
        raise_to_int8(model_class, case.int8_nodes)
        streaming = stream_weights(model_class, 2, lambda: None, _plan(case)) if case.streamed else Streaming()
        create_model(*where, **parse_extra_options(*where, options))
    return streaming


def _plan(case: Case) -> Plan:
    options = BuilderOptions(
        precision="int4" if case.precision == "int4" else "int8", execution_provider="cpu", algo_config="default",
        block_size=32, quantiser="zero_points" if case.zero_points else "stock",
    )  # fmt: skip
    return plan_of(case.prepared, options)


@contextlib.contextmanager
def methods_put_back() -> Iterator[type]:
    """Give the builder's class, and undo what a case replaces in it: in the product one process builds one package."""
    import torch
    from builders import base  # type: ignore[import-not-found]

    stock = {name: getattr(base.Model, name) for name in METHODS}
    reset_parameters = torch.nn.Linear.reset_parameters
    try:
        yield base.Model
    finally:
        torch.nn.Linear.reset_parameters = reset_parameters  # type: ignore[method-assign]
        for name, method in stock.items():
            setattr(base.Model, name, method)
