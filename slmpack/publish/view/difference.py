"""Difference: two versions of one model side by side; only what differs, and how much does not.

Figures are compared as the page compares them: one that changed by less than noise counts as unchanged, and timings,
which were measured at different times, are shown and not judged.
"""

from collections.abc import Iterator

from slmpack.figures import ratio_shown
from slmpack.publish.named_version import require_one_name
from slmpack.publish.page.changes import (
    COMPARED,
    Compared,
    Difference,
    compared,
    requirement_changes,
    template_difference,
)
from slmpack.publish.view.version import VersionView
from slmpack.publish.view.words import NOTHING, shown, table
from slmpack.records import Record

ON_CHATS = Compared(
    label="perplexity ratio on chats",
    key="chat_perplexity_ratio",
    form=ratio_shown,
    less_is_better=True,
    noise=0.005,
)
FIGURES = (COMPARED[0], ON_CHATS, *COMPARED[1:])
FACTS = (
    "target",
    "interface",
    "recipe",
    "source",
    "revision",
    "base",
    "base_revision",
    "licence",
    "waiver",
    "template_waiver",
    "unhealthy",
    "signed_by",
    "digest",
)
FACTS_OF_PAGES = ("state", "machine")
SHORT_CELL = 44
UNCHANGED = "same"


class FigureChange(Record):
    """A figure that differs; None where it is not known.

    Attributes:
        judged: better or worse; of a timing, or where one is not known, why it cannot be said.
    """

    key: str
    label: str
    before: float | None
    now: float | None
    change: str
    judged: str


class FactChange(Record):
    """A fact that differs; None where it is not known or there is none."""

    label: str
    before: str | None
    now: str | None


class VersionDifference(Record):
    """How `now` differs from `before`.

    Attributes:
        requirements: which pins differ, a phrase each; None where those of one version are not known.
        template: a unified diff of the chat templates, empty if they are the same; None where one is not known.
        unchanged: how many of all figures and facts that are known are the same, or differ by less than noise.
    """

    name: str
    before: int
    now: int
    figures: tuple[FigureChange, ...]
    facts: tuple[FactChange, ...]
    requirements: tuple[str, ...] | None
    template: tuple[str, ...] | None
    unchanged: int


def compare_versions(before: VersionView, now: VersionView) -> VersionDifference:
    """Compare two versions of one model, of which the first counts as the older one.

    Raises:
        UsageError: they are of two models.
    """
    require_one_name(before.model_uri, now.model_uri)
    same_machine = before.machine is not None and before.machine == now.machine
    rows = [(row, compared(row, before.figures[row.key], now.figures[row.key], same_machine)) for row in FIGURES]
    known = [(row, found) for row, found in rows if (before.figures[row.key], now.figures[row.key]) != (None, None)]
    figures = [(row, found) for row, found in known if found.before != found.now and found.judged != UNCHANGED]
    facts = [fact for fact in _facts_of(before, now) if (fact.before, fact.now) != (None, None)]
    changed = [fact for fact in facts if fact.before != fact.now]
    requirements, template = _requirements(before, now), _template(before, now)
    texts = [each for each in (requirements, template) if each is not None]
    return VersionDifference(
        name=now.name,
        before=before.version,
        now=now.version,
        figures=tuple(_figure(row, found, before, now) for row, found in figures),
        facts=tuple(changed),
        requirements=requirements,
        template=template,
        unchanged=len(known) - len(figures) + len(facts) - len(changed) + sum(not each for each in texts),
    )


def _figure(row: Compared, found: Difference, before: VersionView, now: VersionView) -> FigureChange:
    return FigureChange(
        key=row.key,
        label=row.label,
        before=before.figures[row.key],
        now=now.figures[row.key],
        change=found.change,
        judged=found.judged,
    )


def _facts_of(before: VersionView, now: VersionView) -> Iterator[FactChange]:
    """Yield what is no figure; what only pages tell, where both versions have one."""
    both = before.state is not None and now.state is not None
    for label in FACTS + (FACTS_OF_PAGES if both else ()):
        yield FactChange(label=label, before=getattr(before, label), now=getattr(now, label))
    for label in ("trained_on", "quantisation") if both else ("trained_on",):
        texts = ("; ".join(getattr(each, label)) or None for each in (before, now))
        yield FactChange(label=label, before=next(texts), now=next(texts))
    loops = (each.quality["new_loops"] for each in (before, now))
    yield FactChange(label="new_loops", before=_count(next(loops)), now=_count(next(loops)))


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


def _requirements(before: VersionView, now: VersionView) -> tuple[str, ...] | None:
    if before.requirements is None or now.requirements is None:
        return None
    return requirement_changes(before.requirements, now.requirements)


def _template(before: VersionView, now: VersionView) -> tuple[str, ...] | None:
    if before.chat_template is None or now.chat_template is None:
        return None
    return (
        ()
        if before.chat_template == now.chat_template
        else template_difference(before.chat_template, now.chat_template)
    )


def difference_lines(found: VersionDifference) -> list[str]:
    """Return the difference for a person: a table of what is short, then what is long, then the count."""
    forms = {row.key: row.form for row in FIGURES}
    head = ("", f"version {found.before}", f"version {found.now}", "", "")
    figures = [
        (each.label, *(NOTHING if value is None else forms[each.key](value) for value in (each.before, each.now)),
         each.change, each.judged)
        for each in found.figures
    ]  # fmt: skip
    short = [each for each in found.facts if len(_longer(each)) <= SHORT_CELL]
    rows = [
        head,
        *figures,
        *((_words(each.label), each.before or NOTHING, each.now or NOTHING, "", "") for each in short),
    ]
    lines = [shown(f"{found.name}: version {found.before} against version {found.now}")]
    lines += table(rows) if len(rows) > 1 else []
    for each in found.facts:
        if each not in short:
            lines += [
                f"{_words(each.label)}:",
                f"  - {shown(each.before or NOTHING)}",
                f"  + {shown(each.now or NOTHING)}",
            ]
    lines += _listed("requirements", found.requirements) + _listed("chat template", found.template)
    return [*lines, f"unchanged: {found.unchanged}"]


def _longer(fact: FactChange) -> str:
    return max(fact.before or "", fact.now or "", key=len)


def _words(label: str) -> str:
    return label.replace("_", " ")


def _listed(label: str, changes: tuple[str, ...] | None) -> list[str]:
    if changes is None:
        return [f"{label}: not known of both"]
    return [f"{label}:", *(f"  {shown(each)}" for each in changes)] if changes else []
