"""Open templates: no chat template of a model depends on what a message says, or the user gave a reason why it may.

checkpoint: its templates and special tokens --+
package:    chat_format.json                 --+--> first finding --> error, or waived by a reason
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from slmpack.checkpoint.chat_format import CHAT_FORMAT
from slmpack.checkpoint.chat_templates import (
    DEFAULT,
    NAMED_TEMPLATES,
    SETTINGS,
    TEMPLATE,
    require_compiling,
    templates_of,
)
from slmpack.checkpoint.content_flow.findings import finding_in
from slmpack.errors import CheckError, SourceError
from slmpack.machine.json_file import read_json
from slmpack.records import Record
from slmpack.reports import TemplateReport

logger = logging.getLogger(__name__)

_SPECIALS = (SETTINGS, "special_tokens_map.json")
EXPECTED = "branches by role, by kind, by emptiness, and by markers such as </think>"
ADVICE = "take the base model's template, or give a reason: --waive-template REASON"


class Templates(Record):
    """The templates of a model, by name, and its special tokens by the names that templates have for them."""

    texts: dict[str, str]
    specials: dict[str, str]


def read_templates(folder: Path) -> Templates:
    """Return the templates of a package, or of a checkpoint; a checkpoint may have none.

    Raises:
        SourceError: one of them cannot be read.
    """
    if (folder / CHAT_FORMAT).is_file():
        stored = read_json(folder / CHAT_FORMAT)
        texts = {DEFAULT: stored["chat_template"], "tool_use": stored["tool_template"]}
        specials = {name: text for name, text in stored["special_tokens"].items() if isinstance(text, str)}
        return Templates(texts={name: text for name, text in texts.items() if text}, specials=specials)
    found = templates_of(folder)
    for each in found.values():
        require_compiling(each)
    return Templates(texts={name: each.text for name, each in found.items()}, specials=_specials_of(folder))


def is_template_file(name: str) -> bool:
    """Say whether `read_templates` reads a file, by its path in the checkpoint."""
    return name in {TEMPLATE, *_SPECIALS} or (name.startswith(f"{NAMED_TEMPLATES}/") and name.endswith(".jinja"))


def _specials_of(folder: Path) -> dict[str, str]:
    """Return the special tokens that both files of a tokenizer agree on; any other may be any text."""
    found: dict[str, set[str]] = {}
    for path in (folder / name for name in _SPECIALS):
        settings: Mapping[str, object] = read_json(path) if path.is_file() else {}
        for name, value in settings.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                found.setdefault(name, set()).add(text)
    return {name: texts.pop() for name, texts in found.items() if len(texts) == 1}


def judge_templates(
    folder: Path,
    where: str,
    waiver: str | None,
    base_template: str | None = None,
    failure: type[SourceError] | type[CheckError] = SourceError,
) -> TemplateReport:
    """Look at every template of a checkpoint or a package.

    Args:
        where: what to call the model in an error.
        waiver: the reason for taking a template all the same; the report has it only where one was needed.
        base_template: that of the model that this one was made of, where it is known.

    Raises:
        SourceError: a template depends on what a message says, and there is no waiver; or it cannot be read.
    """
    templates = read_templates(folder)
    report = TemplateReport(base_template=base_template, template=templates.texts.get(DEFAULT))
    if report.differs_from_base:
        logger.warning("%s has another chat template than its base; the version's page has the difference", where)
    for name, text in templates.texts.items():
        if (finding := finding_in(text, templates.specials)) is None:
            continue
        named = "" if name == DEFAULT else f" {name}"
        found = f"line {finding.line} of the chat template{named} of {where}: {finding.tag}, which {finding.reason}"
        if waiver is None:
            raise failure(found, EXPECTED, ADVICE)
        logger.warning("%s; waived: %s", found, waiver)
        return report.model_copy(update={"finding": found, "waiver": waiver})
    return report
