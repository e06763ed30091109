"""What a snapshot was before it was dequantised."""

from pathlib import Path

from slmpack.checkpoint.blocks import Bits
from slmpack.machine.store import MANIFEST, Manifest
from slmpack.records import Record

FACT = "quantised"  # of the snapshot's manifest: a `KeptForm` as JSON


KEPT = "kept"  # the workspace's folders of what the builder takes


VERSION = 1  # counts up when what is made of a quantised checkpoint changes, so that it is made again


class KeptForm(Record):
    """What a snapshot was before it was dequantised.

    Attributes:
        label: such as `GPTQ, 4 bits, groups of 128`.
        bits: of its weights: targets with as many may take them as they are.
        obstacle: why the builder cannot take the codes as they are, None if it can.
        version: of what made the snapshot.
    """

    label: str
    bits: Bits
    obstacle: str | None
    version: int = VERSION


def kept_form(snapshot_path: Path) -> KeptForm | None:
    """Return what a snapshot was before it was dequantised; None if it was not quantised so."""
    if not (snapshot_path / MANIFEST).is_file():  # a folder of the user's own
        return None
    fact = Manifest.read(snapshot_path).facts.get(FACT)
    return KeptForm.model_validate_json(str(fact)) if fact else None


def kept_folder(snapshot_path: Path) -> Path:
    """Return where the checkpoint is that the builder takes in place of a snapshot, if its form has no obstacle."""
    return snapshot_path.parents[1] / KEPT / snapshot_path.name


def kept_sentence(form: KeptForm, was_kept: bool) -> str:
    """Return what became of quantised weights, for the version's page."""
    if was_kept:
        return f"weights kept as they were quantised ({form.label}), without loss"
    reason = form.obstacle or f"the target has other than {form.bits} bits"
    return f"weights quantised again from {form.label}, since {reason}"
