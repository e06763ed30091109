"""The builder's folders of some checkpoints and the runtime's answers, all made in one process of its own."""

import contextlib
import io
from pathlib import Path

import numpy as np

from slmpack.build.build import Done
from slmpack.records import Record

IDS = (1, 1000, 2000, 3000, 4000, 5, 77, 2424)


class Trial(Record):
    """A checkpoint for the builder and where to put its package."""

    checkpoint: Path
    into: Path
    precision: str


class Trials(Record):
    trials: tuple[Trial, ...]


def build_and_ask(request: Trials) -> Done:
    """Run in a child: the builder as it is, with the head in 8 bits, then the runtime; `logits.npy` has its answers."""
    import onnxruntime_genai as og
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    for trial in request.trials:
        where = (None, str(trial.checkpoint), str(trial.into), trial.precision, "cpu", f"{trial.into}.cache")
        options = ["block_size=32", "algo_config=default", "hf_token=false"]
        options += ["matmul_mixed_precision=last_matmul:int8"] if trial.precision == "int4" else []
        with contextlib.redirect_stdout(io.StringIO()):
            create_model(*where, **parse_extra_options(*where, options))
        generator = og.Generator(model := og.Model(str(trial.into)), og.GeneratorParams(model))
        logits = []
        for token in IDS:
            generator.append_tokens([token])
            logits.append(generator.get_logits()[0, -1])
        np.save(trial.into / "logits.npy", np.stack(logits))
    return Done()
