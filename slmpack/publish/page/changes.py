"""The page's changes: one version against the one that held the alias before.

A figure is judged only where both versions have it and where it changed by more than noise. Timings of the two were
measured at different times, under an unknown load of the machine, so both are shown and neither is called better.
Requirements and chat templates are compared as text.
"""

import difflib
import math
import re
from collections.abc import Callable
from typing import Any, TypeGuard

from slmpack.figures import (
    bytes_shown,
    divergence_shown,
    load_shown,
    milliseconds_shown,
    rate_shown,
    ratio_shown,
    seconds_shown,
    share_shown,
)
from slmpack.publish.page.facts import Earlier, PageFacts
from slmpack.records import Record
from slmpack.reports import Speed

DIFF_LINES, DIFF_LINE_CHARACTERS, TEMPLATE_LINES = 160, 300, 2000


class Compared(Record):
    """A figure that two versions are compared by.

    Attributes:
        form: how it is written.
        noise: share of the figure below which a change means nothing; None for a timing, which is never judged.
    """

    label: str
    key: str
    form: Callable[[float], str]
    less_is_better: bool
    noise: float | None


COMPARED = (
    Compared(label="perplexity ratio", key="perplexity_ratio", form=ratio_shown, less_is_better=True, noise=0.005),
    Compared(label="mean KL, nats", key="mean_kl", form=divergence_shown, less_is_better=True, noise=0.02),
    Compared(label="top-1 agreement", key="top1_agreement", form=share_shown, less_is_better=False, noise=0.005),
    Compared(
        label="decode, tokens/s", key="decode_tokens_per_second", form=rate_shown, less_is_better=False, noise=None
    ),
    Compared(label="first token, ms", key="ttft_ms", form=milliseconds_shown, less_is_better=True, noise=None),
    Compared(label="load, s", key="load_seconds", form=seconds_shown, less_is_better=True, noise=None),
    Compared(label="peak memory", key="peak_rss_bytes", form=bytes_shown, less_is_better=True, noise=0.02),
    Compared(label="size", key="size_bytes", form=bytes_shown, less_is_better=True, noise=0.002),
)


class Difference(Record):
    """One figure of two versions, in words: `judged` is better, worse, same, or why it cannot be said."""

    label: str
    before: str
    now: str
    change: str
    judged: str


def differences_of(facts: PageFacts, previous: Earlier) -> tuple[Difference, ...]:
    """Compare the figures; timings are shown, not judged."""
    now = figures_of(facts)
    before = {**(previous.quality or {}), **(previous.speed or {}), "size_bytes": previous.size_bytes}
    same_machine = previous.machine == facts.machine.model_dump()
    return tuple(compared(row, before.get(row.key), now.get(row.key), same_machine) for row in COMPARED)


def figures_of(facts: PageFacts) -> dict[str, Any]:
    """Return all figures by the names that `COMPARED` has."""
    quality = facts.quality.model_dump() if facts.quality else {}
    return {**quality, **facts.speed.model_dump(), "size_bytes": facts.size_bytes}


def compared(row: Compared, before: object, now: object, same_machine: bool) -> Difference:
    """Compare one figure of two versions, neither of which need be known."""
    label, before_shown, now_shown = row.label, figure_shown(before, row.form), figure_shown(now, row.form)
    if not (_is_number(before) and _is_number(now) and before > 0):
        return Difference(label=label, before=before_shown, now=now_shown, change="", judged="not comparable")
    share = now / before - 1
    change = f"{share:+.1%}".replace("+0.0", "0.0").replace("-0.0", "0.0")
    if row.noise is None:
        judged = "measured at another time" if same_machine else "another machine"
        return Difference(label=label, before=before_shown, now=now_shown, change=change, judged=judged)
    judged = "same" if abs(share) < row.noise else "better" if (share < 0) is row.less_is_better else "worse"
    return Difference(label=label, before=before_shown, now=now_shown, change=change, judged=judged)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure_shown(value: object, form: Callable[[float], str]) -> str:
    """Return a figure in words."""
    return form(value) if _is_number(value) else "not known"


class Spread(Record):
    """How far the timings of one version lie apart, in words; "" where they were measured once."""

    decode: str = ""
    ttft: str = ""
    measured: str = ""


def spread_of(speed: Speed) -> Spread:
    """Return the spread of the timings, and how loaded the machine was."""
    if speed.speed_repeats is None:
        return Spread()
    load = "" if speed.load_per_core is None else f"; load average {load_shown(speed.load_per_core)} per core meanwhile"
    return Spread(
        decode=_range_of(speed.decode_p10_tokens_per_second, speed.decode_p90_tokens_per_second, rate_shown),
        ttft=_range_of(speed.ttft_p10_ms, speed.ttft_p90_ms, milliseconds_shown),
        measured=f"{speed.speed_repeats} times: medians, with the 10th and the 90th percentile{load}",
    )


def _range_of(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    return "" if low is None or high is None else f"; {form(low)} to {form(high)}"


def requirement_changes(before: tuple[str, ...], now: tuple[str, ...]) -> tuple[str, ...]:
    """Say which pins were added, removed or changed, sorted by name."""
    old, new = (dict(line.partition("==")[::2] for line in lines) for lines in (before, now))
    changes = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            changes.append(f"{name} {new[name]} added")
        elif name not in new:
            changes.append(f"{name} {old[name]} removed")
        elif old[name] != new[name]:
            changes.append(f"{name} {old[name]} \N{RIGHTWARDS ARROW} {new[name]}")
    return tuple(changes)


def template_difference(before: str, now: str) -> tuple[str, ...]:
    """Return a unified diff of two chat templates, a Jinja tag a line: many templates are one long line."""
    old, new = (re.sub(r"(?<!\n)(?=\{[%{])", "\n", text).splitlines() for text in (before, now))
    if len(old) + len(new) > TEMPLATE_LINES:
        return (f"{len(old)} lines became {len(new)}: too many to show here",)
    lines = [line[:DIFF_LINE_CHARACTERS] for line in list(difflib.unified_diff(old, new, lineterm="", n=2))[2:]]
    if len(lines) > DIFF_LINES:
        lines[DIFF_LINES:] = [f"and {len(lines) - DIFF_LINES} more lines"]
    return tuple(lines) or ("only line breaks changed",)


def changes_of(facts: PageFacts) -> str:
    """Say in one sentence what the next user would notice against the version before."""
    previous = facts.previous
    if previous is None:
        return f"First version under the alias {facts.alias}."
    changes = [
        f"{row.label.partition(',')[0]} {row.change} ({row.judged})"
        for row in differences_of(facts, previous)
        if row.judged in {"better", "worse"}
    ]
    if previous.chat_template is not None and previous.chat_template != facts.chat_template:
        changes.append("chat template changed")
    if previous.requirements is not None and requirement_changes(previous.requirements, facts.requirements):
        changes.append("requirements changed")
    if previous.licence is not None and previous.licence != facts.licence:
        changes.append("licence changed")
    return f"Against version {previous.version}: {'; '.join(changes) or 'no figure changed beyond noise'}."
