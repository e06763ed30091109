"""The page's facts: what the proofs found of one version, gathered from their reports and logged as JSON with it.

They have no path of the machine. A later release reads them again as `Earlier`, and takes what it understands.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError

from slmpack.publish.page.attempt import Attempt, Text
from slmpack.publish.page.findings import Answer, Proof, answers_of, proofs_of
from slmpack.records import Interface, Record, Target
from slmpack.reports import (
    Check,
    Quality,
    QualityPolicy,
    QualityReport,
    SmokeReport,
    Speed,
    ValidationReport,
)


class Machine(Record):
    """Where the proofs ran."""

    cpu: Text
    cores: int
    memory_bytes: int
    system: Text


class Earlier(Record):
    """What is known of the version that held the alias before: what its own facts say, of any schema."""

    model_config = ConfigDict(extra="ignore")

    version: int
    recipe: Text | None = None
    revision: Text | None = None
    base_revision: Text | None = None
    licence: Text | None = None
    size_bytes: int | None = None
    quality: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    requirements: tuple[Text, ...] | None = None
    chat_template: Text | None = None


class PageFacts(Record):
    """All that the page tells. `Earlier` reads it again, so a field keeps its name.

    Attributes:
        created: ISO 8601.
        base: of an adapter, the model that it was merged into; `base_template` is that model's chat template,
            and `template` the one of the source, if the former is known.
        source_bytes: size of the source's checkpoint.
        versions: builder and runtime, name to version.
        chat_template: None where the package has none.
        quantisation: what was done to the weights and why, a sentence each.
        repairs: what was put right in the files of the source and of the package, a sentence each.
        attempts: the recipes that were tried, empty where there was no choice.
        previous: the version that held the alias before, None for the first.
    """

    name: Text
    version: int
    alias: Text
    target: Target
    interface: Interface
    created: Text
    source: Text
    revision: Text
    licence: Text | None
    architecture: Text
    parameters: int
    context_length: int
    source_bytes: int
    recipe: Text | None
    size_bytes: int
    digest: Text
    requirements: tuple[Text, ...]
    versions: dict[Text, Text]
    machine: Machine
    chat_template: Text | None
    proofs: tuple[Proof, ...]
    answers: tuple[Answer, ...]
    quality: Quality | None
    policy: QualityPolicy
    waiver: Text | None
    speed: Speed
    template_waiver: Text | None = None
    template: Text | None = None
    base_template: Text | None = None
    quantisation: tuple[Text, ...] = ()
    repairs: tuple[Text, ...] = ()
    base: Text | None = None
    base_revision: Text | None = None
    attempts: tuple[Attempt, ...] = ()
    previous: Earlier | None = None


def facts_of(
    validation: ValidationReport,
    quality: QualityReport,
    smoke: SmokeReport,
    *,
    version: int,
    alias: str,
    created: str,
    machine: Machine,
    chat_template: str | None = None,
    others: Mapping[str, tuple[Check, ...]] | None = None,
    attempts: tuple[Attempt, ...] = (),
    previous: Earlier | None = None,
) -> PageFacts:
    """Gather what the page tells of one model.

    Args:
        others: further proofs, such as "parity" or "clean environment", name to checks; no checks: it did not run.
    """
    model = validation.model
    package, snapshot = model.package, model.package.snapshot
    base = snapshot.source.base
    return PageFacts(
        name=model.name,
        version=version,
        alias=alias,
        target=package.target,
        interface=model.interface,
        created=created,
        machine=machine,
        chat_template=chat_template,
        attempts=attempts,
        previous=previous,
        source=snapshot.source.shown,
        revision=snapshot.source.revision,
        licence=snapshot.licence,
        architecture=snapshot.architecture,
        parameters=snapshot.parameters,
        context_length=snapshot.context_length,
        source_bytes=snapshot.size_bytes,
        recipe=package.recipe,
        size_bytes=package.size_bytes,
        versions=package.versions,
        digest=model.digest,
        requirements=model.requirements,
        proofs=proofs_of(validation, quality, smoke, others or {}),
        answers=answers_of(smoke),
        quality=quality.quality,
        policy=quality.policy,
        waiver=quality.waiver,
        template_waiver=validation.template.waiver,
        template=validation.template.base_template and validation.template.template,
        base_template=validation.template.base_template,
        speed=smoke.speed,
        quantisation=package.quantisation,
        repairs=(*snapshot.repairs, *package.repairs),
        base=base and base.shown,
        base_revision=base and base.revision,
    )


def summary_json(facts: PageFacts) -> str:
    """Return the facts as JSON, for `read_earlier` of the next version."""
    return facts.model_dump_json(indent=1) + "\n"


def read_earlier(text: str, version: int) -> Earlier:
    """Read the `summary_json` of another version; what this release does not understand of it is left out."""
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        stored = {}
    stored = dict(stored, version=version) if isinstance(stored, dict) else {"version": version}
    while True:
        try:
            return Earlier.model_validate(stored)
        except ValidationError as error:
            for problem in error.errors():
                stored.pop(str(problem["loc"][0]), None)
