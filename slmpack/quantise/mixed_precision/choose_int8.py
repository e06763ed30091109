"""Int8 choice: which groups of matrices have 8 bits, where there is room for some."""

from collections.abc import Sequence

from slmpack.quantise.mixed_precision.groups import Group

SHOWN = 6  # groups by name in a sentence; the rest are counted


def choose_int8(groups: Sequence[Group], budget_bytes: float, extra_bytes_per_weight: float) -> tuple[Group, ...]:
    """Return the groups to have in 8 bits, what saves most for its bytes first; of equal ones the earlier first.

    One that does not fit any more is passed over for smaller ones. What loses nothing in 4 bits is not raised.

    Args:
        groups: every one that could be raised, but the head.
        budget_bytes: room for all of them together.
        extra_bytes_per_weight: of 8 bits over 4.
    """
    left, chosen = budget_bytes, []
    for group in sorted(groups, key=lambda group: group.loss / group.weights, reverse=True):
        cost = group.weights * extra_bytes_per_weight
        if group.loss > 0 and cost <= left:
            left -= cost
            chosen.append(group)
    return tuple(chosen)


def describe_int8(chosen: Sequence[Group], measured: bool) -> tuple[str, ...]:
    """Return sentences for a version's page: what has 8 bits beside the head, in the order of the choice, and why."""
    if not chosen:
        return ("8 bits: the head",)
    shown = ", ".join(f"{group.name}{f' (KL {group.loss:.2g})' if measured else ''}" for group in chosen[:SHOWN])
    more = f", {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
    why = "what each costs alone in 4 bits was measured" if measured else "what each costs in 4 bits was estimated"
    return (
        f"8 bits: the head, {shown}{more}",
        f"those are the groups of matrices that save most for their size: {why}",
    )
