"""Build: from a snapshot to a package for one target."""

from pathlib import Path

from prefect import task

from slmpack.build import build
from slmpack.records import Package, Recipe, Snapshot, Target
from tasks.policies import LOCAL
from tasks.progress import progress_artifact


@task(task_run_name="build {snapshot.source.name} for {target}", **LOCAL)
@progress_artifact("build")
def build_package(
    snapshot: Snapshot, target: Target, recipe: Recipe | None, workspace: Path, calibration_text: str | None = None
) -> Package:
    """Build the package; never retried, since the same weights give the same failure."""
    return build.build_package(snapshot, target, recipe, workspace, calibration_text)
