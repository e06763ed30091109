"""Statement: what a published model was made of, how, by what, and what was proved, in a form that others read.

    in-toto Statement v1
        subject       the registered model's name, and the sha256 of the list of its files
        predicate     SLSA Provenance v1
            buildDefinition.externalParameters     what a person chose
            buildDefinition.resolvedDependencies   the source's revision and the digests of its files
            runDetails.builder                     slmpack, and the versions of what it used
            runDetails.metadata                    the MLflow run, its begin, and when the version was signed
            runDetails.byproducts                  the proofs with their figures, and the bill of materials
            slmpack_version, slmpack_facts         the version's number, and what its tags say

Sources: https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance. It is not signed by itself: the
model's signature covers it like any other file.
"""

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version as installed_version
from typing import Any

from slmpack.log.provenance import Provenance, SourceFacts
from slmpack.publish.bom.log_bom import DIGEST as BOM_DIGEST

STATEMENT_TYPE, PREDICATE_TYPE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:slmpack:package:v1"
BUILDER, BOM_TYPE = "urn:slmpack", "application/vnd.cyclonedx+json"
# Facts of a version that a person chose.
CHOSEN = ("target", "recipe", "interface", "waiver", "template_waiver", "forced")
GIT_DIGITS, SHA256_DIGITS = 40, 64


def statement_of(
    provenance: Provenance, facts: Mapping[str, str], page: str, manifest: str, begun_ms: int | None, version: int
) -> str:
    """Return the statement of one version as JSON.

    Args:
        facts: those of the version's tags.
        page: the facts of the version's page, as JSON; "" if it has none.
        manifest: sha256 of the list of the logged model's files.
        begun_ms: when the MLflow run began, in milliseconds since 1970.
        version: its number.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": provenance.name, "digest": {"sha256": manifest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": _build_of(provenance, facts),
            "runDetails": _run_of(provenance, facts, page, begun_ms),
            "slmpack_version": version,
            "slmpack_facts": dict(sorted(facts.items())),
        },
    }
    return json.dumps(statement, indent=1, ensure_ascii=False) + "\n"


def _build_of(provenance: Provenance, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return what was built of what: a person's choices, ours, and the source with its files."""
    files = [{"name": file.name, "digest": {"sha256": file.sha256}} for file in provenance.snapshot.files]
    chosen = {name: facts[name] for name in CHOSEN if name in facts}
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {"source": provenance.source.text, **chosen},
        "internalParameters": {"digest": provenance.digest, "exporter": provenance.package.exporter},
        "resolvedDependencies": [*_sources(provenance.source), *files],
    }


def _run_of(provenance: Provenance, facts: Mapping[str, str], page: str, begun_ms: int | None) -> dict[str, Any]:
    """Return by what it was built, when, and what was proved of it."""
    return {
        "builder": {"id": BUILDER, "version": _versions(provenance)},
        "metadata": {
            "invocationId": facts.get("mlflow_run"),
            "startedOn": None if begun_ms is None else _time(begun_ms / 1000),
            "finishedOn": _time(datetime.now(UTC).timestamp()),
        },
        "byproducts": [*([_byproduct("proofs", page)] if page else []), *_bill_of_materials(facts)],
    }


def _sources(source: SourceFacts) -> list[dict[str, Any]]:
    """Return the source and what it was made from, each by its revision: a commit, a digest, or a release's number."""
    kinds = {GIT_DIGITS: "gitCommit", SHA256_DIGITS: "sha256"}
    is_digest = re.fullmatch("[0-9a-f]+", source.revision) and len(source.revision) in kinds
    digest = {"digest": {kinds[len(source.revision)]: source.revision}} if is_digest else {}
    found = {"uri": source.text, **digest, "annotations": {"kind": str(source.kind), "revision": source.revision}}
    return [found, *(_sources(source.base) if source.base else [])]


def _versions(provenance: Provenance) -> dict[str, str]:
    pins = dict(line.split("==", 1) for line in provenance.requirements)
    return {"slmpack": installed_version("slmpack"), **pins, **provenance.package.versions}


def _bill_of_materials(facts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the digest of the version's bill of materials, which lies in its run."""
    if BOM_DIGEST not in facts:
        return []
    return [{"name": "bill of materials", "mediaType": BOM_TYPE, "digest": {"sha256": facts[BOM_DIGEST]}}]


def _byproduct(name: str, content: str) -> dict[str, Any]:
    raw = content.encode()
    return {
        "name": name,
        "mediaType": "application/json",
        "digest": {"sha256": sha256(raw).hexdigest()},
        "content": base64.b64encode(raw).decode(),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
