"""The version's page: one HTML file from which a person decides whether to roll a version out.

    reports -> facts_of -> PageFacts -+-> version_page   the page, logged with the version
                                      +-> page_summary   markdown, for the version's description
                                      +-> summary_json -> read_earlier: what the next version compares itself with

What comes from outside (answers, licences, names) is text, never markup. `facts` has the facts and their JSON,
`findings` the checks with their limits, `changes` the comparison.
"""

import html
import json
import re
import shlex
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slmpack import figures
from slmpack.log.interfaces import input_example_of
from slmpack.plain_text import harmless, one_line
from slmpack.publish.page.changes import (
    COMPARED,
    changes_of,
    differences_of,
    figure_shown,
    figures_of,
    requirement_changes,
    spread_of,
    template_difference,
)
from slmpack.publish.page.facts import Earlier, PageFacts
from slmpack.publish.page.frontier import frontier_svg
from slmpack.records import Interface, Record

SHOWN_CHARACTERS = 1000  # of one text; more is cut, and the page says so
HEADLINES = {
    "proved": "Proved",
    "partly": "Proved in part",
    "waived": "Published with a waiver",
    "failed": "Not proved",
}


def version_page(facts: PageFacts) -> str:
    """Return the page as one HTML file: no script, nothing to fetch, the same bytes for the same facts."""
    state = state_of(facts)
    return (
        _environment()
        .get_template("version.html.j2")
        .render(
            facts=facts,
            state=state,
            headline=HEADLINES[state],
            verdict=verdict_of(facts),
            changes=changes_of(facts),
            shown={row.key: figure_shown(figures_of(facts).get(row.key), row.form) for row in COMPARED},
            figures=figures,
            spread=spread_of(facts.speed),
            differences=differences_of(facts, facts.previous) if facts.previous else (),
            requirement_changes=requirement_changes,
            template_difference=template_difference,
            # what frontier_svg returns is markup by construction: matplotlib escapes every text in it
            frontier=Markup(frontier_svg(facts.attempts, facts.policy)) if facts.attempts else None,  # noqa: S704
            commands=commands_of(facts),
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("slmpack.publish.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_cut,
    )


def _cut(value: Any) -> Any:
    """Keep one text from filling the page."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    value = harmless(value)
    if len(value) <= SHOWN_CHARACTERS:
        return value
    return f"{value[:SHOWN_CHARACTERS]} \N{HORIZONTAL ELLIPSIS} ({len(value):,} characters in all)"


def page_summary(facts: PageFacts) -> str:
    """Return at most 15 lines of markdown, with nothing from outside that could be markup."""
    limit = f", limit {figures.limit_shown(facts.policy.max_perplexity_ratio)}" if facts.quality else ""
    rows = differences_of(facts, facts.previous or Earlier(version=0))
    table = [
        f"| {row.label}{limit if row.key == 'perplexity_ratio' else ''} | {found.now} | {found.change} |"
        for row, found in zip(COMPARED, rows, strict=True)
        if row.key not in {"mean_kl", "load_seconds"}
    ]
    against = f"against version {facts.previous.version}" if facts.previous else ""
    title = f"**{_plain(facts.name)} version {facts.version} for {facts.target}: {HEADLINES[state_of(facts)].lower()}**"
    base = f" merged into {facts.base}" if facts.base else ""
    origin = f"{facts.source}{base}, licence {facts.licence or 'not stated'}, digest {facts.digest[:12]}"
    lines = [
        title,
        "",
        _plain(f"{verdict_of(facts)} {changes_of(facts)}"),
        "",
        f"| | version {facts.version} | {against} |",
        "|---|--:|--:|",
        *table,
        "",
        _plain(origin),
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Escape what is markup in Markdown or HTML, on one line that is not endless."""
    text = one_line(text)
    text = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "\N{HORIZONTAL ELLIPSIS}"
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", html.escape(text, quote=False))


def state_of(facts: PageFacts) -> Literal["proved", "partly", "waived", "failed"]:
    """Return what the page's headline says: proved only if every proof ran, every check held, and none was waived."""
    states = {finding.state for proof in facts.proofs for finding in proof.findings}
    if "failed" in states:
        return "failed"
    if facts.waiver is not None or "waived" in states:
        return "waived"
    return "proved" if all(proof.findings for proof in facts.proofs) else "partly"


def verdict_of(facts: PageFacts) -> str:
    """Say in one sentence what the proofs are worth."""
    judged = [finding for proof in facts.proofs for finding in proof.findings if finding.state != "reported"]
    short = [finding for finding in judged if finding.state != "passed"]
    held = f"{len(judged) - len(short)} of {len(judged)} checks held on {facts.machine.cpu}{_loss_of(facts)}"
    unheld = "".join(f"; not held: {f.name}, {f.found} (expected {f.threshold})" for f in short)
    skipped = "".join(f"; not run: {proof.name}" for proof in facts.proofs if not proof.findings)
    reasons = "".join(f"; {why}" for why in (facts.waiver, facts.template_waiver) if why is not None)
    reason = f"; published all the same, because: {reasons.removeprefix('; ')}" if reasons else ""
    return f"{held}{unheld}{skipped}{reason}."


def _loss_of(facts: PageFacts) -> str:
    if facts.quality is None:
        return ""
    ratio, limit = facts.quality.perplexity_ratio, facts.policy.max_perplexity_ratio
    return f", with {figures.ratio_shown(ratio)} times its source's perplexity (limit {figures.limit_shown(limit)})"


class Commands(Record):
    """What to type, to be copied as it is."""

    install: str
    load: str
    ask: str
    roll_back: str
    roll_back_shell: str | None


def commands_of(facts: PageFacts) -> Commands:
    """Return the commands that install, load, ask and roll back this version."""
    uri = f"models:/{facts.name}/{facts.version}"
    load = f"""import mlflow

# models:/{facts.name}@{facts.alias} is the version that holds the alias then
model = mlflow.pyfunc.load_model({json.dumps(uri)})
model.predict({json.dumps(input_example_of(facts.interface))})"""
    return Commands(
        install=shlex.join(["pip", "install", *facts.requirements]),
        load=load,
        ask=shlex.join(["slmpack", "chat", uri, "Hello"]),
        roll_back=_roll_back(facts),
        roll_back_shell=_roll_back_shell(facts),
    )


def _roll_back(facts: PageFacts) -> str:
    name, alias = json.dumps(facts.name), json.dumps(facts.alias)
    client = "from mlflow import MlflowClient\n\nMlflowClient()"
    if facts.previous is None:
        return f"{client}.delete_registered_model_alias({name}, {alias})"
    return f"{client}.set_registered_model_alias({name}, {alias}, {facts.previous.version})"


def _roll_back_shell(facts: PageFacts) -> str | None:
    """Return the command; it takes a target, and another interface than chat has another alias."""
    if facts.previous is None or facts.interface is not Interface.CHAT:
        return None
    return shlex.join(["slmpack", "rollback", facts.name, "--target", facts.target])
