"""Build: from a snapshot to a package for one target, by the ONNX Runtime GenAI builder in a child process.

    snapshot --builder--> scratch folder --driven through prefill and decode--> packages/<digest>/

The builder runs in a process of its own (see `builder`). Weights are quantised while they are written; what cannot be
streamed takes memory by the model's size, which is asked for before any work.
"""

import logging
from pathlib import Path
from typing import Any

from slmpack.build.genai.run_builder import BuildRequest, Built, require_stock_memory, run_builder
from slmpack.build.genai.streaming import unchecked_builder
from slmpack.build.open_package import open_package
from slmpack.build.optimum.export import build_exported
from slmpack.build.optimum.recipes import (
    EXPORT_STEPS,
    EXPORTED,
    exporter_digest,
    exporter_of,
    exporter_versions,
    graph_options,
    requirements_digest,
)
from slmpack.build.versions import BYTES_PER_PARAMETER, builder_versions
from slmpack.checkpoint.inspect import TOKENIZER
from slmpack.checkpoint.original import original_sentences
from slmpack.errors import BuildError
from slmpack.machine.at_rest import derive_folder
from slmpack.machine.child import limited, run_in_child
from slmpack.machine.hardware import provider_here
from slmpack.machine.limits import limit_seconds
from slmpack.machine.store import Manifest, log_folder, require_space
from slmpack.quantise.prepare import Prepared, is_kept, preparation_digest, prepare
from slmpack.records import Package, Provider, Recipe, Record, Snapshot, Target, digest_of
from slmpack.targets import BuilderOptions, options_for

logger = logging.getLogger(__name__)

BUILD_LIMIT_SECONDS = 2 * 3600.0
DRIVE_LIMIT_SECONDS = 600.0
DECODE_STEPS = 4
BUILD_STEPS = 6  # counts up when what is done to the builder's output changes, so that packages are built again


class DriveRequest(Record):
    """The package folder to run a few tokens through, and by which provider; its ids must stay below the vocabulary."""

    package: Path
    provider: Provider = "cpu"


class Done(Record):
    """Nothing to tell but that it ended well."""


def package_digest(
    snapshot: Snapshot, target: Target, recipe: Recipe | None, calibration_text: str | None = None
) -> str:
    """Return the digest of the package that `build_package` would make, without making it."""
    options = options_for(target, recipe)
    if options and exporter_of(snapshot.architecture) == "optimum":
        return digest_of([snapshot.digest, target, recipe, exporter_digest(target, recipe)])
    told = _told_of(options, calibration_text)
    if options and is_kept(snapshot, options):
        told["kept"] = True
    return digest_of([snapshot.digest, target, recipe, told, builder_versions(target), BUILD_STEPS])


def recipe_digest(target: Target, recipe: Recipe | None, calibration_text: str | None = None) -> str:
    """Return the digest of all that is done to a source, whichever it is."""
    told = _told_of(options_for(target, recipe), calibration_text)
    exported = (requirements_digest(), EXPORT_STEPS) if target in EXPORTED else None
    return digest_of([target, recipe, told, builder_versions(target), BUILD_STEPS, exported])


def _told_of(options: BuilderOptions | None, calibration_text: str | None) -> dict[str, Any]:
    told = options.model_dump(exclude_defaults=True) if options else {}
    if options and options.weighted:
        told["preparation"] = preparation_digest(options, calibration_text)
    return told


def build_package(
    snapshot: Snapshot, target: Target, recipe: Recipe | None, workspace: Path, calibration_text: str | None = None
) -> Package:
    """Build the package of `snapshot` for `target`, or take the whole one that an earlier run left.

    Args:
        calibration_text: what the source reads before its weights are quantised; None: what is built in.

    Raises:
        RecipeError: the recipe cannot cut the model's rows, needs more memory than there is, or is none that graphs
            exported by optimum have.
        BuildError: nothing here knows the architecture, a weight is not finite, an exported graph is another model, or
            a process failed, was killed or took too long.
        WorkspaceError: the workspace has too little space for the result.
    """
    digest = package_digest(snapshot, target, recipe, calibration_text)
    path, options = snapshot.path, options_for(target, recipe)
    exporter = exporter_of(snapshot.architecture) if options else "none"
    if options is not None:
        require_space(workspace, int(snapshot.parameters * BYTES_PER_PARAMETER[target]), f"a {target} package")
        if exporter == "optimum":
            path = _build_exported(snapshot, target, recipe, digest, workspace)
        else:
            path = _build(snapshot, target, recipe, options, digest, workspace, calibration_text)
    manifest = Manifest.read(path)
    return Package(
        snapshot=snapshot,
        target=target,
        recipe=recipe,
        path=path,
        files=manifest.files,
        versions=exporter_versions() if exporter == "optimum" else builder_versions(target),
        digest=digest,
        build_peak_bytes=int(manifest.facts.get("build_peak_bytes") or 0),
        repairs=_lines(manifest, "repairs"),
        quantisation=_lines(manifest, "quantisation"),
        exporter=exporter,
    )


def _lines(manifest: Manifest, fact: str) -> tuple[str, ...]:
    return tuple(str(manifest.facts.get(fact) or "").splitlines())


def _build(
    snapshot: Snapshot, target: Target, recipe: Recipe | None, options: BuilderOptions, digest: str, workspace: Path,
    calibration_text: str | None,
) -> Path:  # fmt: skip
    """Return the stored folder; its manifest remembers what making it took and what was repaired."""
    log = log_folder(workspace) / f"build-{digest[:12]}.log"

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("building %s for %s, recipe %s", snapshot.source.name, target, recipe or "none")
        obstacle = obstacle_of(options)
        if obstacle:
            _require_stock(snapshot, options, obstacle)
        prepared = Prepared() if obstacle else prepare(snapshot, options, calibration_text, workspace)
        request = BuildRequest(
            snapshot=prepared.checkpoint or snapshot.path, architecture=snapshot.architecture, layers=snapshot.layers,
            options=options, streamed=options.quantises and obstacle is None, prepared=prepared, into=into,
        )  # fmt: skip
        built, run = run_in_child(
            run_builder, request, log=log, failure=BuildError, doing="the build",
            limit_seconds=limit_seconds(BUILD_LIMIT_SECONDS, snapshot.size_bytes),
        )  # fmt: skip
        obstacle = obstacle or built.obstacle
        remarks = (_taken_over(obstacle),) if obstacle and options.streams else ()
        _drive(into, snapshot, target, log_folder(workspace) / f"drive-{digest[:12]}.log")
        return {
            "target": target,
            "recipe": recipe,
            "quantised_by": _quantiser_of(options, built),
            "build_peak_bytes": run.peak_private_bytes,
            "repairs": "\n".join(built.repairs),
            "quantisation": "\n".join(
                (*prepared.told, *built.quantisation, *remarks, *_told_kept(snapshot, prepared, built.kept))
            ),
        }

    return derive_folder(snapshot, workspace, "packages", digest, make)


def _build_exported(snapshot: Snapshot, target: Target, recipe: Recipe | None, digest: str, workspace: Path) -> Path:
    """Return the stored folder, made from a graph of optimum's since the builder does not know the architecture."""
    options = graph_options(target, recipe, snapshot.architecture)

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("exporting %s for %s, recipe %s", snapshot.source.name, target, recipe)
        log = log_folder(workspace) / f"build-{digest[:12]}.log"
        facts = build_exported(snapshot, options, into, log, workspace)
        _drive(into, snapshot, target, log_folder(workspace) / f"drive-{digest[:12]}.log")
        told = (str(facts["quantisation"]), *_told_kept(snapshot, Prepared(), ()))
        return {"target": target, "recipe": recipe, **facts, "quantisation": "\n".join(told)}

    return derive_folder(snapshot, workspace, "packages", digest, make)


def _drive(package: Path, snapshot: Snapshot, target: Target, log: Path) -> None:
    run_in_child(
        drive_package, DriveRequest(package=package, provider=provider_here(target)), log=log, failure=BuildError,
        limit_seconds=limit_seconds(DRIVE_LIMIT_SECONDS, snapshot.size_bytes), doing="the first run of the package",
    )  # fmt: skip


def _quantiser_of(options: BuilderOptions, built: Built) -> str:
    if not options.quantises:
        return "nobody"
    return "streaming" if built.streamed else "the stock builder"


def _told_kept(snapshot: Snapshot, prepared: Prepared, kept: tuple[str, ...]) -> tuple[str, ...]:
    """Return what became of weights that were quantised before."""
    return original_sentences(snapshot.original, has_codes=prepared.checkpoint is not None, lossless=kept)


def obstacle_of(options: BuilderOptions) -> str | None:
    """Return why the stock builder must quantise, None if weights can be streamed or nothing is quantised."""
    if not options.quantises:
        return None
    return unchecked_builder() if options.streams else f"{options.algo_config} looks at whole matrices"


def _require_stock(snapshot: Snapshot, options: BuilderOptions, obstacle: str) -> None:
    """Say that the stock builder quantises, and why; then there must be memory for all weights.

    Raises:
        RecipeError: there is not.
    """
    logger.warning("the stock builder quantises, which takes more time and memory: %s", obstacle)
    require_stock_memory(snapshot.path, options)


def _taken_over(obstacle: str) -> str:
    """Return the sentence for the page, having warned with it."""
    remark = f"the stock builder quantised, by the blocks' extremes, since {obstacle}"
    logger.warning("%s", remark)
    return remark


def drive_package(request: DriveRequest) -> Done:
    """Run in a child: prefill and a few decode steps, since the builder returns 0 for packages that cannot.

    `logits` are float32 `[batch, sequence, vocabulary]`.

    Raises:
        BuildError: the package does not load, breaks at decode, or gives logits that are not finite.
    """
    import numpy as np
    import onnxruntime_genai as og
    from tokenizers import Tokenizer

    try:
        model = open_package(request.package, request.provider)
        with limited(f"the tokenizer of {request.package}"):
            tokenizer = Tokenizer.from_file(str(request.package / TOKENIZER))
            tokenizer.no_truncation()
            tokenizer.no_padding()  # a file may ask for any length
            ids = tokenizer.encode("Once upon a time").ids
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + DECODE_STEPS, min_length=len(ids) + DECODE_STEPS)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        for step in range(DECODE_STEPS):
            generator.generate_next_token()
            if not np.isfinite(generator.get_logits()).all():
                raise BuildError(f"logits that are not finite at decode step {step + 1}", "finite numbers",
                                 "check the checkpoint's weights")  # fmt: skip
    except RuntimeError as error:
        raise BuildError(f"the built package does not run: {error}", "a package that loads and decodes",
                         "try another --recipe") from error  # fmt: skip
    return Done()
