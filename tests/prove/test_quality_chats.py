"""Quality chats: a package is held against its source on the answers that it is for, not on prose alone."""

import json
from pathlib import Path

import pytest
from invented_town import chats, write_chats
from made_reports import a_quality, a_report
from mlflow import MlflowClient

from flows.package_model import package_model
from slmpack.chats.examples import IGNORED, Example
from slmpack.errors import DataError, QualityError, TrainError, UsageError
from slmpack.log.log import log_model
from slmpack.log.tags import facts_in
from slmpack.prove.measure import judge, measure_quality
from slmpack.prove.quality.chat_loss import chat_loss
from slmpack.prove.quality.chat_reference import MAX_ANSWER_TOKENS, MAX_TOKENS, answer_positions, first_examples
from slmpack.publish.options import PackageOptions
from slmpack.publish.request import Request, check_request
from slmpack.records import Interface, LoggedModel, Package, Recipe, Target
from slmpack.reports import ChatQuality, Outcome, QualityPolicy

LOOSE = QualityPolicy(max_perplexity_ratio=1000.0, allow_new_loops=True, max_chat_perplexity_ratio=1000.0)


def with_quality_chats(ratio: float) -> ChatQuality:
    return ChatQuality(
        perplexity=2 * ratio, source_perplexity=2.0, perplexity_ratio=ratio, top1_agreement=0.96, chats=28, tokens=452
    )


def test_what_keeps_the_prose_and_loses_the_answers_is_refused() -> None:
    quality = a_quality(0.85).model_copy(update={"chats": with_quality_chats(1.152)})
    with pytest.raises(QualityError, match=r"^perplexity ratio on chats 1\.152; at most 1\.05; next$") as caught:
        judge(a_report(quality), "next")
    assert caught.value.quality == quality


def test_what_keeps_both_is_passed_and_a_waiver_counts_for_both() -> None:
    kept = judge(a_report(a_quality(1.01).model_copy(update={"chats": with_quality_chats(1.02)})), "")
    assert [check.found for check in kept.checks] == ["1.010; at most 1.10", "1.020; at most 1.05", "0"]
    lost = a_quality(1.01).model_copy(update={"chats": with_quality_chats(2.0)})
    assert judge(a_report(lost, waiver="names do not matter here"), "").waiver is not None


def example(prompt: int, answer: int) -> Example:
    return Example([7] * (prompt + answer), [IGNORED] * prompt + [7] * answer)


def test_the_tokens_of_answers_are_marked_by_the_position_before_them() -> None:
    assert answer_positions(example(3, 2)) == (2, 3)


def test_enough_chats_are_read_and_no_more() -> None:
    assert len(first_examples([example(10, 10)] * 10)) == 10
    assert len(first_examples([example(0, 1024)] * 10)) == MAX_ANSWER_TOKENS // 1024
    assert len(first_examples([example(1000, 24)] * 10)) == MAX_TOKENS // 1024
    assert len(first_examples([example(10 * MAX_TOKENS, 10)] * 2)) == 1


def asked(quality_chats: str | None = None, policy: QualityPolicy = QualityPolicy()) -> Request:  # noqa: B008 - frozen
    options = PackageOptions(recipe=Recipe.SMALL, policy=policy, quality_chats=quality_chats)
    return check_request(Target.CPU_INT4, options, None, None)


def test_chats_and_their_limit_are_a_part_of_what_is_asked_for_only_where_there_are_chats(tmp_path: Path) -> None:
    strict, town = QualityPolicy(max_chat_perplexity_ratio=1.01), write_chats(tmp_path / "town.jsonl", chats()[:9])
    fewer = write_chats(tmp_path / "fewer.jsonl", chats()[:8])
    assert asked().fingerprint == asked(policy=strict).fingerprint
    assert len({asked(text, policy).fingerprint for text in (str(town), str(fewer)) for policy in (LOOSE, strict)}) == 4
    moved = write_chats(tmp_path / "other-place.jsonl", list(reversed(chats()[:9])))
    assert asked(str(moved)).fingerprint == asked(str(town)).fingerprint


def test_chats_that_may_be_others_tomorrow_are_refused() -> None:
    run = "runs:/" + "0" * 32 + "/data/held-out.jsonl"
    assert asked(run).options.quality_chats == run
    for text in ("models:/town@tuned/chats.jsonl", "mlflow-artifacts:/x/chats.jsonl"):
        with pytest.raises(UsageError, match="may be others tomorrow"):
            asked(text)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", r"town\.jsonl is empty; one chat at least"),
        ('{"messages": []}\n', r"town\.jsonl line 1: messages is empty; a chat in every line; correct it"),
    ],
)
def test_chats_that_are_none_are_refused_before_anything_starts(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "town.jsonl").write_text(line)
    with pytest.raises(DataError, match=told):
        asked(str(tmp_path / "town.jsonl"))
    with pytest.raises(DataError, match="there is no"):
        asked(str(tmp_path / "nothing.jsonl"))


@pytest.fixture(scope="module")
def logged(store: Path, small_package: Package, workspace: Path) -> LoggedModel:
    return log_model(small_package, Interface.CHAT, "logged", workspace, {})


@pytest.mark.slow
def test_the_sources_side_is_what_training_counts(
    small_package: Package, logged: LoggedModel, workspace: Path, tmp_path: Path
) -> None:
    town = write_chats(tmp_path / "town.jsonl", chats()[:20])
    measured = measure_quality(logged, LOOSE, workspace, chats=str(town)).quality
    loss = chat_loss(small_package.snapshot.path, town, workspace)
    assert measured is not None
    assert measured.chats is not None
    assert (measured.chats.chats, measured.chats.tokens) == (20, loss.tokens)
    assert measured.chats.source_perplexity == pytest.approx(loss.perplexity, rel=2e-3)
    assert measured.chats.perplexity_ratio == pytest.approx(1.0, abs=0.2)
    assert 0 < measured.chats.top1_agreement <= 1
    without = measure_quality(logged, LOOSE, workspace).quality
    assert without is not None
    assert without.chats is None
    assert without.perplexity_ratio == pytest.approx(measured.perplexity_ratio, rel=1e-6)


@pytest.mark.slow
def test_chats_that_are_too_long_are_refused(logged: LoggedModel, workspace: Path, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "and so on " * 2000}]}
    with pytest.raises(TrainError, match=r"no chat in chats\.jsonl has an answer within 1,024 tokens"):
        measure_quality(logged, LOOSE, workspace, chats=str(write_chats(tmp_path / "long.jsonl", [long])))


@pytest.fixture(scope="module")
def published(store: Path, prefect_api: str, small_phi3: Path, workspace: Path) -> Outcome:
    town = write_chats(store / "town.jsonl", chats()[:20])
    return package_model(
        str(small_phi3), name="on-chats", workspace=workspace,
        options=PackageOptions(recipe=Recipe.SMALL, policy=LOOSE, quality_chats=str(town)),
    )  # fmt: skip


@pytest.mark.slow
def test_a_version_tells_what_was_kept_of_the_answers(published: Outcome, store: Path, workspace: Path) -> None:
    assert published.quality is not None
    ratio = published.quality.chat_perplexity_ratio
    assert ratio is not None
    version = MlflowClient().get_model_version("on-chats", "1")
    assert float(facts_in(version.tags)["chat_perplexity_ratio"]) == pytest.approx(ratio, rel=1e-4)
    run = facts_in(version.tags)["mlflow_run"]
    page = Path(MlflowClient().download_artifacts(run, "proof/version.html", str(store))).read_text()
    assert "perplexity ratio on chats" in page
    facts = json.loads(Path(MlflowClient().download_artifacts(run, "proof/facts.json", str(store))).read_text())
    assert facts["quality"]["chats"]["chats"] == 20


@pytest.mark.slow
def test_the_same_chats_are_unchanged_and_tell_the_figures_of_then(
    published: Outcome, store: Path, small_phi3: Path, workspace: Path
) -> None:
    again = package_model(
        str(small_phi3), name="on-chats", workspace=workspace,
        options=PackageOptions(recipe=Recipe.SMALL, policy=LOOSE, quality_chats=str(store / "town.jsonl")),
    )  # fmt: skip
    assert (again.status, again.version) == ("unchanged", 1)
    assert again.quality is not None
    assert published.quality is not None
    assert again.quality.chat_perplexity_ratio == pytest.approx(published.quality.chat_perplexity_ratio, rel=1e-4)
