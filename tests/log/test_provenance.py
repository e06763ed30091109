"""Provenance: what a model says of its making is read again, whatever release logged it."""

from pathlib import Path

from older_records import PROVENANCE

from slmpack.log.provenance import Provenance, model_of, provenance_of
from slmpack.records import Original


def test_a_model_that_an_earlier_release_logged_has_its_digests_and_its_original(tmp_path: Path) -> None:
    told = Provenance.model_validate_json(PROVENANCE.read_bytes())
    model = model_of(told, "m-1", "run-1", package=tmp_path, snapshot=tmp_path / "snapshot")
    snapshot = model.package.snapshot
    assert snapshot.digest == told.snapshot.digest
    assert model.digest.startswith("eb4ce0f7a560")
    assert model.package.digest.startswith("7e0275576703")
    assert snapshot.original is not None
    assert snapshot.original == Original(form="GGUF", storages=snapshot.original.storages)
    assert set(snapshot.original.storages.values()) == {"Q4_0", "Q8_0"}
    again = provenance_of(model.package, model.interface, model.name, model.requirements, model.digest)
    assert Provenance.model_validate_json(again.model_dump_json()) == told


def test_the_template_of_a_base_travels_and_no_other_model_says_anything_of_it(tmp_path: Path) -> None:
    told = Provenance.model_validate_json(PROVENANCE.read_bytes())
    model = model_of(told, "m-1", "run-1", package=tmp_path, snapshot=tmp_path / "snapshot")
    assert "base_template" not in told.model_dump_json()
    snapshot = model.package.snapshot.model_copy(update={"base_template": "{{ messages }}"})
    package = model.package.model_copy(update={"snapshot": snapshot})
    merged = provenance_of(package, model.interface, model.name, model.requirements, model.digest)
    again = model_of(
        Provenance.model_validate_json(merged.model_dump_json()), "m-1", "run-1", package=tmp_path, snapshot=tmp_path
    )
    assert again.package.snapshot.base_template == "{{ messages }}"
