"""Findings: what a chat template does with the words of a message that it may not, as it is written."""

from collections.abc import Mapping

from slmpack.checkpoint.chat_templates import template_environment
from slmpack.checkpoint.content_flow.expressions import TANGLED
from slmpack.checkpoint.content_flow.operations import Refused
from slmpack.checkpoint.content_flow.statements import require_open
from slmpack.checkpoint.content_flow.written import NumberedTemplate
from slmpack.records import Record


class Finding(Record):
    """One place in a template.

    Attributes:
        line: of the template, from 1.
        tag: as it is written, on one line.
        reason: what is wrong with it, after "which".
    """

    line: int
    tag: str
    reason: str


def finding_in(text: str, specials: Mapping[str, str]) -> Finding | None:
    """Return the first place where a template that compiles depends on the words of a message, if there is one.

    Args:
        text: the template.
        specials: special tokens by the names that the template has for them, such as `bos_token`.
    """
    template = NumberedTemplate(text, template_environment())
    try:
        require_open(template.tree, specials)
    except Refused as refused:
        place = refused.place or 0
        return Finding(line=template.line_of(place), tag=template.tag_at(place), reason=refused.reason)
    except RecursionError:
        return Finding(line=1, tag="the whole of it", reason=TANGLED)
    return None
