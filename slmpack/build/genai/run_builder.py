"""Builder: the ONNX Runtime GenAI builder in a process of its own, with some of its methods replaced.

It changes logging and the import path of its process, and gives its memory back only by ending. Weights are
quantised while they are written (see `streaming`); what cannot be streamed takes memory by the model's size.
"""

import contextlib
import io
import logging
import re
from pathlib import Path

from slmpack import progress
from slmpack.build.genai.memory import predicted_stock_peak
from slmpack.build.genai.patches import complete_config, patch_models
from slmpack.build.genai.sliding_window import move_window_into_attention
from slmpack.build.genai.streaming import Streaming, raise_to_int8, stream_weights
from slmpack.build.repair_tokenizer import repair_tokenizer
from slmpack.checkpoint.chat_format import write_chat_format
from slmpack.checkpoint.finite import require_finite_weights
from slmpack.checkpoint.headers import read_weights
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.errors import BuildError, RecipeError
from slmpack.machine.child import limited
from slmpack.machine.cores import threads_here
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.memory import available_bytes, require_memory
from slmpack.quantise.prepare import Prepared, plan_of
from slmpack.records import Record
from slmpack.targets import BuilderOptions


class BuildRequest(Record):
    """What the builder's process builds.

    Attributes:
        streamed: quantise while writing; else as the stock builder does.
        prepared: what was found out about the model for that.
        into: an empty folder.
    """

    snapshot: Path
    architecture: str
    layers: int
    options: BuilderOptions
    streamed: bool
    prepared: Prepared = Prepared()
    into: Path


class BuilderRun(Record):
    """What the builder's process did beside building.

    Attributes:
        repairs: a sentence for each repair of its output.
        quantisation: a sentence for each thing that went otherwise than prepared.
        lossless: the checkpoint's tensors that lost nothing, since they were whole multiples already.
        streamed: whether weights were quantised while they were written.
        unsupported_reason: why they were not although the request says so, else None.
    """

    repairs: tuple[str, ...]
    quantisation: tuple[str, ...]
    lossless: tuple[str, ...]
    streamed: bool
    unsupported_reason: str | None


def require_stock_memory(snapshot: Path, options: BuilderOptions) -> None:
    """Refuse what the stock builder would be killed for.

    Raises:
        RecipeError: the machine, or our cgroup, has less memory than it will need.
    """
    bits = 8 if options.precision == "int8" else 4
    needed = predicted_stock_peak(read_weights(snapshot), bits, options.block_size, options.algo_config)
    require_memory(needed, available_bytes(), f"the stock builder, for {options.algo_config} {options.precision},")


@forked_with(*TORCH, "onnx_ir")
def run_builder(request: BuildRequest) -> BuilderRun:
    """Run in a child: let the builder write its folder, then fix what it is known to get wrong.

    Raises:
        RecipeError: the recipe cannot cut the model's rows into its blocks.
        BuildError: the builder does not know the architecture, or a weight is not finite.
    """
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    options = request.options
    arguments = (None, str(request.snapshot), str(request.into), options.precision, options.execution_provider)
    cache = str(request.into / ".cache")
    streaming = _prepare(request)
    try:
        with contextlib.redirect_stdout(_BuilderOutput(request.layers)):
            extra = parse_extra_options(*arguments, cache, option_pairs(options))
            complete_config(extra["hf_details"]["hf_config"])
            create_model(*arguments, cache, **extra)
    except NotImplementedError as error:
        raise BuildError(
            f"architecture {request.architecture}",
            "one that the ONNX Runtime GenAI builder knows",
            "use --target transformers",
        ) from error
    except ValueError as error:
        if "cannot reshape array" not in str(error):  # k_quant needs an even number of blocks a row
            raise
        raise RecipeError(
            f"rows that {options.algo_config} cannot cut into pairs of blocks of {options.block_size}",
            "an even number of blocks a row",
            "use --recipe small",
        ) from error
    move_window_into_attention(request.into)
    with limited(f"the tokenizer or a chat template of {request.snapshot}"):
        source = read_tokenizer(request.snapshot)
        repairs = repair_tokenizer(request.into, request.snapshot, source)
        write_chat_format(request.into, source)
    return BuilderRun(
        repairs=repairs,
        quantisation=_remarks_of(request, streaming),
        lossless=streaming.lossless,
        streamed=request.streamed and not streaming.unsupported_reason,
        unsupported_reason=streaming.unsupported_reason,
    )


def _remarks_of(request: BuildRequest, streaming: Streaming) -> tuple[str, ...]:
    if not request.streamed or streaming.unsupported_reason:
        return ()
    remarks = []
    if request.prepared.calibration and not streaming.searched:
        # Tensors that were converted while they were loaded have no name in a file.
        remarks.append("no scale was searched, since the calibration names none of the weights as the builder has them")
    if streaming.unfolded:
        remarks.append(f"channels were not folded, since {streaming.unfolded}")
    return tuple(remarks)


def option_pairs(options: BuilderOptions) -> list[str]:
    """Return the builder's own options, `name=value` each.

    Norms of queries and keys stay nodes of their own in a graph for CUDA: the kernels for CPUs have no fused ones, and
    a package that they cannot run could not be compared with its source on a machine without a GPU.
    """
    pairs = ["hf_token=false"]
    if options.execution_provider == "cuda":
        pairs.append("fuse_qk_norm_gqa=false")
    if options.quantises:
        pairs += [f"block_size={options.block_size}", f"algo_config={options.algo_config}"]
    if options.int8:
        pairs.append("matmul_mixed_precision=" + ",".join(f"{group}:int8" for group in options.int8))
    return pairs


def _prepare(request: BuildRequest) -> Streaming:
    """Replace the builder's methods; where nothing is streamed, look at the weights beforehand."""
    import torch
    from builders import base  # type: ignore[import-not-found] # on the path since the builder was imported

    def before_stock() -> None:
        require_stock_memory(request.snapshot, request.options)
        require_finite_weights(request.snapshot)

    patch_models()
    raise_to_int8(base.Model, request.options.int8_nodes)
    if request.streamed:
        torch.set_num_threads(1)  # threads share tensors there, not the arithmetic of one
        plan = plan_of(request.prepared, request.options)
        return stream_weights(base.Model, threads_here(), before_stock, plan)
    _follow_quantiser(request.layers)
    require_finite_weights(request.snapshot)
    return Streaming()


class _BuilderOutput(io.TextIOBase):
    """Passes what the builder prints on to the log, and reports the layers that it names."""

    def __init__(self, layers: int) -> None:
        import sys

        self._log = sys.stdout
        self._layers = layers

    def write(self, text: str) -> int:
        if match := re.match(r"Reading layer (\d+)", text):
            progress.report("build", int(match[1]) + 1, self._layers, "layers read")
        return self._log.write(text)

    def flush(self) -> None:
        self._log.flush()


def _follow_quantiser(layers: int) -> None:
    """Report the layer that ONNX Runtime's quantiser logs about."""

    class Follow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := re.search(r"complete quantization of /model/layers\.(\d+)/", record.getMessage()):
                progress.report("build", int(match[1]) + 1, layers, "layers quantised")

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").addHandler(Follow())
