"""Build: from a snapshot to a package for one target.

    snapshot --Builder.build--> scratch folder --driven through prefill and decode--> packages/<digest>/

`select` chooses the builder. A package that does not decode is not stored.
"""

from pathlib import Path

from slmpack.build.builder import Builder, BuildResult
from slmpack.build.open_package import open_package
from slmpack.build.select import NoBuilder, select_builder
from slmpack.build.versions import BYTES_PER_PARAMETER
from slmpack.checkpoint.inspect import TOKENIZER
from slmpack.checkpoint.original import original_sentences
from slmpack.errors import BuildError
from slmpack.machine.at_rest import derive_folder
from slmpack.machine.child import limited
from slmpack.machine.hardware import provider_here
from slmpack.machine.remember import ChildWork, run_work
from slmpack.machine.store import Facts, Manifest, require_space
from slmpack.records import Package, Provider, Recipe, Record, Snapshot, Target

DRIVE_LIMIT_SECONDS = 600.0
DECODE_STEPS = 4


class SampleDecodeRequest(Record):
    """The package folder to run a few tokens through, and by which provider; its ids must stay below the vocabulary."""

    package: Path
    provider: Provider = "cpu"


class Done(Record):
    """Nothing to tell but that it ended well."""


def package_digest(
    snapshot: Snapshot, target: Target, recipe: Recipe | None, calibration_text: str | None = None
) -> str:
    """Return the digest of the package that `build_package` would make, without making it."""
    return select_builder(snapshot, target, recipe, calibration_text).digest()


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
    builder = select_builder(snapshot, target, recipe, calibration_text)
    digest = builder.digest()
    path = snapshot.path if isinstance(builder, NoBuilder) else _build(builder, digest, workspace)
    manifest = Manifest.read(path)
    return Package(
        snapshot=snapshot,
        target=target,
        recipe=recipe,
        path=path,
        files=manifest.files,
        versions=builder.versions(),
        digest=digest,
        build_peak_bytes=int(manifest.facts.get("build_peak_bytes") or 0),
        repairs=_lines(manifest, "repairs"),
        quantisation=_lines(manifest, "quantisation"),
        exporter=builder.exporter,
    )


def _lines(manifest: Manifest, fact: str) -> tuple[str, ...]:
    return tuple(str(manifest.facts.get(fact) or "").splitlines())


def _build(builder: Builder, digest: str, workspace: Path) -> Path:
    """Return the stored folder; its manifest has what the builder did, and the most memory that it took."""
    snapshot, target = builder.snapshot, builder.target
    require_space(workspace, int(snapshot.parameters * BYTES_PER_PARAMETER[target]), f"a {target} package")

    def make(into: Path) -> Facts:
        result = builder.build(into, workspace)
        work = ChildWork(run_sample_decode, "drive", DRIVE_LIMIT_SECONDS, BuildError, "the first run of the package")
        run_work(work, SampleDecodeRequest(package=into, provider=provider_here(target)), digest, snapshot, workspace)
        return {
            "target": target,
            "recipe": builder.recipe,
            "quantised_by": result.quantised_by,
            "build_peak_bytes": result.peak_private_bytes,
            "repairs": "\n".join(result.repairs),
            "quantisation": "\n".join((*result.quantisation, *_describe_lossless(snapshot, result))),
        }

    return derive_folder(snapshot, workspace, "packages", digest, make)


def _describe_lossless(snapshot: Snapshot, result: BuildResult) -> tuple[str, ...]:
    """Return what became of weights that were quantised before."""
    return original_sentences(snapshot.original, has_codes=result.reused_checkpoint, lossless=result.reused_tensors)


def run_sample_decode(request: SampleDecodeRequest) -> Done:
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
                raise BuildError(
                    f"logits that are not finite at decode step {step + 1}",
                    "finite numbers",
                    "check the checkpoint's weights",
                )
    except RuntimeError as error:
        raise BuildError(
            f"the built package does not run: {error}", "a package that loads and decodes", "try another --recipe"
        ) from error
    return Done()
