"""Document: the ML-BOM of one version, a CycloneDX document made of the records of its way.

    model --dependsOn--> source --dependsOn--> base          an adapter's, or what a retraining began with
      |                    +-----------------> data sets     of a retraining
      +----------------> packages of the runtime, as they were installed where the model answered

The same version gives the same document, whoever completes it, up to what differed on the machine that proved it.
cyclonedx-python-lib 11.12 has no model cards, so that the document is written here, and validated in the tests against
the schema that the library ships.

Source: CycloneDX 1.6 (ECMA-424), guide "Machine Learning Bill of Materials".
"""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as installed_version

from slmpack.publish.bom.components import (
    Json,
    file_components,
    licences_of,
    package_component,
    properties_of,
    source_component,
)
from slmpack.publish.bom.training import DataSet, Training
from slmpack.publish.page.log_page import Proofs
from slmpack.records import LoggedModel, ModelSource, Snapshot, digest_of

SPEC = "1.6"
MODEL, SOURCE, BASE = "model", "source", "base"
_NAMESPACE = uuid.UUID("6d1b7a4e-3f0c-5f7e-9c55-8a2f8d0e4b11")  # ours: a version has one serial number for ever


def bom_text(
    model: LoggedModel,
    proofs: Proofs,
    figures: Mapping[str, str],
    training: Training | None,
    *,
    version: int,
    created: datetime,
) -> str:
    """Return the document as JSON in ASCII, which no terminal obeys.

    Args:
        figures: of quality and speed, by the names that metrics have.
        training: the retraining that the source came from.
        created: when the version was.
    """
    document = bom_of(model, proofs, figures, training, version=version, created=created)
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def bom_of(
    model: LoggedModel,
    proofs: Proofs,
    figures: Mapping[str, str],
    training: Training | None,
    *,
    version: int,
    created: datetime,
) -> Json:
    """Return the document; its arguments are those of `bom_text`."""
    snapshot = model.package.snapshot
    sources = _sources(snapshot, training)
    data = [_data_component(each, number) for number, each in enumerate(training.data if training else (), start=1)]
    packages = [package_component(each) for each in proofs.validation.packages]
    main = _model_component(model, version) | {"modelCard": _card(model, proofs, figures, data)}
    refs = {name: [each["bom-ref"] for each in parts] for name, parts in (("data", data), ("packages", packages))}
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest_of([model.name, version, model.model_id]))}",
        "version": 1,
        "metadata": {
            "timestamp": created.astimezone(UTC).isoformat(timespec="seconds"),
            "tools": {
                "components": [{"type": "application", "name": "slmpack", "version": installed_version("slmpack")}]
            },
            "component": main,
        },
        "components": [*sources, *data, *packages],
        "dependencies": [
            {"ref": MODEL, "dependsOn": [SOURCE, *refs["packages"]]},
            {"ref": SOURCE, "dependsOn": [*[each["bom-ref"] for each in sources[1:]], *refs["data"]]},
        ],
    }


def _model_component(model: LoggedModel, version: int) -> Json:
    package = model.package
    facts = {
        "digest": model.digest,
        "model_id": model.model_id,
        "package_digest": package.digest,
        "requirement": model.requirements,
        "built_with": [f"{name} {found}" for name, found in sorted(package.versions.items())],
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": model.name,
        "version": str(version),
        "licenses": licences_of(package.snapshot.licence),
        "components": file_components(package.files),
        "properties": properties_of(facts),
    }


def _sources(snapshot: Snapshot, training: Training | None) -> list[Json]:
    """Return the source with the files that it became, and what it was made from."""
    source = snapshot.source
    facts = properties_of(
        {
            "checkpoint_digest": snapshot.digest,
            "weights": snapshot.original.form if snapshot.original else snapshot.dtype,
            "parameters": snapshot.parameters,
            "repair": snapshot.repairs,
        }
    )
    first = source_component(source.model_copy(update={"licence": source.licence or snapshot.licence}), SOURCE)
    first |= {"components": file_components(snapshot.files), "properties": [*first["properties"], *facts]}
    return [first, *_bases(source, training)]


def _bases(source: ModelSource, training: Training | None) -> list[Json]:
    if source.base is not None:
        return [source_component(source.base, BASE)]
    if training is None or not training.base:
        return []
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": BASE,
            "name": training.base,
            "version": training.revision,
            "properties": properties_of(
                {"retraining_run": training.run_id} | {f"training.{k}": v for k, v in training.settings.items()}
            ),
        }
    ]


def _data_component(data: DataSet, number: int) -> Json:
    facts = {"digest": data.digest, "use": data.use}
    counts = {name.removeprefix("slmpack."): value for name, value in data.facts.items()}
    return {
        "type": "data",
        "bom-ref": f"data/{number}",
        "name": data.name,
        "data": [{"type": "dataset", "name": data.name, "description": f"chats for {data.use}"}],
        "properties": properties_of(facts | counts),
    }


def _card(model: LoggedModel, proofs: Proofs, figures: Mapping[str, str], data: list[Json]) -> Json:
    package = model.package
    facts = {
        "target": package.target,
        "recipe": package.recipe or "none",
        "interface": model.interface,
        "exporter": package.exporter,
        "quantisation": package.quantisation,
        "repair": package.repairs,
        "waiver": proofs.quality.waiver,
        "proof": list(dict.fromkeys(row["proof"] for row in proofs.table())),
    }
    parameters: Json = {
        "task": "text-generation",
        "architectureFamily": "transformer",
        "modelArchitecture": package.snapshot.architecture,
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if data:
        parameters["datasets"] = [{"ref": each["bom-ref"]} for each in data]
    metrics = [_metric(name, value) for name, value in sorted(figures.items())]
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "properties": properties_of(facts),
    }


def _metric(name: str, value: str) -> Json:
    """Return a figure; those on chats are of a slice of their own."""
    chats = name.removeprefix("chat_")
    return (
        {"type": name, "value": value} if chats == name else {"type": chats, "value": value, "slice": "quality chats"}
    )
