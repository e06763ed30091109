"""The work of the exporter: a checkpoint's graph, exported once and compared with its source, and packages of it.

    <workspace>/exports/<key>/model.onnx    float32, from optimum in its own environment; stored if its logits are right

Every recipe of a snapshot starts from the same graph.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from slmpack.build.builder import BuildResult
from slmpack.build.optimum import export_script
from slmpack.build.optimum.check_logits import CheckRequest, compare_with_source
from slmpack.build.optimum.environment import exporter_python
from slmpack.build.optimum.genai_config import PackageRequest, write_package
from slmpack.build.optimum.legacy_config import write_for_exporter
from slmpack.build.optimum.quantise_graph import GraphOptions
from slmpack.build.optimum.recipes import EXPORT_STEPS, MODEL_TYPES, exporter_versions, requirements_digest
from slmpack.checkpoint.windows import dtype_of
from slmpack.errors import BuildError
from slmpack.machine.at_rest import derive_folder
from slmpack.machine.child import ChildRun, run_command
from slmpack.machine.environments import inherited
from slmpack.machine.json_file import read_json
from slmpack.machine.limits import limit_seconds
from slmpack.machine.memory import available_bytes, require_memory
from slmpack.machine.remember import ChildWork, run_work
from slmpack.machine.runtimes import release_of
from slmpack.machine.store import Facts, Manifest, log_folder, require_space
from slmpack.records import Snapshot, digest_of

EXPORT_LIMIT_SECONDS = 2 * 3600.0
CHECK_LIMIT_SECONDS = 3600.0
GRAPH = "model.onnx"
# Measured with SmolLM2-135M: 2.9 GB of private memory.
LIBRARY_BYTES, BYTES_PER_PARAMETER = 450_000_000, 18.0
ON_DISK_BYTES_PER_PARAMETER = 8.0  # a tied embedding is there twice
COMPARISON = ChildWork(
    compare_with_source, "export-check", CHECK_LIMIT_SECONDS, BuildError, "the comparison with the source"
)
WRITING = ChildWork(write_package, "build", EXPORT_LIMIT_SECONDS, BuildError, "the build")


def build_exported(snapshot: Snapshot, options: GraphOptions, into: Path, key: str, workspace: Path) -> BuildResult:
    """Fill the empty folder `into` with a package.

    Args:
        key: of the package, in the name of the last process's log; those before it have logs of their own.

    Raises:
        BuildError: optimum cannot be had or cannot export the model, or what it exports is another model.
        WorkspaceError: there is no room.
    """
    exported = export_graph(snapshot, workspace)
    request = PackageRequest(
        graph=exported / GRAPH,
        snapshot=snapshot.path,
        layers=snapshot.layers,
        context_length=snapshot.context_length,
        options=options,
        into=into,
    )
    written, run = run_work(WRITING, request, key, snapshot, workspace)
    facts = Manifest.read(exported).facts
    return BuildResult(
        quantised_by="onnxruntime" if options.bits else "nothing",
        peak_private_bytes=max(run.peak_private_bytes, int(facts["peak_private_bytes"] or 0)),
        repairs=written.repairs,
        quantisation=(_describe_export(snapshot, facts), *written.quantisation),
    )


def _describe_export(snapshot: Snapshot, facts: Facts) -> str:
    return (
        f"exported by optimum-onnx {exporter_versions()['optimum-onnx']}, since ONNX Runtime GenAI's builder does not "
        f"know {snapshot.architecture}; in float32 its logits are the source's within {facts['largest']} of their "
        f"spread at {facts['positions']} positions"
    )


def export_graph(snapshot: Snapshot, workspace: Path) -> Path:
    """Return the folder with the float32 graph of `snapshot`, `model.onnx`, whose logits are the source's.

    Raises:
        BuildError: as `build_exported`.
        WorkspaceError: there is no room for it.
    """
    _require_known(snapshot)
    key = digest_of([EXPORT_STEPS, snapshot.digest, requirements_digest()])

    def make(into: Path) -> Facts:
        _require_memory(snapshot)
        require_space(workspace, int(snapshot.parameters * ON_DISK_BYTES_PER_PARAMETER), "an export in float32")
        run = _export(snapshot, into, log_folder(workspace) / f"export-{key[:12]}.log", workspace)
        check = CheckRequest(
            snapshot=snapshot.path,
            dtype=dtype_of(snapshot),
            context_length=snapshot.context_length,
            graph=into / GRAPH,
        )
        compared, _ = run_work(COMPARISON, check, key, snapshot, workspace)
        return {
            "snapshot": snapshot.digest,
            "positions": compared.positions,
            "largest": f"{compared.largest:.1e}",
            "peak_private_bytes": run.peak_private_bytes,
        }

    return derive_folder(snapshot, workspace, "exports", key, make)


def _export(snapshot: Snapshot, into: Path, log: Path, workspace: Path) -> ChildRun:
    """Run optimum; only its graph and the graph's data remain, since its other files name folders of ours."""
    python = exporter_python(workspace)
    checkpoint, written = into / "checkpoint", into / "written"
    checkpoint.mkdir()
    write_for_exporter(snapshot.path, checkpoint)
    request = {"checkpoint": str(checkpoint), "into": str(written), "architecture": snapshot.architecture}
    command = [str(python), "-P", export_script.__file__, json.dumps(request)]
    output, run = run_command(
        command,
        log=log,
        failure=BuildError,
        doing="the export",
        environment=_offline(into / "hub"),
        limit_seconds=limit_seconds(EXPORT_LIMIT_SECONDS, snapshot.size_bytes),
    )
    graph: Any = output
    for path in written.iterdir():
        if path.name.startswith(graph["graph"]):
            path.rename(into / path.name)
    for folder in (checkpoint, written, into / "hub"):
        shutil.rmtree(folder, ignore_errors=True)
    return run


def _offline(hub: Path) -> dict[str, str]:
    return inherited() | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(hub)}


def _require_known(snapshot: Snapshot) -> None:
    """Refuse what optimum cannot export either, before an environment is made for it.

    Raises:
        BuildError: with both reasons.
    """
    kind = read_json(snapshot.path / "config.json").get("model_type")
    if kind not in MODEL_TYPES:
        builder, optimum = release_of("onnxruntime-genai"), exporter_versions()["optimum-onnx"]
        raise BuildError(
            f"architecture {snapshot.architecture}: the builder of ONNX Runtime GenAI {builder} does not know it, and "
            f"optimum-onnx {optimum} does not know its model_type {kind!r}",
            "one that either of them knows",
            "use --target transformers",
        )


def _require_memory(snapshot: Snapshot) -> None:
    needed = LIBRARY_BYTES + int(snapshot.parameters * BYTES_PER_PARAMETER)
    advice = "use --target transformers, or a machine with more memory"
    require_memory(needed, available_bytes(), "the export", BuildError, advice)
