"""The bill of materials: valid CycloneDX, true to the version, and text is text in it whoever wrote it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.schema._res import BOM_JSON_STRICT, CRYPTOGRAPHY_DEFS, JSF, SPDX_JSON
from made_proofs import ALIAS, publish
from made_proofs import proofs_of as made_proofs_of
from mlflow import MlflowClient

from flows.cli import run
from flows.cli_lines import FAILED, OK
from slmpack.chats.dataset import ChatData, DataPolicy
from slmpack.errors import CheckError, DamageError, SourceError
from slmpack.log.chat_artifacts import log_chat_dataset
from slmpack.log.tags import FACTS, facts_in, with_more
from slmpack.machine.json_file import read_json
from slmpack.publish.bom.components import licences_of
from slmpack.publish.bom.document import bom_of, bom_text
from slmpack.publish.bom.log_bom import name_of, read_bom
from slmpack.publish.bom.training import DataSet, Training, training_of
from slmpack.publish.page.log_page import Proofs
from slmpack.records import (
    FileDigest,
    Interface,
    LoggedModel,
    ModelSource,
    Package,
    Recipe,
    Snapshot,
    SourceKind,
    Target,
)
from slmpack.reports import InstalledPackage
from slmpack.source.logged_model import QUALITY_CHATS

LogIt = Callable[..., LoggedModel]

HOSTILE = '\x1b]0;x\x07<script>alert("x")</script> \u202e\x00\x7f{{ "a": 1 }} ../.. \ud800'
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PACKAGES = (
    InstalledPackage(name="numpy", version="2.4.6", licence="BSD-3-Clause AND MIT", sha256=("a" * 64, "b" * 64)),
    InstalledPackage(name="odd", version="1", licence="Odd License"),
    InstalledPackage(name="silent", version="1", licence=None),
)
SCHEMAS = "http://cyclonedx.org/schema/"
FIGURES = {"perplexity_ratio": "1.05", "chat_perplexity_ratio": "1.02", "decode_tokens_per_second": "12.5"}
CHATS = DataSet(name="town.jsonl", digest="1" * 36, use="training", facts={"slmpack.lines": "300"})
TRAINING = Training(run_id="r2", base="hf://org/base@v1", revision="c" * 40, settings={"rank": "8"}, data=(CHATS,))


def made_model(name: str = "example-1b", base: ModelSource | None = None, licence: str | None = "mit") -> LoggedModel:
    source = ModelSource(
        text=f"hf://org/{name}", kind=SourceKind.HUB, location=f"org/{name}", revision="d" * 40, name=name,
        licence=licence, base=base,
    )  # fmt: skip
    snapshot = Snapshot(
        source=source, path=Path("/somewhere"), files=(FileDigest(name="w", sha256="a" * 64, size_bytes=10),),
        architecture="LlamaForCausalLM", dtype="BF16", parameters=10, layers=2, context_length=64, licence=licence,
    )  # fmt: skip
    package = Package(
        snapshot=snapshot, target=Target.CPU_INT4, recipe=Recipe.SMALL, path=Path("/somewhere"), digest="c" * 64,
        files=(FileDigest(name="model.onnx", sha256="b" * 64, size_bytes=5),), versions={"onnx": "1"},
        quantisation=("4 bits", "8 bits: the head"),
    )  # fmt: skip
    return LoggedModel(
        package=package, interface=Interface.CHAT, name=name, model_id="m-1", uri="models:/m-1", run_id="r1",
        requirements=("numpy==2.4.6",), digest="e" * 64,
    )  # fmt: skip


def proofs_of(model: LoggedModel, packages: tuple[InstalledPackage, ...] = PACKAGES) -> Proofs:
    proofs = made_proofs_of(model, waiver="a demonstration")
    return proofs.model_copy(update={"validation": proofs.validation.model_copy(update={"packages": packages})})


@cache
def cyclonedx_1_6() -> jsonschema_rs.Draft7Validator:
    """Return a validator by CycloneDX's own schema, formats of text included."""
    schema = read_json(Path(str(BOM_JSON_STRICT[SchemaVersion.V1_6])))
    others = [(f"{SCHEMAS}{Path(each).name}", read_json(Path(each))) for each in (SPDX_JSON, JSF, CRYPTOGRAPHY_DEFS)]
    return jsonschema_rs.Draft7Validator(schema, registry=jsonschema_rs.Registry(others), validate_formats=True)


def refusals(text: str) -> list[str]:
    """Return what the schema has against a document."""
    return [str(error)[:2000] for error in cyclonedx_1_6().iter_errors(json.loads(text))]


def document(model: LoggedModel, training: Training | None = None, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"figures": FIGURES, "proofs": proofs_of(model), "version": 4, "created": CREATED} | changes
    text = bom_text(model, training=training, **given)
    assert refusals(text) == []
    found: dict[str, Any] = json.loads(text)
    assert found == json.loads(json.dumps(bom_of(model, training=training, **given)))
    return found


def component(found: dict[str, Any], ref: str) -> dict[str, Any]:
    (component,) = (each for each in found["components"] if each.get("bom-ref") == ref)
    return dict(component)


def facts_of(component: dict[str, Any]) -> dict[str, str]:
    return {each["name"].removeprefix("slmpack:"): each["value"] for each in component["properties"]}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"metadata": {"timestamp": "yesterday"}}, 'is not a "date-time"'),
        ({"externalReferences": [{"type": "website", "url": "not an IRI"}]}, "is not valid under any of the schemas"),
        ({"metadata": {"authors": [{"name": "x", "email": "x"}]}}, 'is not a "idn-email"'),
        ({"components": [{"type": "library", "name": "x", "licenses": [{"license": {"id": "Nope"}}]}]}, "Nope"),
        ({"unknown": 1}, "Additional properties are not allowed"),
    ],
)
def test_the_schema_that_bills_are_held_against_refuses_a_wrong_one(part: dict[str, Any], told: str) -> None:
    right = document(made_model())
    (found,) = refusals(json.dumps(right | part))
    assert told in found


def test_a_bill_names_the_source_the_files_and_the_packages_with_licences_and_hashes() -> None:
    found = document(made_model())
    main, source = found["metadata"]["component"], component(found, "source")
    assert (main["name"], main["version"], main["licenses"][0]["expression"]) == ("example-1b", "4", "MIT")
    assert main["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "b" * 64}]
    assert source["purl"] == f"pkg:huggingface/org/example-1b@{'d' * 40}"
    assert source["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    numpy = component(found, "pkg:pypi/numpy@2.4.6")
    assert numpy["licenses"][0]["expression"] == "BSD-3-Clause AND MIT"
    assert [each["content"][0] for each in numpy["externalReferences"][0]["hashes"]] == ["a", "b"]
    assert component(found, "pkg:pypi/odd@1")["licenses"][0]["license"]["name"] == "Odd License"
    assert found["dependencies"][0]["dependsOn"] == ["source", *(each["bom-ref"] for each in found["components"][1:])]


def test_the_model_card_has_the_recipe_the_figures_and_the_proofs() -> None:
    card = document(made_model())["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["modelArchitecture"] == "LlamaForCausalLM"
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "perplexity_ratio", "value": "1.02", "slice": "quality chats"},
        {"type": "decode_tokens_per_second", "value": "12.5"},
        {"type": "perplexity_ratio", "value": "1.05"},
    ]
    told = [(each["name"], each["value"]) for each in card["properties"]]
    assert ("slmpack:recipe", "small") in told
    assert ("slmpack:waiver", "a demonstration") in told
    assert [value for name, value in told if name == "slmpack:quantisation"] == ["4 bits", "8 bits: the head"]
    assert [value for name, value in told if name == "slmpack:proof"] == ["smoke", "quality", "validation"]


def test_the_bill_of_an_adapter_has_its_base() -> None:
    base = ModelSource(
        text="/home/me/base", kind=SourceKind.FOLDER, location="/home/me/base", revision="f" * 64, name="base"
    )
    found = document(made_model(base=base, licence="unknown and mit"))
    assert component(found, "base")["licenses"] == [{"license": {"name": "unknown"}}]
    assert facts_of(component(found, "base"))["revision"] == "f" * 64
    assert found["dependencies"][1]["dependsOn"] == ["base"]
    assert "/home/me" not in json.dumps(found)


def test_the_bill_of_a_retrained_model_names_its_base_and_its_data() -> None:
    found = document(made_model(), TRAINING)
    assert component(found, "base")["version"] == "c" * 40
    assert component(found, "data/1")["name"] == "town.jsonl"
    assert facts_of(component(found, "data/1")) == {"digest": "1" * 36, "use": "training", "lines": "300"}
    card = found["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": "data/1"}]
    assert found["dependencies"][1]["dependsOn"] == ["base", "data/1"]


def test_names_of_strangers_are_text() -> None:
    model = made_model(name=HOSTILE, licence=HOSTILE)
    data = DataSet(name=HOSTILE, digest=HOSTILE, use=HOSTILE, facts={f"slmpack.{HOSTILE}": HOSTILE})
    training = Training(run_id=HOSTILE, base=HOSTILE, revision=HOSTILE, settings={HOSTILE: HOSTILE}, data=(data,))
    packages = (InstalledPackage(name=HOSTILE, version=HOSTILE, licence=HOSTILE, sha256=(HOSTILE,)),)
    given: dict[str, Any] = {"proofs": proofs_of(model, packages), "figures": {HOSTILE: HOSTILE}}
    document(model, training, **given)
    text = bom_text(model, training=training, version=4, created=CREATED, **given)
    assert set(text) <= {"\n", *map(chr, range(0x20, 0x7F))}


def test_the_same_version_has_the_same_bill() -> None:
    assert document(made_model()) == document(made_model())
    assert document(made_model())["serialNumber"] != document(made_model(), version=5)["serialNumber"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("apache-2.0 and MIT", [{"expression": "Apache-2.0 AND MIT", "acknowledgement": "declared"}]),
        ("llama3.1", [{"license": {"name": "llama3.1", "acknowledgement": "declared"}}]),
        ("gemma or mit", [{"license": {"name": "gemma or mit", "acknowledgement": "declared"}}]),
        (
            "gemma and mit",
            [{"license": {"name": name, "acknowledgement": "declared"}} for name in ("gemma", "mit")],
        ),
        (None, [{"license": {"name": "unknown"}}]),
    ],
)
def test_a_licence_is_an_expression_of_spdx_or_a_name(text: str | None, expected: list[dict[str, object]]) -> None:
    assert licences_of(text) == expected


# ---------------------------------------------------------------------------------------------- in MLflow


@pytest.mark.slow
def test_a_published_version_has_a_bill_that_is_read_by_its_uri(
    name: str, log_it: LogIt, capsys: pytest.CaptureFixture[str]
) -> None:
    model = log_it()
    publish(model)
    uri = f"models:/{name}@{ALIAS}"
    assert run(["sbom", uri]) == OK
    shown = capsys.readouterr()
    assert shown.out == read_bom(uri) == read_bom(f"models:/{name}/1") == read_bom(model.uri)
    assert refusals(shown.out) == []
    found = json.loads(shown.out)["metadata"]["component"]
    assert (found["name"], found["version"]) == (name, "1")
    figures = {each["type"]: each["value"] for each in found["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert (figures["perplexity_ratio"], figures["decode_tokens_per_second"]) == ("1.05", "12.5")


@pytest.mark.slow
def test_a_bill_that_was_changed_or_is_gone_is_refused(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    uri, client = f"models:/{name}/1", MlflowClient()
    digest = facts_in(client.get_model_version(name, "1").tags)["bom_sha256"]
    client.log_text(model.run_id, "{}", f"proof/{name_of(digest)}")
    with pytest.raises(DamageError, match=r"has another content; sha256 [0-9a-f]{12}\.\.\.; publish it again with"):
        read_bom(uri)
    tags = client.get_model_version(name, "1").tags
    client.set_model_version_tag(name, "1", FACTS, with_more(tags, {"bom_sha256": "0" * 64}))
    with pytest.raises(DamageError, match=r"is gone; bom-000000000000\.cdx\.json in its run"):
        read_bom(uri)


@pytest.mark.slow
def test_what_has_no_bill_says_what_to_do(name: str, log_it: LogIt, capsys: pytest.CaptureFixture[str]) -> None:
    model = log_it()
    with pytest.raises(CheckError, match=f"{model.uri} is not published; a version; publish it: slmpack verify"):
        read_bom(model.uri)
    publish(model)
    MlflowClient().set_model_version_tag(name, "1", FACTS, "{}")
    assert run(["sbom", f"models:/{name}/1"]) == FAILED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == (
        f"slmpack: models:/{name}/1 has no bill of materials; a version that this release published; publish it again "
        "with slmpack package SOURCE --force"
    )
    with pytest.raises(SourceError, match="no alias nothing"):
        read_bom(f"models:/{name}@nothing")


@pytest.mark.slow
def test_the_run_of_a_retraining_tells_its_base_and_its_data(log_it: LogIt) -> None:
    from mlflow.entities import Param

    data = ChatData(
        name="town.jsonl", files=(), digest="1" * 64, training_digest="2" * 64, held_out_digest="3" * 64, lines=300,
        chats=300, held_out=30, bad=0, duplicates=0, repaired=0, first_bad=(), policy=DataPolicy(),
    )  # fmt: skip
    model, client = log_it(), MlflowClient()
    run_id = client.create_run(client.get_run(model.run_id).info.experiment_id).info.run_id
    parameters = {"base": "hf://org/base", "base_revision": "c" * 40, "training.rank": "8"}
    client.log_batch(run_id, params=[Param(key, value) for key, value in parameters.items()])
    log_chat_dataset(run_id, data, data.name)
    source = ModelSource(
        text="models:/town@tuned", kind=SourceKind.MLFLOW, location=model.uri, revision=model.model_id, name="town"
    )
    assert training_of(source) is None
    client.set_logged_model_tags(model.model_id, {QUALITY_CHATS: f"runs:/{run_id}/data/held-out.jsonl"})
    found = training_of(source)
    assert found is not None
    assert (found.base, found.revision, found.settings) == ("hf://org/base", "c" * 40, {"rank": "8"})
    assert {(each.name, each.use) for each in found.data} == {("town.jsonl", "training"), ("town.jsonl", "held-out")}
    assert {each.facts["slmpack.data_digest"] for each in found.data} == {"1" * 64}
    document(made_model(), found)
