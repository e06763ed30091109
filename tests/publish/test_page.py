"""The version's page: all that was found is on it, nothing from outside is markup, and the same facts give one page."""

import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flows.cli import command_parser
from slmpack.prove.through_server import NAME, NOT_TRIED, SERVED
from slmpack.publish.page.attempt import Attempt
from slmpack.publish.page.changes import requirement_changes, template_difference
from slmpack.publish.page.facts import Earlier, Machine, PageFacts, facts_of, read_earlier, summary_json
from slmpack.publish.page.machine import this_machine
from slmpack.publish.page.render import commands_of, page_summary, state_of, verdict_of, version_page
from slmpack.records import (
    FileDigest,
    Interface,
    LoggedModel,
    ModelSource,
    Package,
    Recipe,
    Snapshot,
    SourceKind,
    Target,
)
from slmpack.reports import (
    Check,
    Quality,
    QualityPolicy,
    QualityReport,
    SmokeReport,
    Speed,
    TemplateReport,
    ValidationReport,
)

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = '<script>alert("x")</script> | `x` [x](javascript:x) \u202e\x00 ' + "W" * 50_000
PRIVATE = "/home/somebody/models/checkpoint"
MACHINE = Machine(cpu="Example CPU 9000", cores=2, memory_bytes=8_000_000_000, system="Linux 6.1")
OTHERS = {
    "parity": (Check(name="token ids", found="312 texts alike"),),
    "clean environment": (Check(name="installs", found="5 packages"),),
    "integrity": (Check(name="a flipped byte", found="refused at load"),),
}


def logged(interface: Interface = Interface.CHAT, licence: str | None = "Apache-2.0") -> LoggedModel:
    source = ModelSource(
        text=PRIVATE, kind=SourceKind.FOLDER, location=PRIVATE, revision="f" * 64, name="example-1b", licence=licence
    )
    snapshot = Snapshot(
        source=source, path=Path(PRIVATE), files=(FileDigest(name="w", sha256="a" * 64, size_bytes=269_060_552),),
        architecture="LlamaForCausalLM", dtype="BF16", parameters=134_515_008, layers=30, context_length=8192,
        licence=licence, repairs=("'[PAD]' is taken out of the tokenizer",),
    )  # fmt: skip
    package = Package(
        snapshot=snapshot, target=Target.CPU_INT4, recipe=Recipe.BALANCED, path=Path(PRIVATE),
        files=(FileDigest(name="m", sha256="b" * 64, size_bytes=118_210_000),), digest="c" * 64,
        versions={"onnxruntime-genai": "0.18.0"}, quantisation=("8 bits: the head", "channels folded at 120 places"),
        repairs=("words are split by Split alone",),
    )  # fmt: skip
    return LoggedModel(
        package=package, interface=interface, name="example-1b", model_id="m-1", uri="models:/m-1", run_id="r1",
        requirements=("onnxruntime-genai==0.18.0", "numpy==2.3.4"), digest="d1" * 32,
    )  # fmt: skip


def measured(ratio: float) -> Quality:
    return Quality(
        perplexity=12.4 * ratio, source_perplexity=12.4, perplexity_ratio=ratio, mean_kl=0.0412, p99_kl=0.381,
        top1_agreement=0.872, tokens=2047, new_loops=0, seconds_per_1000_tokens=4.1,
    )  # fmt: skip


def facts(
    *,
    ratio: float = 1.061,
    waiver: str | None = None,
    decode: float = 61.25,
    words: str = "Paris.",
    template: str | None = "{{ messages }}",
    others: dict[str, tuple[Check, ...]] | None = None,
    attempts: tuple[Attempt, ...] = (),
    previous: Earlier | None = None,
    model: LoggedModel | None = None,
    machine: Machine = MACHINE,
    served: str | None = None,
    judged: TemplateReport = TemplateReport(template="{{ messages }}"),  # noqa: B008 - frozen
) -> PageFacts:
    model = model or logged()
    speed = Speed(decode_tokens_per_second=decode, ttft_ms=84.1, load_seconds=1.31, peak_rss_bytes=412_300_000)
    return facts_of(
        ValidationReport(model=model, checks=(Check(name="signature", found="that of chat"),), template=judged),
        QualityReport(model=model, quality=measured(ratio), policy=QualityPolicy(), checks=(), waiver=waiver),
        SmokeReport(
            model=model, speed=speed,
            checks=(
                Check(name="one question", found=words), Check(name="greedy twice", found="the same text"),
                *(() if served is None else (Check(name=NAME, found=served),)),
            ),
        ),
        version=4, alias="cpu-int4", created="2026-01-02T03:04:05Z", machine=machine, chat_template=template,
        others=OTHERS if others is None else others, attempts=attempts, previous=previous,
    )  # fmt: skip


def attempt(recipe: str, ratio: float | None, reason: str | None = None) -> Attempt:
    quality = None if ratio is None else measured(ratio)
    status = "published" if reason is None else "refused"
    return Attempt.model_validate(
        {"recipe": recipe, "size_bytes": 10**8, "quality": quality, "speed": None, "status": status, "reason": reason}
    )


class Page(HTMLParser):
    """Reads a page as a browser would: its text, its tags, and every tag left open or closed twice."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action"}]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def test_an_answer_of_the_server_counts_as_a_check_and_a_server_that_was_not_tried_does_not() -> None:
    def held(page: PageFacts) -> int:
        return int(verdict_of(page).partition(" of ")[0])

    assert held(facts(served=SERVED)) == held(facts()) + 1
    untried = facts(served=f"{NOT_TRIED}: no GPU")
    assert (held(untried), state_of(untried)) == (held(facts()), "proved")
    assert "no GPU" in Page(version_page(untried)).text


def test_tells_every_check_with_its_figure_and_limit() -> None:
    text = Page(version_page(facts())).text
    for proof in ("validation", "parity", "clean environment", "integrity", "quality", "smoke"):
        assert proof in text
    assert "signature that of chat passed" in text
    assert "token ids 312 texts alike passed" in text
    assert "perplexity ratio 1.061: 13.16 over 12.40, 2,047 tokens (expected at most 1.10) passed" in text
    assert "new loops 0 (expected 0) passed" in text
    assert "top-1 agreement 87.2% no limit" in text
    assert "greedy twice the same text passed" in text


def test_tells_source_recipe_speed_memory_machine_and_digest() -> None:
    text = Page(version_page(facts())).text
    for expected in (
        "example-1b version 4 for cpu-int4", "f" * 64, "Apache-2.0", "balanced", "61.2", "84 ms", "1.31 s", "412.3 MB",
        "118.2 MB", "269.1 MB", "134.5 million parameters", "8,192 tokens", "Example CPU 9000, 2 logical cores",
        "onnxruntime-genai==0.18.0, numpy==2.3.4", "d1" * 32, "2026-01-02T03:04:05Z",
    ):  # fmt: skip
        assert expected in text, expected


def test_tells_what_was_repaired_in_the_source_and_in_the_package() -> None:
    html = version_page(facts())
    told = ("&#39;[PAD]&#39; is taken out of the tokenizer", "words are split by Split alone")
    assert all(f"<dd>{sentence}</dd>" in html for sentence in told)


def test_shows_what_was_asked_and_answered() -> None:
    text = Page(version_page(facts(words="Paris, on the Seine."))).text
    assert "What is the capital of France? Paris, on the Seine." in text
    assert "one question answered, see below passed" in text


def test_says_nothing_of_the_machines_folders() -> None:
    told = facts()
    for text in (version_page(told), summary_json(told), page_summary(told)):
        assert PRIVATE not in text
        assert "example-1b" in text


def test_a_waiver_is_told_first_and_is_never_called_proved() -> None:
    told = facts(ratio=1.34, waiver="agreed for the test bench")
    assert state_of(told) == "waived"
    text = Page(version_page(told)).text
    assert "Published with a waiver 8 of 9 checks held" in text
    assert text.index("Published with a waiver") < text.index("agreed for the test bench") < text.index("First version")
    assert "not held: perplexity ratio, 1.340" in verdict_of(told)
    assert "(expected at most 1.10) waived" in text
    assert "Proved" not in text


def test_a_template_that_was_waived_is_told_with_what_was_found_and_why() -> None:
    found = "line 3 of the chat template of x: {% if '<b>python</b>' in c %}, which depends on the words of a message"
    told = facts(judged=TemplateReport(template="x", finding=found, waiver="it is <i>our</i> own"))
    page = Page(version_page(told))
    assert state_of(told) == "waived"
    assert f"words of messages {found} (expected no branch of the chat template depends on them) waived" in page.text
    assert "Chat template waived: it is <i>our</i> own" in page.text
    assert "published all the same, because: it is <i>our</i> own" in verdict_of(told)
    assert not {"b", "i"} & page.tags


def test_the_template_is_compared_with_that_of_the_base() -> None:
    base, own = "{{ messages }}", "{{ messages }}{{ '<script>' }}"
    page = Page(version_page(facts(judged=TemplateReport(template=own, base_template=base))))
    assert "Not the base's." in page.text
    assert "+{{ '<script>' }}" in page.text
    assert "script" not in page.tags
    assert "The base's." in Page(version_page(facts(judged=TemplateReport(template=base, base_template=base)))).text
    assert "The base's." not in Page(version_page(facts())).text


def test_what_missed_its_limit_without_a_waiver_is_not_proved() -> None:
    told = facts(ratio=1.34)
    assert state_of(told) == "failed"
    assert "Not proved" in Page(version_page(told)).text


def test_a_proof_that_did_not_run_is_told_in_the_headline() -> None:
    told = facts(others={**OTHERS, "clean environment": ()})
    text = Page(version_page(told)).text
    assert state_of(told) == "partly"
    assert "Proved in part" in text
    assert "not run: clean environment" in text
    assert "clean environment not run" in text
    assert state_of(facts()) == "proved"


def test_the_first_version_says_so_and_how_to_withdraw_its_alias() -> None:
    text = Page(version_page(facts())).text
    assert "First version under the alias cpu-int4." in text
    assert 'MlflowClient().delete_registered_model_alias("example-1b", "cpu-int4")' in text
    assert "Against" not in text


def test_compares_itself_with_the_version_before() -> None:
    before = facts(ratio=1.02, decode=70.0, template="{% if x %}old{% endif %}")
    earlier = read_earlier(summary_json(before), version=3)
    text = Page(version_page(facts(previous=earlier, template="{% if x %}new{% endif %}"))).text
    assert "Against version 3: perplexity ratio +4.0% (worse); chat template changed." in text
    assert "decode, tokens/s 70.0 61.2 -12.5% measured at another time" in text
    assert "size 118.2 MB 118.2 MB 0.0% same" in text
    assert "-{% if x %}old +{% if x %}new" in text
    assert "slmpack rollback example-1b --target cpu-int4" in text
    assert 'set_registered_model_alias("example-1b", "cpu-int4", 3)' in text


def test_the_same_again_has_no_change_worth_telling() -> None:
    told = facts(previous=read_earlier(summary_json(facts(decode=300.0)), version=3))  # the machine was quiet then
    assert "Against version 3: no figure changed beyond noise." in Page(version_page(told)).text


def test_timings_of_another_machine_are_told_but_not_judged() -> None:
    before = facts(decode=700.0, machine=Machine(cpu="Other", cores=64, memory_bytes=1, system="Linux"))
    text = Page(version_page(facts(previous=read_earlier(summary_json(before), version=3)))).text
    assert "decode, tokens/s 700.0 61.2 -91.2% another machine" in text
    assert "no figure changed beyond noise" in text


def test_requirements_are_compared_by_name() -> None:
    changes = requirement_changes(("a==1", "b==1", "c==1"), ("a==1", "b==2", "d==1"))
    assert changes == ("b 1 → 2", "c 1 removed", "d 1 added")


def test_a_template_that_differs_always_has_a_difference_to_show() -> None:
    assert template_difference("a\nb", "a\nb\n") == ("only line breaks changed",)
    assert len(template_difference("\n".join("ab" * 900), "\n".join("ba" * 100))) < 200
    assert "too many" in template_difference("x\n" * 3000, "")[0]


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{", "[" * 100_000, '{"version": "x"}', '{"quality": 5, "speed": [1], "size_bytes": "big"}',
        '{"quality": {"perplexity_ratio": null}, "speed": {"decode_tokens_per_second": "fast"}, "machine": 1}',
        '{"requirements": [1, 2], "chat_template": {}, "invented_later": {"deep": [1]}}',
    ],
)  # fmt: skip
def test_facts_of_another_schema_still_compare(text: str) -> None:
    earlier = read_earlier(text, version=2)
    assert earlier.version == 2
    page = Page(version_page(facts(previous=earlier))).text
    assert "perplexity ratio not known 1.061 not comparable" in page
    assert "not known of version 2" in page


def test_reads_what_it_understands_of_facts_that_a_later_release_wrote() -> None:
    told = json.loads(summary_json(facts()))
    told |= {"new_field": 1, "recipe": 7}
    told["quality"] |= {"new_figure": 0.5}
    del told["quality"]["mean_kl"]
    earlier = read_earlier(json.dumps(told), version=3)
    assert earlier.recipe is None
    assert earlier.quality is not None
    assert earlier.quality["perplexity_ratio"] == 1.061
    assert earlier.size_bytes == 118_210_000


def test_the_facts_come_back_from_json() -> None:
    told = facts(attempts=(attempt("balanced", 1.061),), previous=Earlier(version=3))
    assert PageFacts.model_validate_json(summary_json(told)) == told


def test_text_from_outside_is_text() -> None:
    model = logged(licence=HOSTILE)
    told = facts(
        words=HOSTILE, template=HOSTILE, waiver=HOSTILE, model=model,
        others={HOSTILE: (Check(name=HOSTILE, found=HOSTILE),)},
        attempts=(attempt(HOSTILE, 1.06), attempt("x", None, HOSTILE)),
        machine=Machine(cpu=HOSTILE, cores=1, memory_bytes=1, system=HOSTILE),
        previous=Earlier(version=3, recipe=HOSTILE, licence="MIT", chat_template="x", requirements=(HOSTILE,)),
    )  # fmt: skip
    html = version_page(told)
    page = Page(html)
    assert "script" not in page.tags
    assert "a" not in page.tags
    assert page.text.count('<script>alert("x")</script>') >= 12
    assert not set(html) & {"\u202e", "\x00"}
    assert "characters in all)" in page.text
    assert len(html.encode()) < 300_000
    summary = page_summary(told)
    assert "<script" not in summary
    assert "](javascript" not in summary
    assert len(summary) < 5000


def test_lone_surrogates_do_not_stop_the_page_from_being_written() -> None:
    told = facts(words="a\ud800b")
    assert "a\ufffdb" in version_page(told)
    version_page(told).encode()
    summary_json(told).encode()


@pytest.mark.parametrize("previous", [None, Earlier(version=3)])
def test_is_one_file_that_fetches_nothing(previous: Earlier | None) -> None:
    html = version_page(
        facts(attempts=(attempt("balanced", 1.061), attempt("small", 1.2, "too dear")), previous=previous)
    )
    page = Page(html)
    assert [place for place in page.fetched if not place.startswith("#")] == []
    assert not page.tags & {"script", "link", "iframe", "img", "object", "form"}
    assert not re.search(r"url\((?!#)|@import", html)
    assert "default-src 'none'" in html
    assert "svg" in page.tags
    assert len(html.encode()) < 300_000


def test_same_facts_give_the_same_bytes() -> None:
    told = facts(attempts=(attempt("balanced", 1.061), attempt("small", 1.2, "too dear")))
    assert version_page(told) == version_page(told)
    assert version_page(PageFacts.model_validate_json(summary_json(told))) == version_page(told)


def test_the_commands_are_exact() -> None:
    commands = commands_of(facts())
    assert commands.install == "pip install onnxruntime-genai==0.18.0 numpy==2.3.4"
    assert 'load_model("models:/example-1b/4")' in commands.load
    assert commands.ask == "slmpack chat models:/example-1b/4 Hello"
    compile(commands.load, "load", "exec")
    compile(commands.roll_back, "roll_back", "exec")


@pytest.mark.parametrize("previous", [None, Earlier(version=3)])
def test_every_command_on_the_page_is_one_that_the_command_line_takes(previous: Earlier | None) -> None:
    told = facts(previous=previous)
    shown = unescape("\n".join(re.findall(r"<pre>(.*?)</pre>", version_page(told), re.DOTALL)))
    commands = [shlex.split(line) for line in shown.splitlines() if line.startswith("slmpack ")]
    assert ["slmpack", "chat", "models:/example-1b/4", "Hello"] in commands
    for command in commands:
        assert callable(command_parser().parse_args(command[1:]).run)


def test_a_prompt_model_is_rolled_back_by_its_own_alias() -> None:
    told = facts(model=logged(Interface.PROMPT), previous=Earlier(version=3))
    assert commands_of(told).roll_back_shell is None
    assert '{"prompt": ' in commands_of(told).load


def test_a_name_with_spaces_is_quoted_in_commands() -> None:
    commands = commands_of(facts(previous=Earlier(version=3)).model_copy(update={"name": "my model"}))
    assert commands.roll_back_shell == "slmpack rollback 'my model' --target cpu-int4"


def test_a_model_that_is_its_sources_own_bytes_has_no_ratio() -> None:
    told = facts().model_copy(update={"quality": None, "recipe": None})
    text = Page(version_page(told)).text
    assert "perplexity ratio not measured" in text
    assert "none, not quantised" in text
    assert "| perplexity ratio | not known |" in page_summary(told)


def test_the_summary_is_short_and_has_the_figures() -> None:
    before = read_earlier(summary_json(facts(decode=70.0)), version=3)
    summary = page_summary(facts(previous=before))
    assert len(summary.splitlines()) <= 15
    assert "**example-1b version 4 for cpu-int4: proved**" in summary
    assert "| perplexity ratio, limit 1.10 | 1.061 | 0.0% |" in summary
    assert "| decode, tokens/s | 61.2 | -12.5% |" in summary
    assert "Against version 3" in summary


def test_this_machine_has_a_processor_and_memory() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_bytes > 10**8


def test_an_adapters_base_is_on_the_page_and_in_the_summary() -> None:
    model = logged()
    base = ModelSource(
        text="hf://org/base@v1", kind=SourceKind.HUB, location="org/base", revision="ba5e" * 10, name="base"
    )
    source = model.package.snapshot.source.model_copy(update={"base": base})
    snapshot = model.package.snapshot.model_copy(update={"source": source})
    package = model.package.model_copy(update={"snapshot": snapshot})
    found = facts(model=model.model_copy(update={"package": package}))
    assert "merged into hf://org/base@v1" in Page(version_page(found)).text
    assert "ba5e" * 10 in version_page(found)
    assert "example-1b merged into hf://org/base@v1, licence" in page_summary(found)
    assert read_earlier(summary_json(found), 4).base_revision == "ba5e" * 10
    assert "merged into" not in version_page(facts())
