"""Licence terms: what a licence's text asks for, judged name by name.

    mit and (gpl-3.0 or apache-2.0)    both parts hold; of the second the licensee chooses one

Names are those of the Hub (`apache-2.0`, `llama3.1`, any `license_name`) and of SPDX (`GPL-3.0-or-later`). Texts come
from strangers: what is no expression is judged by every name in it, and is never better than unknown.

Source: SPDX specification 3.0, annex "SPDX license expressions"; the Hub's documentation, "Licenses".
"""

import re
from collections.abc import Callable
from enum import IntEnum

UNKNOWN = "unknown"
CUT = "..."  # at the end of a text that was too long to be kept
# Names that say only that there is a licence, or that nobody looked.
_UNNAMED = frozenset({UNKNOWN, "other", "noassertion", "none", ""})
_SEE = "see "  # a file of the checkpoint, see `licence_of`
_OTHER_NAMES = {
    "apache-license-2.0": "apache-2.0",
    "mit-license": "mit",
    "odbl": "odbl-1.0",
    "odc-by": "odc-by-1.0",
    "pddl": "pddl-1.0",
}
OWN_NAME = "licenseref-"  # before a name that is not of SPDX's list. Source: as above
_PRECEDENCE = {"or": 1, "and": 2}


class Verdict(IntEnum):
    """What a policy says of a licence, from the strictest; the strictest of a chain is its smallest."""

    REFUSED = 0
    UNKNOWN = 1
    ALLOWED = 2


def canonical_name(name: str) -> str:
    """Return what spellings of a licence have in common: `GPL-3.0-or-later` is `gpl-3.0`, `LicenseRef-x` is `x`."""
    plain = re.sub(r"\s+", "-", name.strip().lower()).removeprefix(OWN_NAME)
    plain = re.sub(r"(-only|-or-later|\+)$", "", plain)
    return _OTHER_NAMES.get(plain, plain)


def names_a_licence(name: str) -> bool:
    """Say whether a name tells which licence it is."""
    plain = name.strip().lower()
    return plain not in _UNNAMED and not plain.startswith(_SEE) and not plain.endswith(CUT)


def verdict_of(text: str, judge: Callable[[str], Verdict]) -> Verdict:
    """Judge a licence's text: the strictest of what is joined by `and`, the mildest of a choice.

    Args:
        judge: says what counts for one name.
    """
    tokens = _tokens_of(text)
    try:
        return _evaluated(tokens, judge)
    except IndexError:  # a bracket or a name too few
        names = [token for token in tokens if token not in ("and", "or", "(", ")")]
        return min(Verdict.UNKNOWN, *map(judge, names or [UNKNOWN]))


def names_in(text: str) -> list[str]:
    """Return the names of the licences in a text, in its order."""
    return [token for token in _tokens_of(text) if token not in ("and", "or", "(", ")")]


def _tokens_of(text: str) -> list[str]:
    """Divide a text at its operators, which are in lower case then; a comma joins as `and` does."""
    tokens: list[str] = []
    words: list[str] = []
    for word in re.findall(r"[(),]|[^\s(),]+", text):
        token = {",": "and"}.get(word, word.lower())
        if token not in ("and", "or", "(", ")"):
            words.append(word)
            continue
        tokens += [" ".join(words)] * bool(words) + [token]
        words = []
    return tokens + [" ".join(words)] * bool(words)


def _evaluated(tokens: list[str], judge: Callable[[str], Verdict]) -> Verdict:
    """Evaluate an expression without recursion: its depth is a stranger's.

    Raises:
        IndexError: it is none.
    """
    values: list[Verdict] = []
    operators: list[str] = []

    def apply() -> None:
        operator, right, left = operators.pop(), values.pop(), values.pop()
        values.append(min(left, right) if operator == "and" else max(left, right))

    before = "("
    for word in tokens:
        _require_order(before, word)
        if word == "(":
            operators.append(word)
        elif word == ")":
            while operators[-1] != "(":
                apply()
            operators.pop()
        elif word in _PRECEDENCE:
            while operators and _PRECEDENCE.get(operators[-1], 0) >= _PRECEDENCE[word]:
                apply()
            operators.append(word)
        else:
            values.append(judge(word))
        before = word
    while operators:
        apply()
    (value,) = values or [judge(UNKNOWN)]
    return value


def _require_order(before: str, word: str) -> None:
    """Refuse two operands, or two operators, beside each other."""
    begins_operand = word not in (*_PRECEDENCE, ")")
    wants_operand = before in (*_PRECEDENCE, "(")
    if begins_operand is not wants_operand:
        raise IndexError(word)
