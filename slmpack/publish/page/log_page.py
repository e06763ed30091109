"""Proof: the page of a version, logged in the run that made it.

runs:/<run>/proof/version.html   every check with its figure, to be read by a person
runs:/<run>/proof/facts.json     the same for programs; the next version's page compares itself with it
runs:/<run>/proof/frontier.svg   size against quality of every recipe that was tried
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.log.tags import facts_in
from slmpack.publish.page.attempt import Attempt
from slmpack.publish.page.facts import Earlier, PageFacts, facts_of, read_earlier, summary_json
from slmpack.publish.page.frontier import frontier_svg
from slmpack.publish.page.machine import this_machine
from slmpack.publish.page.render import page_summary, version_page
from slmpack.records import Package, Record
from slmpack.reports import Check, QualityReport, SmokeReport, ValidationReport

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PAGE = "proof/version.html"
FACTS = "proof/facts.json"
FRONTIER = "proof/frontier.svg"


class Proofs(Record):
    """All that was found out about one model, and the recipes that were tried before it."""

    validation: ValidationReport
    quality: QualityReport
    smoke: SmokeReport
    attempts: tuple[Attempt, ...] = ()

    @property
    def are_on_hardware(self) -> bool:
        """Whether the package answered on the hardware that it is for."""
        return self.smoke.device.provider == self.smoke.model.package.target.provider

    def table(self) -> list[dict[str, str]]:
        """Return every check that held, a row each: the proof, the check and what was found."""
        validation = self.validation
        proofs = {
            "smoke": self.smoke.checks,
            "quality": self.quality.checks,
            "validation": validation.checks,
            "parity": validation.parity,
            "clean environment": validation.clean_environment,
        }
        return [
            {"proof": proof, "check": check.name, "found": " ".join(check.found.split())}
            for proof, checks in proofs.items()
            for check in checks
        ]


def page_facts(
    proofs: Proofs, integrity: Sequence[Check], version: int, alias: str, holder: "ModelVersion | None"
) -> PageFacts:
    """Gather what the page of `version` tells; `holder` has the alias until now."""
    validation = proofs.validation
    others: dict[str, tuple[Check, ...]] = {} if not validation.parity else {"parity": validation.parity}
    others |= {"clean environment": validation.clean_environment, "integrity": tuple(integrity)}
    return facts_of(
        validation,
        proofs.quality,
        proofs.smoke,
        version=version,
        alias=alias,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(proofs.smoke.device),
        chat_template=_chat_template(validation.model.package),
        others=others,
        attempts=proofs.attempts,
        previous=_earlier(holder),
    )


def log_page(facts: PageFacts, run_id: str) -> str:
    """Log the page in its run; return its summary in Markdown."""
    from mlflow import MlflowClient

    client = MlflowClient()
    client.log_text(run_id, version_page(facts), PAGE)
    client.log_text(run_id, summary_json(facts), FACTS)
    if facts.attempts:
        client.log_text(run_id, frontier_svg(facts.attempts, facts.policy), FRONTIER)
    return page_summary(facts)


def page_uri(run_id: str) -> str:
    """Return where the page of a run is."""
    return f"runs:/{run_id}/{PAGE}"


def _chat_template(package: Package) -> str | None:
    path: Path = package.path / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def page_facts_text(run_id: str | None) -> str:
    """Return the facts of the page of a run as they were logged; "" where it has none."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return str(mlflow.artifacts.load_text(f"runs:/{run_id}/{FACTS}"))
    except (MlflowException, OSError):  # published by an earlier release, or its run was deleted
        return ""


def _earlier(holder: "ModelVersion | None") -> Earlier | None:
    """Read the facts of the version that holds the alias; one that has none is known by its number."""
    if holder is None:
        return None
    return read_earlier(page_facts_text(facts_in(holder.tags).get("mlflow_run")) or "{}", int(holder.version))
