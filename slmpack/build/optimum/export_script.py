"""Runs in the exporter's environment: optimum writes a checkpoint's decoder as one ONNX graph in float32.

    python -P exporter_script.py '{"checkpoint": ..., "into": ..., "architecture": ...}'

It is run as a file, by an interpreter that has not slmpack: it imports the standard library and what
`exporter_requirements.txt` names. Its standard output carries one JSON event a line, as `child` has them; what it and
its libraries print is the log.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

Tell = Callable[[dict[str, Any]], None]
TASK = "text-generation-with-past"
HEADS = ("lm_head.", "embed_out.")


class BuildError(Exception):
    """Told to the parent by this name; in one line."""


def main(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Export `request["checkpoint"]` into the folder `request["into"]`; return the graph's file name there."""
    _progress(tell, 0)
    from optimum.exporters.onnx import onnx_export_from_model  # type: ignore[import-not-found]

    _mend_falcon()
    _progress(tell, 1)
    into = Path(request["into"])
    try:
        model = _load(Path(request["checkpoint"]))
        # what optimum would compare is compared with the source itself later; it only warns
        onnx_export_from_model(model, into, task=TASK, do_validation=False)
    except Exception as error:
        traceback.print_exc()
        raise BuildError(
            f"architecture {request['architecture']}: the ONNX Runtime GenAI builder does not know it, and optimum "
            f"cannot export it ({type(error).__name__}: {_line(error)[:300]}); one that either of them can build; "
            "use --target transformers"
        ) from error
    _progress(tell, 2)
    graphs = sorted(path.name for path in into.glob("*.onnx"))
    if len(graphs) != 1:
        raise BuildError(f"optimum wrote {', '.join(graphs) or 'no graph'}; one graph; use --target transformers")
    return {"graph": graphs[0]}


def _load(checkpoint: Path) -> Any:
    """Load the model in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    config.use_cache = True
    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    state = _prefixed(checkpoint, f"{kind.base_model_prefix}.")
    place = checkpoint if state is None else None
    return kind.from_pretrained(place, config=config, state_dict=state, torch_dtype=torch.float32).eval()


def _prefixed(checkpoint: Path, prefix: str) -> dict[str, Any] | None:
    """Return the weights under the names of the whole model, where the decoder's have none of its prefix; else None.

    transformers adds the prefix itself, unless the head's weights are beside the decoder's (facebook/opt).
    """
    from safetensors.torch import load_file

    files = sorted(checkpoint.glob("*.safetensors"))
    weights = {name: tensor for path in files for name, tensor in load_file(path).items()}  # mapped, not read
    if any(name.startswith(prefix) for name in weights) or not any(name.startswith(HEADS) for name in weights):
        return None
    return {name if name.startswith(HEADS) else prefix + name: tensor for name, tensor in weights.items()}


def _progress(tell: Tell, done: int) -> None:
    tell({"progress": {"stage": "build", "done": done, "total": 2, "unit": "steps of the export"}})


def _mend_falcon() -> None:
    """Give Falcon's new architecture (40B, 11B) the cache that transformers has for it: a head a query head.

    Source: transformers 4.57, `FalconAttention.forward`, beside optimum 2.1.0, `FalconDummyPastKeyValuesGenerator`.
    """
    from optimum.utils import FalconDummyPastKeyValuesGenerator as Generator  # type: ignore[import-not-found]

    stock = Generator.__init__

    def patched(self: Any, task: str, normalized_config: Any, *rest: Any, **named: Any) -> None:
        stock(self, task, normalized_config, *rest, **named)
        if normalized_config.new_decoder_architecture:
            self.num_kv_heads = self.num_attention_heads

    Generator.__init__ = patched


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _take_stdout() -> IO[str]:
    """Keep the standard output for events, and let everything else that is printed go to the log."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return events


def _leave_with_parent() -> None:
    """End when the parent is gone: the kernel then closes our standard input."""

    def wait() -> NoReturn:
        os.read(0, 1)  # not sys.stdin, whose lock a thread may not hold while the interpreter ends
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def _run() -> int:
    """Tell the result or the error as the last event; return the exit code."""
    events = _take_stdout()
    _leave_with_parent()

    def tell(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        tell({"result": main(json.loads(sys.argv[1]), tell)})
    except BaseException as error:
        traceback.print_exc()
        tell({"error": _line(error), "kind": type(error).__name__})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_run())
