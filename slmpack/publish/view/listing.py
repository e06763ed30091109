"""Listing: which versions of the registry slmpack published, and what is in use.

    without a name   what is in use: a line for each alias of each model
    with a name      all of its versions, newest first

Only tags are read, so that a registry of thousands is listed in the time of a few requests.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from slmpack.errors import CheckError, SourceError
from slmpack.figures import bytes_shown, ratio_shown
from slmpack.log.health import UNHEALTHY
from slmpack.log.mlflow_server import check_characters
from slmpack.log.tags import PUBLISHED, SIGNED_BY, facts_in
from slmpack.log.versions import PAGE_SIZE, aliases_by_name, versions_with_tag
from slmpack.publish.view.words import CELL_CHARACTERS, NOTHING, count_of, day_of, moment_of, number_of, shown, table
from slmpack.records import Record
from slmpack.signing.policy import TrustPolicy, find_policy
from slmpack.source.absence import Absence, aliases_of, missing_model
from slmpack.source.mlflow_errors import final_errors, is_absent, one_line

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

COLUMNS = ("NAME", "VERSION", "ALIASES", "TARGET", "RECIPE", "RATIO", "SIZE", "PUBLISHED", "SIGNED")
OF_NUMBERS = frozenset({1, 5, 6})
FINGERPRINT_CHARACTERS = 12


class ListedVersion(Record):
    """A published version as its tags tell of it; None where they do not.

    Attributes:
        aliases: that it has now; in a listing of what is in use, the one that the line is about.
        recipe: None where the package is not quantised, too.
        perplexity_ratio: over the source's; None where it was not measured.
        published: when it was registered, ISO 8601 in UTC.
        signed_by: the fingerprint of the key, as the tag says: no signature was checked.
        key: what the trust policy of this machine calls that key.
        unhealthy: when its files were found missing or damaged, and which.
    """

    model_uri: str
    name: str
    version: int
    aliases: tuple[str, ...]
    target: str | None
    recipe: str | None
    perplexity_ratio: float | None
    size_bytes: int | None
    published: str
    signed_by: str | None
    key: str | None
    unhealthy: str | None


class Listing(Record):
    """What `slmpack list` tells."""

    versions: tuple[ListedVersion, ...]


def list_versions(name: str | None = None, page_size: int = PAGE_SIZE) -> Listing:
    """List what is in use, or every published version of one model.

    Args:
        name: of the registered model.
        page_size: how much is asked for at a time.

    Raises:
        UsageError: MLflow takes no such name, or the trust policy cannot be read.
        SourceError: there is no such model.
        CheckError: MLflow refuses to tell.
    """
    if name is not None:
        check_characters(name)
    policy = find_policy()
    with final_errors(CheckError, "to list the versions"):
        aliases = aliases_by_name(page_size) if name is None else {name: _aliases_of(name)}
        versions = versions_with_tag(PUBLISHED, name, page_size)
    listed = [_listed(version, aliases.get(version.name, {}), policy) for version in versions]
    if name is not None:
        return Listing(versions=tuple(reversed(listed)))
    in_use = (
        each.model_copy(update={"aliases": (alias,)})
        for each in sorted(listed, key=lambda each: (each.name, -each.version))
        for alias in each.aliases
    )
    return Listing(versions=tuple(in_use))


def _aliases_of(name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(number) for alias, number in aliases_of(name).items()}
    except MlflowException as error:
        if not is_absent(error):
            raise
        absence = missing_model(name) or Absence(one_line(error), "a registered model", "check the name")
        raise SourceError(f"MLflow has {absence.found}", absence.known, absence.advice) from error


def _listed(version: "ModelVersion", aliases: Mapping[str, str], policy: TrustPolicy | None) -> ListedVersion:
    facts = facts_in(version.tags)
    recipe, signed_by = facts.get("recipe"), version.tags.get(SIGNED_BY) or None
    return ListedVersion(
        model_uri=f"models:/{version.name}/{version.version}",
        name=version.name,
        version=int(version.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(version.version))),
        target=facts.get("target"),
        recipe=None if recipe == "none" else recipe,
        perplexity_ratio=number_of(facts.get("perplexity_ratio")),
        size_bytes=count_of(facts.get("size_bytes")),
        published=moment_of(version.creation_timestamp),
        signed_by=signed_by,
        key=key_name(signed_by, policy),
        unhealthy=version.tags.get(UNHEALTHY) or None,
    )


def key_name(fingerprint: str | None, policy: TrustPolicy | None) -> str | None:
    """Return what a trust policy calls the key; None where it does not have it."""
    key = policy.keys.get(fingerprint) if policy is not None and fingerprint is not None else None
    return None if key is None else key.id


def listing_lines(listing: Listing) -> list[str]:
    """Return the listing as a table for a person; nothing where it is empty."""
    if not listing.versions:
        return []
    return table([COLUMNS, *map(_row, listing.versions)], OF_NUMBERS)


def _row(version: ListedVersion) -> tuple[str, ...]:
    ratio, size = version.perplexity_ratio, version.size_bytes
    signed = version.key or (version.signed_by or NOTHING)[:FINGERPRINT_CHARACTERS]
    return (
        version.name,
        str(version.version),
        ", ".join(version.aliases) or NOTHING,
        shown(version.target or NOTHING, CELL_CHARACTERS),
        shown(version.recipe or NOTHING, CELL_CHARACTERS),
        NOTHING if ratio is None else ratio_shown(ratio),
        NOTHING if size is None else bytes_shown(size),
        day_of(version.published),
        signed,
    )


def notes_on(listing: Listing, name: str | None) -> list[str]:
    """Return what is to be said beside the table: that it is empty, and which versions cannot be used."""
    if not listing.versions:
        whose = "" if name is None else f" of {name}"
        use = "is published" if name is not None else "is in use"
        return [f"no version{whose} {use} here; slmpack package SOURCE publishes one"]
    marked = {each.model_uri: each for each in listing.versions if each.unhealthy}
    return [f"{each.name} version {each.version} cannot be used: {each.unhealthy}" for each in marked.values()]
