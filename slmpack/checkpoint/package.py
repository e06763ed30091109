"""Package of the target `transformers`: the snapshot as it is, since nothing is built for it."""

from slmpack.machine.runtimes import release_of
from slmpack.records import Package, Snapshot, Target, digest_of

# In the digest, as in that of a built package: the builder's options, of which there are none, and the version of the
# build's steps. Both stay as they are, so that what was logged before is found again.
OPTIONS: dict[str, str] = {}
STEPS = 6


def checkpoint_package(snapshot: Snapshot) -> Package:
    """Return a snapshot as the package that loads by transformers."""
    versions = {"transformers": release_of("transformers")}
    return Package(
        snapshot=snapshot,
        target=Target.TRANSFORMERS,
        recipe=None,
        path=snapshot.path,
        files=snapshot.files,
        versions=versions,
        digest=digest_of([snapshot.digest, Target.TRANSFORMERS, None, OPTIONS, versions, STEPS]),
        exporter="none",
    )
