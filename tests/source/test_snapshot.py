"""Snapshot: a stored one is the same record again, whatever release stored it."""

from pathlib import Path

import pytest
from older_records import GGUF_MANIFEST, GPTQ_MANIFEST

from slmpack.machine.store import Manifest
from slmpack.records import ModelSource, Original, Snapshot, SourceKind
from slmpack.source.snapshot import facts_of, snapshot_of

LAYER = "model.layers.0"
STORAGES = {"model.embed_tokens.weight": "Q8_0"} | {
    f"{LAYER}.{name}.weight": "Q4_0"
    for name in ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj",
                 "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj")
}  # fmt: skip
OLDER = {
    GGUF_MANIFEST: ("a0e942bbea36", Original(form="GGUF", storages=STORAGES)),
    GPTQ_MANIFEST: ("c0603ca1e5fa", Original(form="GPTQ, 4 bits, groups of 32", bits=4, version=1)),
}


def snapshot_in(path: Path, manifest: Manifest) -> Snapshot:
    source = ModelSource(text="tiny", kind=SourceKind.FOLDER, location="/tiny", revision="a" * 64, name="tiny")
    return snapshot_of(source, path, manifest)


@pytest.mark.parametrize("file", OLDER, ids=lambda path: str(path.stem))
def test_what_an_earlier_release_stored_has_its_digest_and_its_original(file: Path, tmp_path: Path) -> None:
    digest, original = OLDER[file]
    snapshot = snapshot_in(tmp_path, Manifest.model_validate_json(file.read_bytes()))
    assert snapshot.digest.startswith(digest)
    assert snapshot.original == original
    assert list(original.storages) == list(snapshot.original.storages)  # the order of sentences on a version's page


@pytest.mark.parametrize("original", [None, *(original for _, original in OLDER.values())])
@pytest.mark.parametrize("repairs", [(), ("A token was taken out.", "So was another.")])
def test_the_facts_of_a_manifest_make_the_same_record(
    original: Original | None, repairs: tuple[str, ...], tmp_path: Path
) -> None:
    plain = snapshot_in(tmp_path, Manifest.model_validate_json(GPTQ_MANIFEST.read_bytes()))
    snapshot = plain.model_copy(update={"original": original, "repairs": repairs})
    manifest = Manifest(files=snapshot.files, facts=facts_of(snapshot))
    assert snapshot_in(tmp_path, Manifest.model_validate_json(manifest.model_dump_json())) == snapshot
