"""Licence: what a checkpoint's own files say of it."""

from pathlib import Path


def licence_of(folder: Path) -> str | None:
    """Return what a checkpoint says of its licence: the model card's `license`, else its licence file."""
    from huggingface_hub import metadata_load

    try:
        card = (metadata_load(folder / "README.md") or {}) if (folder / "README.md").is_file() else {}
    except Exception:  # YAML has many; a card is prose, and a broken one no reason to refuse a model
        card = {}
    stated = card.get("license_name") if card.get("license") == "other" else None
    if stated := stated or card.get("license"):
        return str(stated)
    files = (path for pattern in ("LICENSE*", "LICENCE*") for path in folder.glob(pattern) if path.is_file())
    for path in sorted(files):
        text = path.read_text(encoding="utf-8", errors="replace")
        if not is_placeholder(text):
            return _title(text) or f"see {path.name}"
    # Named by their SPDX identifier. Source: REUSE specification 3.3, "License files".
    named = sorted(path.stem.lower() for path in folder.glob("LICENSES/*") if path.is_file())
    return " and ".join(dict.fromkeys(named)) or None


def is_placeholder(text: str) -> bool:
    """Say whether a licence file is the note that MLflow writes where it found none."""
    return text.startswith("A license file could not be found")


def _title(text: str) -> str | None:
    if "Apache License" in text and "Version 2.0" in text:
        return "apache-2.0"
    return "mit" if "MIT License" in text[:200] else None
