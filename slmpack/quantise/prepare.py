r"""Preparation: what is found out about a model before its weights are quantised, as far as the recipe asks for it.

    calibrate --energies--> fold_channels --> measure_sensitivity --> choose_int8
                                        \--> quantise_by_gptq

Each runs the source in a child and keeps what it found in the workspace, so that the next recipe need not.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from slmpack.checkpoint.blocks import Bits
from slmpack.checkpoint.headers import read_weights
from slmpack.checkpoint.original import LOSSLESS, codes_folder, storages_of
from slmpack.machine.store import Manifest
from slmpack.quantise.awq.fold import FOLD, fold_channels, read_fold
from slmpack.quantise.calibrate import CALIBRATION, calibrate, read_energy
from slmpack.quantise.gptq.codes_file import open_gptq
from slmpack.quantise.gptq.gptq import GPTQ, quantise_by_gptq
from slmpack.quantise.lossless import BLOCK_SIZE
from slmpack.quantise.mixed_precision.choose_int8 import choose_int8, describe_int8
from slmpack.quantise.mixed_precision.sensitivity import SENSITIVITY, measure_sensitivity, read_sensitivity
from slmpack.quantise.plan import Plan
from slmpack.records import Record, Snapshot, digest_of
from slmpack.targets import BuilderOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slmpack.checkpoint.headers import Tensor
    from slmpack.quantise.mixed_precision.groups import Group


class Prepared(Record):
    """What was found out.

    Attributes:
        checkpoint: what the builder is to take in place of the snapshot: the same, as it was quantised; or None.
        calibration: what `calibrate` stored, or None.
        fold: what `fold_channels` stored, or None.
        int8: the checkpoint's tensors to have in 8 bits.
        stored: what `quantise_by_gptq` stored, or None.
        lossless: tensors that are whole multiples already, and of how many bits.
        remarks: sentences for the version's page.
    """

    checkpoint: Path | None = None
    calibration: Path | None = None
    fold: Path | None = None
    int8: tuple[str, ...] = ()
    stored: Path | None = None
    lossless: dict[str, Bits] = Field(default={})
    remarks: tuple[str, ...] = ()


def preparation_digest(options: BuilderOptions, calibration_text: str | None) -> str:
    """Return what a package depends on beside its snapshot and its options."""
    return digest_of(
        [
            CALIBRATION,
            calibration_text,
            FOLD if options.fold else None,
            SENSITIVITY if options.most_bytes else None,
            GPTQ if options.quantiser == "gptq" else None,
        ]
    )


def takes_codes(snapshot: Snapshot, options: BuilderOptions) -> bool:
    """Return whether a quantised checkpoint is taken as it is; the stock recipes quantise what it means."""
    original, bits = snapshot.original, 8 if options.precision == "int8" else 4
    same = original is not None and original.unsupported_reason is None and original.bits == bits
    return same and (options.weighted or options.precision == "int8")


def prepare(snapshot: Snapshot, options: BuilderOptions, calibration_text: str | None, workspace: Path) -> Prepared:
    """Run the source as often as the recipe needs it.

    Raises:
        UsageError: the text is too short.
        BuildError: activations that are not finite, or a run failed.
        WorkspaceError: the workspace is full.
    """
    if takes_codes(snapshot, options):  # what is left to quantise is the head
        calibration = calibrate(snapshot, calibration_text, workspace) if options.weighted else None
        return Prepared(checkpoint=codes_folder(snapshot.path), calibration=calibration)
    if not options.quantises:
        return Prepared()
    storages = storages_of(snapshot.original) if options.block_size == BLOCK_SIZE else {}
    lossless = {name: LOSSLESS[storage] for name, storage in storages.items() if storage in LOSSLESS}
    if not options.weighted:
        return Prepared(lossless={} if options.precision == "int4" else lossless)
    calibration = calibrate(snapshot, calibration_text, workspace)
    if not options.fold or 4 in lossless.values():  # folded, they would be no whole multiples any more
        return Prepared(calibration=calibration, lossless=lossless)
    fold = fold_channels(snapshot, calibration, workspace)
    raised: tuple[str, ...] = ()
    remarks = [_describe_fold(fold)]
    if options.most_bytes is not None:
        sensitivity = read_sensitivity(measure_sensitivity(snapshot, calibration, fold, workspace))
        room = room_for_int8(read_weights(snapshot.path), sensitivity.groups, options)
        chosen = choose_int8(sensitivity.groups, room, extra_bytes(options))
        raised = tuple(name for group in chosen for name in group.tensors)
        remarks += describe_int8(chosen, sensitivity.measured)
    gptq = options.quantiser == "gptq"
    return Prepared(
        calibration=calibration,
        fold=fold,
        int8=raised,
        stored=quantise_by_gptq(snapshot, fold, calibration_text, workspace, raised) if gptq else None,
        lossless=lossless,
        remarks=tuple(remarks),
    )


def _describe_fold(folder: Path) -> str:
    facts = Manifest.read(folder).facts
    if facts.get("reason"):
        return f"channels were not folded: {facts['reason']}"
    return (
        f"channels are scaled at {facts['pairs']} places, where inputs come from and where weights meet them: the "
        f"source's logits differ by at most {facts['largest_difference']} of their spread with it"
    )


def plan_of(prepared: Prepared, options: BuilderOptions) -> Plan:
    """Read what was stored, for the process that quantises."""
    return Plan(
        energies=read_energy(prepared.calibration) if prepared.calibration else {},
        zero_points=options.zero_points,
        fold=read_fold(prepared.fold) if prepared.fold else None,
        int8=frozenset(prepared.int8),
        stored=open_gptq(prepared.stored) if prepared.stored else {},
        lossless=prepared.lossless,
    )


def extra_bytes(options: BuilderOptions) -> float:
    """Return what a weight takes more in 8 bits, which have no zero points, than in 4 with them."""
    return 0.5 - (0.5 / options.block_size if options.zero_points else 0.0)


def room_for_int8(tensors: "Mapping[str, Tensor]", groups: "Sequence[Group]", options: BuilderOptions) -> float:
    """Return how many bytes the weights of `groups` may take beyond 4 bits and their zero points.

    The package may take `options.most_bytes` times what its weights take with scales alone, everything in 4 bits; the
    head's 8 bits come first. An embedding that is not the head too is a float's width, as norms are.
    """
    width = 2 if options.execution_provider == "cuda" else 4  # of scales and of what is not quantised
    names = {name for group in groups for name in group.tensors}
    matrices = {name: tensor.parameters for name, tensor in tensors.items() if len(tensor.shape) == 2}
    inside = sum(parameters for name, parameters in matrices.items() if name in names)
    outside = sorted(parameters for name, parameters in matrices.items() if name not in names)
    head, floats = outside[-1], sum(outside[:-1])
    small = (inside + head) * (0.5 + width / options.block_size) + floats * width
    zeros = inside * 0.5 / options.block_size if options.zero_points else 0.0
    return small * ((options.most_bytes or 1.0) - 1.0) - zeros - head * 0.5
