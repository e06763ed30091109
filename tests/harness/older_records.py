"""Records as releases before `Snapshot.original` wrote them, and new ones written in that form."""

import json
from pathlib import Path

FOLDER = Path(__file__).with_name("older_records")
GGUF_MANIFEST, GPTQ_MANIFEST, PROVENANCE = (
    FOLDER / name for name in ("gguf_manifest.json", "gptq_manifest.json", "slmpack.json")
)


def write_older_manifest(path: Path) -> None:
    """Write the manifest of a snapshot that was a GPTQ checkpoint in the older form."""
    manifest = json.loads(path.read_text())
    original = json.loads(manifest["facts"].pop("original"))
    manifest["facts"]["quantised"] = json.dumps(
        {"label": original["form"], "bits": original["bits"], "obstacle": original["unsupported_reason"], "version": 1}
    )
    replace(path, manifest)


def write_older_provenance(path: Path) -> None:
    """Write the `slmpack.json` of a model that was a GGUF file in the older form."""
    told = json.loads(path.read_text())
    told["snapshot"]["stored_types"] = told["snapshot"].pop("original")["storages"]
    replace(path, told)


def replace(path: Path, value: object) -> None:
    path.unlink()  # it is read-only, and may have a second name
    path.write_text(json.dumps(value, indent=1) + "\n")
