"""Build: from a snapshot to a package for one target, by the ONNX Runtime GenAI builder in a child process.

    snapshot --builder--> scratch folder --driven through prefill and decode--> packages/<digest>/

The builder runs in a process of its own (see `builder`). Weights are quantised while they are written; what cannot be
streamed takes memory by the model's size, which is asked for before any work.
"""

import logging
from pathlib import Path
from typing import Any

from slmpack.builder import BuildRequest, Built, require_stock_memory, run_builder
from slmpack.child import run_in_child
from slmpack.dequantise import kept_form, kept_sentence
from slmpack.errors import BuildError
from slmpack.kept_blocks import kept_sentences, kept_types
from slmpack.limits import limit_seconds
from slmpack.preparation import Prepared, is_kept, preparation_digest, prepare
from slmpack.records import Package, Recipe, Record, Snapshot, Target, digest_of
from slmpack.store import Manifest, log_folder, require_space, store_folder
from slmpack.streaming import unchecked_builder
from slmpack.targets import BYTES_PER_PARAMETER, RECIPES, BuilderOptions, builder_versions

logger = logging.getLogger(__name__)

BUILD_LIMIT_SECONDS = 2 * 3600.0
DRIVE_LIMIT_SECONDS = 600.0
DECODE_STEPS = 4
BUILD_STEPS = 4  # counts up when what is done to the builder's output changes, so that packages are built again


class DriveRequest(Record):
    """The package folder to run a few tokens through; its ids must stay below the model's vocabulary."""

    package: Path


class Done(Record):
    """Nothing to tell but that it ended well."""


def package_digest(
    snapshot: Snapshot, target: Target, recipe: Recipe | None, calibration_text: str | None = None
) -> str:
    """Return the digest of the package that `build_package` would make, without making it."""
    options = RECIPES[target][recipe] if recipe else None
    told = _told_of(options, calibration_text)
    if options and is_kept(snapshot, options):
        told["kept"] = True
    return digest_of([snapshot.digest, target, recipe, told, builder_versions(target), BUILD_STEPS])


def recipe_digest(target: Target, recipe: Recipe | None, calibration_text: str | None = None) -> str:
    """Return the digest of all that is done to a source, whichever it is."""
    told = _told_of(RECIPES[target][recipe] if recipe else None, calibration_text)
    return digest_of([target, recipe, told, builder_versions(target), BUILD_STEPS])


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
        RecipeError: the recipe cannot cut the model's rows, or needs more memory than there is.
        BuildError: no builder knows the architecture, a weight is not finite, or the builder's process failed, was
            killed or took too long.
        WorkspaceError: the workspace has too little space for the result.
    """
    digest = package_digest(snapshot, target, recipe, calibration_text)
    path = snapshot.path
    if recipe is not None:
        require_space(workspace, int(snapshot.parameters * BYTES_PER_PARAMETER[target]), f"a {target} package")
        path = _build(snapshot, target, recipe, digest, workspace, calibration_text)
    manifest = Manifest.read(path)
    return Package(
        snapshot=snapshot,
        target=target,
        recipe=recipe,
        path=path,
        files=manifest.files,
        versions=builder_versions(target),
        digest=digest,
        build_peak_bytes=int(manifest.facts.get("build_peak_bytes") or 0),
        repairs=_lines(manifest, "repairs"),
        quantisation=_lines(manifest, "quantisation"),
    )


def _lines(manifest: Manifest, fact: str) -> tuple[str, ...]:
    return tuple(str(manifest.facts.get(fact) or "").splitlines())


def _build(
    snapshot: Snapshot, target: Target, recipe: Recipe, digest: str, workspace: Path, calibration_text: str | None
) -> Path:
    """Return the stored folder; its manifest remembers what making it took and what was repaired."""
    log = log_folder(workspace) / f"build-{digest[:12]}.log"
    drive_log = log_folder(workspace) / f"drive-{digest[:12]}.log"
    options = RECIPES[target][recipe]

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("building %s for %s, recipe %s", snapshot.source.name, target, recipe)
        obstacle = obstacle_of(options)
        if obstacle:
            _require_stock(snapshot, options, obstacle)
        prepared = Prepared() if obstacle else prepare(snapshot, options, calibration_text, workspace)
        request = BuildRequest(
            snapshot=prepared.checkpoint or snapshot.path, architecture=snapshot.architecture, layers=snapshot.layers,
            options=options, streamed=obstacle is None, prepared=prepared, into=into,
        )  # fmt: skip
        built, run = run_in_child(
            run_builder, request, log=log, failure=BuildError, doing="the build",
            limit_seconds=limit_seconds(BUILD_LIMIT_SECONDS, snapshot.size_bytes),
        )  # fmt: skip
        obstacle = obstacle or built.obstacle
        remarks = (_taken_over(obstacle),) if obstacle and options.streams else ()
        run_in_child(
            drive_package, DriveRequest(package=into), log=drive_log, failure=BuildError,
            limit_seconds=limit_seconds(DRIVE_LIMIT_SECONDS, snapshot.size_bytes), doing="the first run of the package",
        )  # fmt: skip
        return {
            "target": target,
            "recipe": recipe,
            "quantised_by": "streaming" if built.streamed else "the stock builder",
            "build_peak_bytes": run.peak_private_bytes,
            "repairs": "\n".join(built.repairs),
            "quantisation": "\n".join(
                (*prepared.told, *built.quantisation, *remarks, *_told_kept(snapshot, prepared, built))
            ),
        }

    return store_folder(workspace, "packages", digest, make)


def _told_kept(snapshot: Snapshot, prepared: Prepared, built: Built) -> tuple[str, ...]:
    """Return what became of weights that were quantised before."""
    form = kept_form(snapshot.path)
    if form is not None:
        return (kept_sentence(form, prepared.checkpoint is not None),)
    return kept_sentences(kept_types(snapshot.path), built.kept)


def obstacle_of(options: BuilderOptions) -> str | None:
    """Return why the stock builder must quantise, None if weights can be streamed."""
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

    try:
        model = og.Model(str(request.package))
        ids = og.Tokenizer(model).encode("Once upon a time")
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
