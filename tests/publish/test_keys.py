"""Keys: what makes a result another one is in the key that it is found again by."""

import json
from pathlib import Path
from typing import Any

import pytest

from slmpack.build.genai.builder import option_parts
from slmpack.build.select import recipe_digest
from slmpack.chats.dataset import ChatData, DataPolicy
from slmpack.errors import LicenceError
from slmpack.log.log import logged_digest
from slmpack.publish.options import PackageOptions
from slmpack.publish.request import check_request
from slmpack.publish.request_key import request_key, resolved_request
from slmpack.records import Interface, ModelSource, Recipe, SourceKind, Target, digest_of
from slmpack.reports import LicencePolicy
from slmpack.retrain.evaluate import RetrainPolicy, retrain_key
from slmpack.retrain.refusals import tag_of
from slmpack.retrain.training.settings import TrainSettings
from slmpack.source.fetch import snapshot_key
from slmpack.targets import options_for

WHEEL = ModelSource(
    text="pypi://a==1/small.gguf", kind=SourceKind.WHEEL, location="a==1", revision="1", member="small.gguf", name="a"
)
DATA = ChatData(
    name="chats.jsonl", files=(), digest="1" * 64, training_digest="2" * 64, held_out_digest="3" * 64, lines=300,
    chats=300, held_out=30, bad=0, duplicates=0, repaired=0, first_bad=(), policy=DataPolicy(),
)  # fmt: skip


def test_two_files_of_a_wheel_are_two_snapshots() -> None:
    other = WHEEL.model_copy(update={"member": "large.gguf"})
    later = WHEEL.model_copy(update={"location": "a==2", "revision": "2"})
    assert len({snapshot_key(source) for source in (WHEEL, other, later)}) == 3
    assert snapshot_key(WHEEL.model_copy(update={"text": "as it was typed"})) == snapshot_key(WHEEL)


def test_a_retraining_is_known_by_base_data_settings_and_both_policies() -> None:
    def key(
        base: ModelSource = WHEEL, data: ChatData = DATA, seed: int = 0, policy: RetrainPolicy = RetrainPolicy()  # noqa: B008 - frozen
    ) -> str:  # fmt: skip
        return retrain_key(base, data, TrainSettings(seed=seed), policy)

    strict = DATA.model_copy(update={"policy": DataPolicy(max_bad_share=0.0)})
    others = [
        key(WHEEL.model_copy(update={"member": "large.gguf"})), key(data=DATA.model_copy(update={"digest": "4" * 64})),
        key(data=strict), key(seed=1), key(policy=RetrainPolicy(min_gain=0.5)),
        key(policy=RetrainPolicy(max_forgetting=1.0)),
    ]  # fmt: skip
    assert len({key(), *others}) == 1 + len(others)
    assert key(data=DATA.model_copy(update={"name": "another name"})) == key()


def test_a_waiver_counts_for_the_last_recipe_alone() -> None:
    request = check_request(Target.CPU_INT4, PackageOptions(waive_quality="a demonstration"), None, None)
    *others, last = request.recipes_to_try
    assert others
    assert {request.waiver_for(recipe) for recipe in others} == {None}
    assert request.waiver_for(last) == "a demonstration"


def test_a_template_waiver_changes_no_key_but_that_of_a_refusal() -> None:
    plain, waived = (
        check_request(Target.CPU_INT4, PackageOptions(waive_template=reason), None, None)
        for reason in (None, "it is  our own")
    )
    assert waived.options.waive_template == "it is our own"
    assert (plain.fingerprint, request_key(WHEEL, plain)) == (waived.fingerprint, request_key(WHEEL, waived))
    assert tag_of(plain) != tag_of(waived)  # what was refused for its template is tried again


CHATS = "runs:/0123456789abcdef0123456789abcdef/c.jsonl"
FINGERPRINTS = [  # as versions that are published have them in their tags
    (Target.CPU_INT4, {}, "auto b7f196f2ad2f"),
    (Target.CPU_INT4, {"recipe": "small"}, "small b7f196f2ad2f"),
    (Target.CPU_INT4, {"waive_quality": "a  demonstration only"}, "auto b7f196f2ad2f"),
    (Target.CPU_INT8, {"interface": "prompt"}, "auto b7f196f2ad2f"),
    (Target.CPU_INT4, {"policy": {"max_perplexity_ratio": 1.5, "allow_new_loops": True}}, "auto 9b6c7b9050ab"),
    (Target.CPU_INT4, {"quality_chats": CHATS}, "auto 0dd5ef941b0f"),
    (Target.CPU_INT4, {"quality_text": "quality.txt"}, "auto 412aa9816056"),
    (Target.CPU_INT4, {"calibration_text": "calibration.txt"}, "auto bbcb89e253b5"),
    (Target.CPU_INT4, {"calibration_text": "calibration.txt", "quality_chats": CHATS}, "auto 87b23e9b9d54"),
    (
        Target.CUDA_INT4,
        {"recipe": "best", "quality_text": "quality.txt", "calibration_text": "calibration.txt",
         "quality_chats": "chats.jsonl", "policy": {"max_chat_perplexity_ratio": 1.2}},
        "best 8b2ea1f5308e",
    ),
]  # fmt: skip


OPTION_DIGESTS = {  # as packages that are published have them in their digests
    (Target.CPU_INT4, Recipe.SMALL): "0a442555020d",
    (Target.CPU_INT4, Recipe.BALANCED): "769ba9f6f04b",
    (Target.CPU_INT4, Recipe.ACCURATE): "c37cf82583df",
    (Target.CPU_INT4, Recipe.BEST): "a5c59243f4d8",
    (Target.CPU_INT4, Recipe.STOCK_SMALL): "1219b7c0c171",
    (Target.CPU_INT4, Recipe.STOCK_MIXED): "6efa1b7a23ce",
    (Target.CPU_INT8, Recipe.SMALL): "eee1310f75af",
    (Target.CPU_INT8, Recipe.ACCURATE): "1c66d712f84b",
    (Target.CUDA_FP16, None): "7340b0d5475a",
}


@pytest.mark.parametrize(("target", "recipe"), OPTION_DIGESTS)
def test_the_options_of_a_recipe_have_the_digest_that_published_packages_have(
    target: Target, recipe: Recipe | None
) -> None:
    found = digest_of(option_parts(options_for(target, recipe), None))[:12]
    assert found == OPTION_DIGESTS[target, recipe]


@pytest.fixture
def in_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the texts and the chats of the stored fingerprints in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quality.txt").write_text("The lighthouse keeper climbed the stairs. " * 40)
    (tmp_path / "calibration.txt").write_text("A patient letter about invoices and shelves. " * 40)
    chats = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(30)]
    lines = [json.dumps({"messages": messages}) for messages in chats]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(("target", "options", "fingerprint"), FINGERPRINTS)
def test_a_request_has_the_fingerprint_that_published_versions_have(
    in_texts: None, target: Target, options: dict[str, Any], fingerprint: str
) -> None:
    request = check_request(target, PackageOptions.model_validate(options), None, None)
    assert request.fingerprint == fingerprint
    recipes = [recipe_digest(target, recipe, request.calibration) for recipe in request.recipes_to_try]
    logged = [logged_digest(digest, request.options.interface, target) for digest in recipes]
    assert request_key(WHEEL, request) == digest_of([snapshot_key(WHEEL), logged, fingerprint])
    if request.options.interface == "chat":
        terms = [target, recipes, fingerprint, request.waiver]
        assert tag_of(request) == f"slmpack.refused.{digest_of(terms)[:24]}"


def test_a_licence_policy_is_in_the_key_but_not_in_the_fingerprint() -> None:
    usual, strict = (
        check_request(Target.CPU_INT4, PackageOptions(licences=policy), None, None)
        for policy in (LicencePolicy(), LicencePolicy(refuse=("mit",)))
    )
    assert usual.fingerprint == strict.fingerprint
    assert request_key(WHEEL, usual) != request_key(WHEEL, strict)
    assert tag_of(usual) != tag_of(strict)


def test_a_request_for_a_source_whose_licence_is_refused_gets_no_key() -> None:
    request = check_request(Target.CPU_INT4, PackageOptions(licences=LicencePolicy(refuse=("MIT",))), None, None)
    with pytest.raises(LicenceError, match=r"small\.gguf has the licence mit; any but MIT"):
        resolved_request(request, WHEEL.model_copy(update={"licence": "mit"}), None)


def test_the_chats_that_a_source_names_count_as_those_that_a_user_names(in_texts: None) -> None:
    options = PackageOptions(calibration_text=Path("calibration.txt"))
    given = check_request(Target.CPU_INT4, options.with_quality_chats(CHATS), "a", None)
    found = resolved_request(check_request(Target.CPU_INT4, options, "a", None), WHEEL, CHATS)
    assert found == given.model_copy(update={"request_key": request_key(WHEEL, given)})
    assert resolved_request(given, WHEEL, "runs:/0/other.jsonl").options.quality_chats == CHATS


def test_a_refusal_of_one_interface_is_none_of_the_other() -> None:
    chat, prompt = (
        check_request(Target.CPU_INT4, PackageOptions(interface=interface), None, None) for interface in Interface
    )
    assert tag_of(chat) != tag_of(prompt)
