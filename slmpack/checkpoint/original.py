"""Original: the form that a snapshot's weights had in their source, and what a package has of it.

A GGUF file's storages are in the snapshot's record alone. Of a GPTQ, AWQ or Olive checkpoint there is a folder, too:

    <workspace>/snapshots/<key>/    the plain weights
    <workspace>/codes/<key>/        the codes, as the builder takes them, unless it does not support them
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from slmpack.checkpoint.blocks import Bits
from slmpack.records import Original

CODES = "codes"  # the workspace's folders of checkpoints with codes
OLDER_CODES = "kept"  # their name in workspaces of earlier releases
GGUF = "GGUF"
LOSSLESS: dict[str, Bits] = {"Q4_0": 4, "Q8_0": 8}  # storages whose codes and scales MatMulNBits has, too
FLOATS = ("F32", "F16", "BF16")


def codes_folder(snapshot_path: Path) -> Path:
    """Return the folder of the checkpoint with codes that the builder takes in place of a snapshot."""
    return snapshot_path.parents[1] / CODES / snapshot_path.name


def original_gguf(storages: dict[str, str]) -> Original:
    """Return the record of a GGUF file.

    Args:
        storages: the storage of each matrix (`Q4_0`), by the matrix's name in the snapshot.
    """
    return Original(form=GGUF, storages=dict(sorted(storages.items())))


def storages_of(original: Original | None) -> dict[str, str]:
    """Return how a GGUF file stored each matrix; {} of other sources."""
    return original.storages if original else {}


def original_sentences(original: Original | None, *, has_codes: bool, lossless: Collection[str]) -> tuple[str, ...]:
    """Return what became of the original weights in a package, a sentence each, for the version's page.

    Args:
        original: of the snapshot that the package was built from.
        has_codes: whether the package has the codes of a quantised checkpoint.
        lossless: names of the matrices of a GGUF file whose codes and scales the package has.
    """
    if original is None:
        return ()
    if original.is_checkpoint:
        return (_checkpoint_sentence(original, has_codes),)
    storages = original.storages.items()
    counted = Counter((storage, name in lossless) for name, storage in storages if storage not in FLOATS)
    return tuple(
        _storage_sentence(storage, is_lossless, number) for (storage, is_lossless), number in counted.most_common()
    )


def _checkpoint_sentence(original: Original, has_codes: bool) -> str:
    if has_codes:
        return f"weights kept as they were quantised ({original.form}), without loss"
    reason = original.unsupported_reason or f"the target has other than {original.bits} bits"
    return f"weights quantised again from {original.form}, since {reason}"


def _storage_sentence(storage: str, is_lossless: bool, number: int) -> str:
    matrices = "1 matrix" if number == 1 else f"{number} matrices"
    if is_lossless:
        return f"{matrices} kept as in the GGUF file ({storage}), without loss"
    if storage in LOSSLESS:
        return f"{matrices} quantised again from {storage}, since this recipe has another form for them"
    return f"{matrices} quantised again from {storage}, which has no fast form in ONNX Runtime"
