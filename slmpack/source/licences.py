"""Licences: a source whose licence the policy refuses ends the run.

    resolve -> check_source -> fetch -> check_snapshot -> build

Before the download counts what the source states: a Hub repository's card and licence files, a folder's, a logged
model's metadata, each with those of the base of an adapter. What only the files tell (a GGUF's header, a wheel's
licence) counts before the build.
"""

import logging

from slmpack.checkpoint.licence import joined_licences
from slmpack.checkpoint.licence_names import is_known, likely_name
from slmpack.checkpoint.licence_terms import UNKNOWN, Verdict, canonical_name, names_a_licence, names_in, verdict_of
from slmpack.errors import LicenceError, UsageError
from slmpack.records import ModelSource, Snapshot, SourceKind
from slmpack.reports import LicencePolicy

logger = logging.getLogger(__name__)

TOLD_BEFORE = (SourceKind.HUB, SourceKind.FOLDER)  # their files tell nothing more than is known when they are resolved


def check_policy(policy: LicencePolicy) -> None:
    """Refuse a policy with a name that no licence has: misspelt, it would refuse or allow nothing.

    Raises:
        UsageError: there is one.
    """
    for option, names in (("allow", policy.allow), ("refuse", policy.refuse)):
        for name in names:
            if not is_known(name):
                found = f"--{option}-licence {name} (options.licences.{option}), which is no licence that is known"
                raise UsageError(found, "one licence's name of SPDX's list or the Hub's", likely_name(name))


def check_source(source: ModelSource, policy: LicencePolicy) -> None:
    """Refuse a source before it is downloaded, by what it and its base state.

    Raises:
        LicenceError: a licence of the chain is refused; or is unknown, and the policy refuses that.
    """
    chain = [source, *filter(None, [source.base])]
    stated = joined_licences(each.licence for each in chain)
    _refuse(source.text, stated, policy, may_be_told=any(each.kind not in TOLD_BEFORE for each in chain))


def check_snapshot(snapshot: Snapshot, policy: LicencePolicy) -> None:
    """Refuse a checkpoint before anything is made of it; warn if its licence is unknown, unless the policy allows that.

    Raises:
        LicenceError: as `check_source`.
    """
    check_licence(snapshot.source.text, snapshot.licence, policy)


def check_licence(what: str, licence: str | None, policy: LicencePolicy) -> None:
    """Refuse a licence, or warn of it.

    Args:
        what: what to call the model.
        licence: all licences of its chain, None if there is none.

    Raises:
        LicenceError: as `check_source`.
    """
    verdict = _refuse(what, licence, policy)
    if verdict is Verdict.UNKNOWN and policy.unknown == "warn":
        logger.warning(
            "the licence of %s is %s; look it up before others use what is made of it", what, licence or UNKNOWN
        )


def judge_licence(licence: str | None, policy: LicencePolicy) -> Verdict:
    """Say what the policy says of a licence's text; None is unknown."""
    return verdict_of(licence or UNKNOWN, lambda name: _judged(name, policy))


def _judged(name: str, policy: LicencePolicy) -> Verdict:
    forms = {
        canonical_name(name),
        canonical_name(name.lower().partition(" with ")[0]),
    }  # an SPDX exception permits more
    if forms & {canonical_name(each) for each in policy.refuse}:
        return Verdict.REFUSED
    if forms & {canonical_name(each) for each in policy.allow}:
        return Verdict.ALLOWED
    if not names_a_licence(name):
        return Verdict.UNKNOWN
    return Verdict.REFUSED if policy.allow else Verdict.ALLOWED


def _refuse(what: str, licence: str | None, policy: LicencePolicy, *, may_be_told: bool = False) -> Verdict:
    """Refuse what the policy refuses; what is unknown only if its files will not tell more."""
    verdict = judge_licence(licence, policy)
    if verdict is Verdict.REFUSED:
        names = names_in(licence or UNKNOWN)
        refused = [name for name in names if _judged(name, policy) is Verdict.REFUSED]
        of_which = "" if refused == names else f", of which {', '.join(dict.fromkeys(refused))} is refused"
        raise LicenceError(f"{what} has the licence {licence}{of_which}", _expected(policy), _ADVICE)
    if verdict is Verdict.UNKNOWN and policy.unknown == "refuse" and not may_be_told:
        raise LicenceError(f"the licence of {what} is {licence or UNKNOWN}", _expected(policy), _UNKNOWN_ADVICE)
    return verdict


_ADVICE = "take another model, or change --allow-licence or --refuse-licence (options.licences)"
_UNKNOWN_ADVICE = "have the source state its licence, or give --unknown-licence warn (options.licences.unknown)"


def _expected(policy: LicencePolicy) -> str:
    if policy.allow:
        return f"one of {', '.join(policy.allow)}"
    return f"any but {', '.join(policy.refuse)}" if policy.refuse else "one that is known"
