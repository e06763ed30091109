"""Find: which versions of a registered model are published, and which of them still can be used.

A version is known by its tags: `slmpack.digest` says what it is, `slmpack.published` that the alias was moved to it,
`slmpack.unhealthy` that its files were missing or damaged when they were looked at last.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from slmpack.errors import PublishError
from slmpack.log.health import UNHEALTHY, clear_version, damage_known, damage_of, mark_content, mark_version
from slmpack.log.mlflow_server import check_alias, check_name
from slmpack.log.tags import DIGEST, HELD_ALIAS, MODEL_ID, PUBLISHED, REQUEST_KEY, SUPERSEDED_BY, facts_in
from slmpack.log.versions import versions_with
from slmpack.records import Interface, LoggedModel, Record, Target
from slmpack.reports import PublishedVersion, QualityFigures, Speed
from slmpack.source.mlflow_errors import is_absent

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

RecordT = TypeVar("RecordT", bound=Record)

FINGERPRINTS_TAG, FINGERPRINT_SEPARATOR = "slmpack.asked", ", "


class PublishedLookup(Record):
    """A healthy version that was published before.

    Attributes:
        alias: the alias that was moved to it then; a rollback may have given it to another version since.
        recipe: as in the version's tag; None for a target that is not quantised.
        fingerprints: what ended with this version: the recipe itself or `auto`, each with the policy it was under.
        speed: as it was measured then; None if a tag is missing.
    """

    name: str
    version: int
    alias: str
    digest: str
    model_id: str
    run_id: str
    target: Target
    recipe: str | None
    size_bytes: int
    fingerprints: tuple[str, ...]
    speed: Speed | None
    quality: QualityFigures | None


def alias_of(target: Target, interface: Interface) -> str:
    """Return the alias of a target: `cpu-int4`, or `cpu-int4-prompt` for the prompt interface."""
    return str(target) if interface is Interface.CHAT else f"{target}-{interface}"


def find_published(name: str, digest: str, alias: str) -> PublishedLookup | None:
    """Return the newest version of `name` with that digest that was published under `alias` and still is whole.

    Raises:
        UsageError: MLflow would refuse the name or the alias.
    """
    return _newest_published(name, alias, DIGEST, digest)


class Search(Record):
    """What a run looks for before it works: the same request that ended before.

    Attributes:
        name: of the registered model.
        fingerprint: see `Request`; a single recipe is found by its digest alone.
        request_key: see `request_key`.
        digests: of the logged models that the recipes would make; none before the source is fetched.
    """

    name: str
    target: Target
    alias: str
    fingerprint: str
    request_key: str | None = None
    digests: tuple[str, ...] = ()

    def counts(self, fingerprints: Sequence[str]) -> bool:
        """Say whether something with these fingerprints is what this request would end with.

        A single digest is enough by itself. Of several, as `auto` tries them, one counts only if `auto` ended with it
        under the same policy: the user may have published a dearer recipe by name, or loosened the policy since.
        """
        return len(self.digests) == 1 or self.fingerprint in fingerprints


def published_before(search: Search) -> PublishedLookup | None:
    """Return the published version that the same request ended with, by its key, or by digests where it has some.

    One that is found by its digest is found by the key the next time.

    Raises:
        UsageError: MLflow would refuse the name or the alias.
    """
    if not search.digests:
        key = search.request_key
        return None if key is None else _newest_published(search.name, search.alias, key_tag(key), search.alias)
    lookups = (find_published(search.name, digest, search.alias) for digest in search.digests)
    found = next((each for each in lookups if each is not None and search.counts(each.fingerprints)), None)
    if found is not None and search.request_key is not None:
        remember_key(search.name, found.version, search.request_key, search.alias)
    return found


def key_tag(request_key: str) -> str:
    """Return the name of the tag by which a version is found again."""
    return f"{REQUEST_KEY}{request_key[:24]}"


def remember_key(name: str, version: int, request_key: str, alias: str) -> None:
    """Leave on a version the key of a request that ended with it."""
    from mlflow import MlflowClient

    MlflowClient().set_model_version_tag(name, str(version), key_tag(request_key), alias)


def _newest_published(name: str, alias: str, key: str, value: str) -> PublishedLookup | None:
    check_name(name)
    check_alias(alias)
    holder = holder_of(name, alias)
    if holder is None:  # deleted, or gone with the version that had it
        return None
    published = (version for version in versions_with(name, key, value) if version.tags.get(PUBLISHED) == alias)
    found = next((version for version in reversed([*published]) if is_whole(version)), None)
    if found is None or (found.version != holder.version and is_lost(holder)):  # the alias must not stay where it is
        return None
    return lookup_of(found, alias)


def lookup_of(version: "ModelVersion", alias: str) -> PublishedLookup:
    """Describe a version of ours.

    Raises:
        PublishError: somebody took facts away from it that it was published with.
    """
    facts = facts_in(version.tags)
    if lacking := {"recipe", "digest", "model_id", "mlflow_run", "target", "size_bytes"} - facts.keys():
        raise PublishError(
            f"{version.name} version {version.version} has no {', '.join(sorted(lacking))} in its tags",
            "the tags that it was published with",
            "delete that version and package it again",
        )
    recipe = facts["recipe"]
    return PublishedLookup(
        name=version.name,
        version=int(version.version),
        alias=alias,
        digest=facts["digest"],
        model_id=facts["model_id"],
        run_id=facts["mlflow_run"],
        target=Target(facts["target"]),
        recipe=None if recipe == "none" else recipe,
        size_bytes=int(facts["size_bytes"]),
        fingerprints=fingerprints_in(version.tags),
        speed=figures_in(version.tags, Speed),
        quality=figures_in(version.tags, QualityFigures),
    )


def fingerprints_in(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Return the fingerprint of every request that ended with what has the tags: a version, or a model that waits."""
    return tuple(tags.get(FINGERPRINTS_TAG, "").split(FINGERPRINT_SEPARATOR))


def with_fingerprint(tags: Mapping[str, str], *fingerprints: str) -> str:
    """Return the value of the tag with `fingerprints` added, each once."""
    return FINGERPRINT_SEPARATOR.join(filter(None, dict.fromkeys((*fingerprints_in(tags), *fingerprints))))


def figures_in(tags: Mapping[str, str], figures: type[RecordT]) -> RecordT | None:
    """Read figures back from tags; None where one is missing that there always is."""
    facts = facts_in(tags)
    values = {name: facts[name] for name in figures.model_fields if name in facts}
    if any(field.is_required() and name not in values for name, field in figures.model_fields.items()):
        return None
    return figures.model_validate({name: float(value) for name, value in values.items()})


def whole_versions(name: str, key: str, value: str) -> list["ModelVersion"]:
    return [version for version in versions_with(name, key, value) if is_whole(version)]


def is_whole(version: "ModelVersion") -> bool:
    """Tell whether all the files of the version's model are there; a published one without them is marked, loudly."""
    model_id = version.tags.get(MODEL_ID)
    if model_id is None:  # deleted while MLflow read it: tags come with a query of their own
        return False
    damage = damage_known(version.tags)
    if damage is not None:
        mark_content(version, damage)
        return False
    damage = damage_of(model_id)
    if damage is None:
        clear_version(version)
    elif PUBLISHED in version.tags:
        mark_version(version, damage)
    return damage is None


def is_lost(version: "ModelVersion") -> bool:
    """Tell whether a version of ours points at a model that cannot be used; one that somebody else made does not."""
    return MODEL_ID in version.tags and not is_whole(version)


def unhealthy_before(name: str, version: int, alias: str, digest: str) -> tuple[str, ...]:
    """Return which published versions `version` takes the place of because they cannot be used, a sentence each."""
    same = versions_with(name, DIGEST, digest)
    superseded = versions_with(name, SUPERSEDED_BY, str(version))
    others = {int(other.version): other.tags for other in (*same, *superseded) if other.version != str(version)}
    return tuple(
        f"version {number} was published and cannot be used, {tags[UNHEALTHY]}"
        for number, tags in sorted(others.items())
        if tags.get(UNHEALTHY) and tags.get(PUBLISHED) == alias and number < version
    )


def holder_of(name: str, alias: str) -> "ModelVersion | None":
    """Return the version that has the alias now."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if is_absent(error):
            return None
        raise


def holder_before(version: "ModelVersion", alias: str) -> "ModelVersion | None":
    """Return the version that has the alias, or that had it until `version` got it."""
    holder = holder_of(version.name, alias)
    if holder is not None and holder.version != version.version:
        return holder
    versions = versions_with(version.name, SUPERSEDED_BY, str(version.version))
    return next((other for other in reversed(versions) if other.tags.get(HELD_ALIAS) == alias), None)


class RegistryStatus(Record):
    """What the registry has of a logged model.

    Attributes:
        published: the version of this very model to which an alias was moved, now or once.
        holder: the number of the version that has the alias of its target now, which may be another's.
    """

    published: PublishedVersion | None
    holder: int | None


def registry_status(model: LoggedModel) -> RegistryStatus:
    """Return what the registry has of `model` now."""
    alias = alias_of(model.package.target, model.interface)
    holder = holder_of(model.name, alias)
    published = [
        PublishedVersion(model=model, name=model.name, version=int(version.version), alias=alias, digest=model.digest)
        for version in versions_with(model.name, MODEL_ID, model.model_id)
        if version.tags.get(PUBLISHED) == alias
    ]
    return RegistryStatus(
        published=published[-1] if published else None, holder=int(holder.version) if holder else None
    )
