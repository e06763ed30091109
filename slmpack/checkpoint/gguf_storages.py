"""How a GGUF file stored each matrix, as the snapshot's manifest has it."""

import json
from pathlib import Path

from slmpack.machine.store import MANIFEST, Manifest

FACT = "gguf_storages"  # of the snapshot's manifest: JSON, a matrix's name to its storage in the GGUF file


FLOATS = ("F32", "F16", "BF16")


def kept_types(snapshot_path: Path) -> dict[str, str]:
    """Return how the GGUF file stored each matrix (`Q4_0`, `F16`), by its name in the snapshot; {} of other sources."""
    if not (snapshot_path / MANIFEST).is_file():  # a folder of the user's own
        return {}
    fact = Manifest.read(snapshot_path).facts.get(FACT)
    types: dict[str, str] = json.loads(str(fact)) if fact else {}
    return types
