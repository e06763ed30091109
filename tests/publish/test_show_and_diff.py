"""`slmpack show` and `diff`: what the page says of a version, and how two differ, whatever somebody wrote there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_proofs import ALIAS, ATTEMPTS, QUALITY, proofs_of, publish
from mlflow import MlflowClient
from mlflow.artifacts import load_text

from flows.cli import run
from flows.cli_lines import FAILED, OK, USAGE
from slmpack.errors import CheckError, UsageError
from slmpack.log.chat_artifacts import log_chat_dataset
from slmpack.log.health import UNHEALTHY
from slmpack.log.log import log_model
from slmpack.log.tags import FACTS, facts_in
from slmpack.publish.page.log_page import FACTS as PAGE_FACTS
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.promote import plan_promotion, promote
from slmpack.publish.publish import publish_version
from slmpack.publish.view.difference import compare_versions, difference_lines
from slmpack.publish.view.local_page import write_page
from slmpack.publish.view.sheet import MOST_LINES, sheet_lines
from slmpack.publish.view.version import Checks, VersionView, view_version
from slmpack.publish.view.words import LINE_CHARACTERS
from slmpack.records import Interface, LoggedModel, Package
from slmpack.reports import ChatQuality, Quality
from slmpack.signing.keys import new_key

LogIt = Callable[..., LoggedModel]

HOSTILE = "\x1b]0;x\x07\x9b31m\u202egpj\x00\r\n" + "W" * 1000
TERMINAL = {"\x1b", "\x9b", "\x07", "\u202e", "\x00", "\r"}
CHATS = ChatQuality(
    perplexity=2.04, source_perplexity=2.0, perplexity_ratio=1.02, top1_agreement=0.9, chats=10, tokens=1000
)


def text_of(view: VersionView) -> str:
    return "\n".join(sheet_lines(view))


def with_quality(model: LoggedModel, **changes: object) -> Proofs:
    return proofs_of(model, quality=Quality.model_validate({**QUALITY.model_dump(), **changes}))


def full_view(text: str = "text", **changes: object) -> VersionView:
    """Return a view of which every fact is known, and every word is `text`."""
    values: dict[str, object] = {
        "model_uri": f"models:/{text}/3", "name": text, "version": 3, "aliases": (text,), "state": "waived",
        "published": "2026-01-02T03:04:05+00:00", "unhealthy": text, "target": text, "interface": text, "recipe": text,
        "quantisation": (text,), "source": text, "revision": text, "base": text, "base_revision": text,
        "trained_on": (text,), "licence": text, "size_bytes": 90_000_000, "source_bytes": 270_000_000,
        "quality": {"perplexity_ratio": 1.08, "max_perplexity_ratio": 1.1, "mean_kl": 0.0412, "top1_agreement": 0.872,
                    "new_loops": 0.0, "chat_perplexity_ratio": 1.02, "max_chat_perplexity_ratio": 1.05},
        "speed": {"decode_tokens_per_second": 61.25, "decode_p10_tokens_per_second": 60.0,
                  "decode_p90_tokens_per_second": 62.0, "ttft_ms": 84.1, "load_seconds": 1.31, "peak_rss_bytes": 4e8},
        "machine": text, "checks": Checks(held=3, judged=4, not_run=(text,)), "waiver": text, "template_waiver": text,
        "signed_by": text, "key": text, "approved": {text: text}, "previous": 2, "changes": text,
        "requirements": ("numpy==2.4.6", text), "digest": text, "page": text, "page_address": text, "page_of": text,
        "chat_template": text,
    }  # fmt: skip
    return VersionView.model_validate(values | changes)


# ---------------------------------------------------------------------------------------------- as text


def test_a_version_of_which_all_is_known_takes_at_most_thirty_lines() -> None:
    lines = sheet_lines(full_view())
    assert len(lines) <= MOST_LINES
    assert lines[0] == "text version 3: published with a waiver"
    text = "\n".join(lines)
    assert "perplexity ratio 1.080 (limit 1.10), mean KL 0.0412 nats, top-1 agreement 87.2%, new loops 0" in text
    assert "on chats 1.020 (limit 1.05)" in text
    assert "61.2 tokens/s (60.0 to 62.0), first token after 84 ms, loaded in 1.31 s" in text
    assert "90.0 MB; the source has 270.0 MB" in text
    assert "3 of 4 held; not run: text" in text


def test_words_of_a_stranger_are_one_harmless_line_each() -> None:
    loud = full_view(HOSTILE)
    quiet = full_view("b", model_uri=loud.model_uri, name=HOSTILE)
    for lines in (sheet_lines(loud), difference_lines(compare_versions(quiet, loud))):
        assert not TERMINAL & set("".join(lines))
        assert not [line for line in lines if "\n" in line or len(line) > 2 * LINE_CHARACTERS]
    assert len(sheet_lines(loud)) <= MOST_LINES


def test_only_what_differs_is_told_and_the_rest_is_counted() -> None:
    before = full_view()
    same = compare_versions(before, before)
    assert (same.figures, same.facts, same.requirements, same.template) == ((), (), (), ())
    assert difference_lines(same) == ["text: version 3 against version 3", f"unchanged: {same.unchanged}"]
    now = full_view(
        version=4, size_bytes=45_000_000, licence="mit", requirements=("numpy==2.5.0", "text"),
        chat_template="text\n{% if x %}y{% endif %}",
        quality={**before.quality, "perplexity_ratio": 1.02, "mean_kl": 0.0413, "new_loops": 2.0},
    )  # fmt: skip
    found = compare_versions(before, now)
    assert [(each.key, each.judged) for each in found.figures] == [
        ("perplexity_ratio", "better"),
        ("size_bytes", "better"),
    ]
    assert [(each.label, each.before, each.now) for each in found.facts] == [
        ("licence", "text", "mit"), ("new_loops", "0", "2"),
    ]  # fmt: skip
    assert found.requirements == ("numpy 2.4.6 \N{RIGHTWARDS ARROW} 2.5.0",)
    assert found.template is not None
    assert "+{% if x %}y" in found.template
    assert found.unchanged == same.unchanged - 6
    lines = difference_lines(found)
    assert lines[1].split() == ["version", "3", "version", "4"]
    assert [line.split() for line in lines if line.startswith("perplexity ratio ")] == [
        ["perplexity", "ratio", "1.080", "1.020", "-5.6%", "better"]
    ]
    assert lines[-1] == f"unchanged: {found.unchanged}"


def test_timings_are_shown_and_not_judged_and_what_one_does_not_know_is_not_compared() -> None:
    before = full_view()
    slower = full_view(speed={**before.speed, "ttft_ms": 90.0}, machine="another one")
    (timing,) = compare_versions(before, slower).figures
    assert (timing.key, timing.judged) == ("ttft_ms", "another machine")
    unknown = full_view(quality=dict.fromkeys(before.quality), requirements=None, chat_template=None)
    found = compare_versions(before, unknown)
    assert {each.judged for each in found.figures} == {"not comparable"}
    assert (found.requirements, found.template) == (None, None)
    assert "requirements: not known of both" in difference_lines(found)


def test_versions_of_two_models_are_not_compared() -> None:
    with pytest.raises(UsageError, match=r"models:/a/3 and models:/b/3 are of different models"):
        compare_versions(full_view("a"), full_view("b"))


# ---------------------------------------------------------------------------------------------- in MLflow


@pytest.mark.slow
def test_the_page_is_drawn_from_its_facts_and_is_not_what_lies_in_the_store(
    name: str, log_it: LogIt, tmp_path: Path
) -> None:
    model = log_it()
    published = publish_version(model, proofs_of(model, attempts=ATTEMPTS))
    logged = load_text(published.page_uri)
    assert write_page(f"{name}@{ALIAS}", tmp_path).read_text() == logged
    MlflowClient().log_text(model.run_id, "<script>alert(1)</script>", "proof/version.html")
    assert write_page(f"models:/{name}/1", tmp_path).read_text() == logged
    MlflowClient().log_text(model.run_id, "[]", "proof/facts.json")
    with pytest.raises(CheckError, match=f"^models:/{name}/1 has no page that this release can draw; .*slmpack show"):
        write_page(f"{name}/1", tmp_path)


@pytest.mark.slow
def test_what_is_shown_is_what_the_page_has(name: str, log_it: LogIt) -> None:
    model = log_it()
    published = publish_version(model, proofs_of(model, attempts=ATTEMPTS))
    view = view_version(f"{name}@{ALIAS}")
    assert view == view_version(f"models:/{name}/1") == view_version(model.uri)
    assert (view.quality["perplexity_ratio"], view.quality["max_perplexity_ratio"]) == (1.05, 1.10)
    assert (view.speed["decode_tokens_per_second"], view.size_bytes) == (12.5, model.package.size_bytes)
    assert (view.page, view.requirements, view.state) == (published.page_uri, model.requirements, "partly")
    text = text_of(view)
    assert text.startswith(f"{name} version 1: proved in part\n")
    assert "First version under the alias cpu-int4." in text
    assert f'mlflow.pyfunc.load_model("models:/{name}/1")' in text
    assert len(text.splitlines()) <= MOST_LINES


@pytest.mark.slow
def test_who_signed_who_approved_and_what_is_damaged_is_shown(name: str, log_it: LogIt, tmp_path: Path) -> None:
    key, model = new_key(tmp_path / "release.pem"), log_it()
    publish_version(model, proofs_of(model, waiver="a demonstration"), key=key)
    promote(plan_promotion(name, ALIAS, "production", accept_waiver=True), "Ada")
    MlflowClient().set_model_version_tag(name, "1", UNHEALTHY, "2026-01-01: model.onnx missing")
    view = view_version(f"{name}@production")
    assert (view.aliases, view.signed_by) == ((ALIAS, "production"), key.fingerprint)
    assert view.approved["production"].endswith(" Ada")
    text = text_of(view)
    for said in ("published with a waiver", "a demonstration", key.fingerprint[:12], "model.onnx missing", " Ada"):
        assert said in text


@pytest.mark.slow
def test_a_second_version_tells_the_first_and_what_changed(name: str, log_it: LogIt) -> None:
    publish(log_it())
    better = log_it()
    publish_version(better, with_quality(better, perplexity_ratio=1.01, chats=CHATS), force=True)
    view = view_version(f"{name}/2")
    assert view.previous == 1
    assert view.changes == "Against version 1: perplexity ratio -3.8% (better)."
    found = compare_versions(view_version(f"{name}/1"), view)
    assert [(each.key, each.judged) for each in found.figures] == [
        ("perplexity_ratio", "better"), ("chat_perplexity_ratio", "not comparable"),
    ]  # fmt: skip
    assert found.facts == ()


@pytest.mark.slow
def test_a_copy_in_another_model_does_not_take_the_page_for_its_own(name: str, log_it: LogIt) -> None:
    publish(log_it())
    publish(log_it(), force=True)
    MlflowClient().copy_model_version(f"models:/{name}/2", f"{name} copy")
    copy = view_version(f"{name} copy/1")
    assert (copy.previous, copy.page_of, copy.quality["perplexity_ratio"]) == (None, f"{name} version 2", 1.05)
    assert f"proof/version.html, of {name} version 2" in text_of(copy)
    assert view_version(f"{name}/2").page_of is None


@pytest.mark.slow
def test_a_page_that_cannot_be_read_leaves_what_the_tags_say(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    for content in ("", "{", "[]", '{"name": 1}', '{"quality": NaN}', "[" * 100_000):
        MlflowClient().log_text(model.run_id, content, PAGE_FACTS)
        view = view_version(f"{name}/1")
        assert (view.quality["perplexity_ratio"], view.target, view.state) == (1.05, "cpu-int4", None), content[:20]
        assert text_of(view).startswith(f"{name} version 1: published\n")


@pytest.mark.slow
def test_a_version_without_a_page_differs_in_nothing_that_its_tags_do_not_tell(name: str, log_it: LogIt) -> None:
    publish(log_it())
    without = log_it()
    publish(without, force=True)
    MlflowClient().log_text(without.run_id, "", PAGE_FACTS)
    found = compare_versions(view_version(f"{name}/1"), view_version(f"{name}/2"))
    assert (found.figures, found.facts, found.requirements, found.template) == ((), (), None, None)


@pytest.mark.slow
def test_a_page_of_a_later_release_is_read_as_far_as_this_one_understands_it(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    page = json.loads(load_text(f"runs:/{model.run_id}/{PAGE_FACTS}"))
    page |= {"colour": "blue"}
    page["speed"] |= {"watts": 12.5}
    MlflowClient().log_text(model.run_id, json.dumps(page), PAGE_FACTS)
    assert view_version(f"{name}/1").state == "partly"


@pytest.mark.slow
def test_a_stranger_s_page_and_tags_are_text(name: str, log_it: LogIt, capsys: pytest.CaptureFixture[str]) -> None:
    model, client = log_it(), MlflowClient()
    publish(model)
    client.log_text(model.run_id, "", PAGE_FACTS)
    facts = {each: HOSTILE for each in facts_in(client.get_model_version(name, "1").tags) if each != "mlflow_run"}
    client.set_model_version_tag(name, "1", FACTS, json.dumps(facts | {"mlflow_run": model.run_id}))
    for tag in ("source", "revision", "licence", "target", "recipe", "waiver", "signed_by", "approved.x"):
        client.set_model_version_tag(name, "1", f"slmpack.{tag}", HOSTILE)
    for arguments in (["show", f"{name}/1"], ["diff", f"{name}/1", f"{name}/1"]):
        assert run(arguments) == OK
        assert not TERMINAL & set(capsys.readouterr().out)
        assert run([*arguments, "--json"]) == OK
        out = capsys.readouterr().out
        assert set(out) <= {"\n", *map(chr, range(0x20, 0x7F))}
        assert isinstance(json.loads(out), dict)


@pytest.mark.slow
def test_json_has_the_same_keys_whatever_is_known(name: str, log_it: LogIt, capsys: pytest.CaptureFixture[str]) -> None:
    model = log_it()
    publish(model)
    keys = []
    for content in (None, ""):
        if content is not None:
            MlflowClient().log_text(model.run_id, content, PAGE_FACTS)
        assert run(["show", f"{name}@{ALIAS}", "--json"]) == OK
        (line,) = capsys.readouterr().out.splitlines()
        found = json.loads(line)
        keys.append([list(found), list(found["quality"]), list(found["speed"])])
    assert keys[0] == keys[1]
    assert run(["diff", f"{name}/1", f"{name}@{ALIAS}", "--json"]) == OK
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["before"], found["now"], found["figures"]) == (name, 1, 1, [])


@pytest.mark.slow
def test_a_package_of_a_tuned_model_says_what_it_was_trained_from(
    name: str, log_it: LogIt, tiny_package: Package, workspace: Path
) -> None:
    from mlflow.entities import Param

    from slmpack.chats.dataset import ChatData, DataPolicy
    from slmpack.source.logged_model import QUALITY_CHATS

    tuned, client = log_it(), MlflowClient()
    run_id = client.create_run(client.get_run(tuned.run_id).info.experiment_id).info.run_id
    data = ChatData(
        name="town.jsonl", files=(), digest="1" * 64, training_digest="2" * 64, held_out_digest="3" * 64, lines=300,
        chats=300, held_out=30, bad=0, duplicates=0, repaired=0, first_bad=(), policy=DataPolicy(),
    )  # fmt: skip
    client.log_batch(run_id, params=[Param("base", "hf://org/base"), Param("base_revision", "c" * 40)])
    log_chat_dataset(run_id, data, data.name)
    client.set_logged_model_tags(tuned.model_id, {QUALITY_CHATS: f"runs:/{run_id}/data/held-out.jsonl"})
    source = tiny_package.snapshot.source.model_copy(update={"revision": tuned.model_id})
    snapshot = tiny_package.snapshot.model_copy(update={"source": source})
    package = tiny_package.model_copy(update={"snapshot": snapshot, "digest": tiny_package.digest + "tuned"})
    publish(log_model(package, Interface.CHAT, name, workspace, {}))
    view = view_version(f"{name}/1")
    assert (view.base, view.base_revision, view.trained_on) == ("hf://org/base", "c" * 40, ("town.jsonl",))
    assert "made from    hf://org/base, revision cccc" in text_of(view)


@pytest.mark.slow
def test_what_slmpack_did_not_publish_is_not_shown(
    name: str, log_it: LogIt, capsys: pytest.CaptureFixture[str]
) -> None:
    model, client = log_it(), MlflowClient()
    with pytest.raises(CheckError, match="is not published; a version; publish it: slmpack verify"):
        view_version(model.uri)
    client.create_registered_model(name)
    client.create_model_version(name, model.uri, model_id=model.model_id)
    assert run(["show", f"{name}/1"]) == FAILED
    assert f"models:/{name}/1 was not published by slmpack; a proved version" in capsys.readouterr().err
    assert run(["show", name]) == USAGE
    assert f"`slmpack list {name}` shows what there is" in capsys.readouterr().err
    assert run(["diff", f"{name}/1", "other/2"]) == USAGE
    assert "are of different models" in capsys.readouterr().err
