"""Licence terms: a licence's text is judged name by name, whatever a stranger wrote there."""

import pytest

from slmpack.checkpoint.licence import joined_licences
from slmpack.checkpoint.licence_terms import Verdict, canonical_name, names_in
from slmpack.errors import UsageError
from slmpack.reports import LicencePolicy, UnknownLicence
from slmpack.source.licences import check_policy, judge_licence

REFUSED, UNKNOWN, ALLOWED = Verdict.REFUSED, Verdict.UNKNOWN, Verdict.ALLOWED
NO_GPL = LicencePolicy(refuse=("GPL-3.0-only", "cc-by-nc-4.0"))


@pytest.mark.parametrize(
    "name",
    [
        "mit", "MIT", "Apache-2.0", "apache license 2.0", "MIT License", "gpl-3.0", "GPL-3.0-or-later", "GPL-3.0+",
        "lgpl", "gemma", "llama3", "Llama3.1", "other", "unknown", "openrail++", "LicenseRef-Tongyi-Qianwen", "odbl",
        "licenseref-ours", "GPL-3.0-only WITH GCC-exception-3.1", "0BSD",
    ],
)  # fmt: skip
def test_a_policy_is_made_of_names_that_licences_have(name: str) -> None:
    check_policy(LicencePolicy(allow=(name,)))
    check_policy(LicencePolicy(refuse=(name,)))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("apache-2", "did you mean apache-2.0?"),
        ("cc-by-nc4.0", "did you mean cc-by-nc-4.0?"),
        ("GPL3", "did you mean gpl"),
        ("lama3.1", "did you mean llama3.1?"),
        ("Tongyi Qianwen License", "write LicenseRef-tongyi-qianwen-license for a name that a model's card gives"),
        ("LicenseRef-", "write LicenseRef-"),
        ("mit AND gpl-3.0", "one licence's name"),
    ],
)
def test_a_name_that_no_licence_has_is_refused_with_what_was_probably_meant(name: str, advice: str) -> None:
    with pytest.raises(UsageError, match=f"--refuse-licence {name} .*, which is no licence that is known") as refused:
        check_policy(LicencePolicy(refuse=(name,)))
    assert advice in str(refused.value)


def test_a_name_of_a_cards_own_is_judged_with_and_without_its_prefix() -> None:
    policy = LicencePolicy(refuse=("LicenseRef-Tongyi-Qianwen-License",))
    assert judge_licence("Tongyi Qianwen License", policy) is REFUSED
    assert judge_licence("LicenseRef-tongyi-qianwen-license", policy) is REFUSED


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("mit", ALLOWED),
        ("gpl-3.0", REFUSED),
        ("GPL-3.0-or-later", REFUSED),
        ("GPL-3.0+", REFUSED),
        ("gpl-3.0 WITH GCC-exception-3.1", REFUSED),
        ("lgpl-3.0", ALLOWED),
        ("mit AND gpl-3.0", REFUSED),
        ("mit, gpl-3.0", REFUSED),
        ("MIT OR GPL-3.0-only", ALLOWED),  # the licensee chooses
        ("(mit or gpl-3.0) and cc-by-nc-4.0", REFUSED),
        ("mit or gpl-3.0 and cc-by-nc-4.0", ALLOWED),  # AND binds more tightly
        ("(mit or gpl-3.0) and (cc-by-nc-4.0 or apache-2.0)", ALLOWED),
        ("unknown and mit", UNKNOWN),
        ("unknown and gpl-3.0", REFUSED),
        ("other", UNKNOWN),
        ("see LICENSE", UNKNOWN),
        ("see LICENSE.txt and mit", UNKNOWN),
        ("llama3.1", ALLOWED),
        ("Tongyi Qianwen License", ALLOWED),
        # no expression: every name in it counts, and none of it is known
        ("mit and gpl-3.0)", REFUSED),
        ("mit) and mit", UNKNOWN),
        ("and and", UNKNOWN),
        ("mit or", UNKNOWN),
        ("mit (or gpl-3.0", REFUSED),
        (") or (", UNKNOWN),
        ("()", UNKNOWN),
        ("(" * 5000 + "gpl-3.0" + ")" * 5000, REFUSED),
        ("mit and " * 40 + "gp" + "...", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_a_licence_is_as_strict_as_the_strictest_part_that_has_to_hold(text: str | None, verdict: Verdict) -> None:
    assert judge_licence(text, NO_GPL) is verdict


def test_with_allowed_licences_any_other_is_refused_and_what_is_unknown_stays_unknown() -> None:
    policy = LicencePolicy(allow=("Apache-2.0", "MIT"), refuse=("gemma",))
    found = {
        text: judge_licence(text, policy)
        for text in ("apache-2.0", "Apache License 2.0", "mit and apache-2.0", "llama3.1", "mit and gemma", "other")
    }
    assert [*found.values()] == [ALLOWED, ALLOWED, ALLOWED, REFUSED, REFUSED, UNKNOWN]
    assert judge_licence("other", LicencePolicy(allow=("other",))) is ALLOWED  # somebody looked at it


def test_what_is_refused_is_refused_in_every_spelling() -> None:
    assert {canonical_name(each) for each in ("GPL-3.0-only", "gpl-3.0", "GPL 3.0+")} == {"gpl-3.0"}
    assert names_in("(MIT or the  Unlicense), odbl") == ["MIT", "the Unlicense", "odbl"]


def test_a_chain_has_all_its_licences_the_unknown_as_well() -> None:
    assert joined_licences(["apache-2.0", "mit"]) == "apache-2.0 and mit"
    assert joined_licences(["mit", "mit"]) == "mit"
    assert joined_licences([None, "mit"]) == "unknown and mit"
    assert joined_licences(["mit OR gpl-3.0", "gpl-3.0"]) == "(mit OR gpl-3.0) and gpl-3.0"
    assert joined_licences([None, None]) is None
    assert judge_licence(joined_licences(["mit OR gpl-3.0", "gpl-3.0"]), NO_GPL) is REFUSED


def test_a_policy_that_contradicts_itself_or_names_no_licence_is_none() -> None:
    for wrong in ({"allow": ["MIT"], "refuse": ["mit"]}, {"refuse": ["mit, gpl-3.0"]}, {"refuse": [" "]}):
        with pytest.raises(ValueError, match=r"both allowed and refused|should match pattern"):
            LicencePolicy.model_validate(wrong)
    assert LicencePolicy().unknown is UnknownLicence.WARN
