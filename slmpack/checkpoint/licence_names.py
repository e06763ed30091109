"""Licence names: which of them a policy may be made of, so that a misspelt one does not refuse nothing.

    SPDX's identifiers    MIT, GPL-3.0-or-later
    the Hub's own         llama3.1, gemma, other
    LicenseRef-NAME       any name that a card gives as its `license_name`, or a deed of one's own

Sources: the SPDX licence list, as `packaging` has it; the Hub's documentation, "Licenses", on 2026-11-27.
"""

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from slmpack.checkpoint.licence_terms import OWN_NAME, canonical_name, names_in
from slmpack.suggest import did_you_mean

HUB_NAMES = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0",
    "eupl-1.1", "eupl-1.2", "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "grok2-community", "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl",
    "odbl-1.0", "odc-by", "odc-by-1.0", "ofl-1.1", "openmdw-1.0", "openrail", "openrail++", "osl-3.0", "other", "pddl",
    "pddl-1.0", "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
})  # fmt: skip


def is_known(name: str) -> bool:
    """Say whether a name is one of a single licence that somebody has given it."""
    if names_in(name) != [name]:  # an expression
        return False
    if name.lower().startswith(OWN_NAME):
        return len(name) > len(OWN_NAME)
    plain = canonical_name(name)
    return bool({plain, name.lower()} & HUB_NAMES) or any(_is_of_spdx(each) for each in (name, plain))


def likely_name(name: str) -> str:
    """Return `did you mean X?` for a name that is not known, and how a name of a card's own is written."""
    own = f"write LicenseRef-{canonical_name(name)} for a name that a model's card gives"
    return " ".join(filter(None, (did_you_mean(canonical_name(name), HUB_NAMES), own)))


def _is_of_spdx(name: str) -> bool:
    try:
        return bool(canonicalize_license_expression(name))
    except InvalidLicenseExpression:
        return False
