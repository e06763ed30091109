"""A package, opened by ONNX Runtime GenAI with the requested provider and no other."""

from pathlib import Path
from typing import Any

from slmpack.errors import HardwareError
from slmpack.records import Provider


def open_package(folder: Path, provider: Provider) -> Any:
    """Load the model of a package folder.

    Args:
        provider: `cpu` runs a package for CUDA as well, in float16, as far as there are kernels.

    Raises:
        RuntimeError: the runtime cannot load it.
        HardwareError: the session got another provider.
    """
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    if provider == "cpu":
        config.clear_providers()
    else:
        import onnxruntime

        onnxruntime.preload_dlls()  # CUDA's packages lie where no loader looks
    model = og.Model(config)
    if (found := str(model.device_type).lower()) != provider:
        raise HardwareError(f"the session runs on {found}", provider, "see the log for what CUDA lacks")
    return model
