"""Parity: what the package's text files give is what transformers gives, and every difference is refused by name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import pytest
from small_tokenizers import (
    CHATML,
    LLAMA3,
    LLAMA3_CHAT,
    PHI3_CHAT,
    QWEN2,
    byte_level,
    sentencepiece,
    split,
    token_id,
    write_package,
    write_source,
)

from slmpack.build.build import build_package
from slmpack.build.repair_tokenizer import repair_tokenizer
from slmpack.checkpoint.chat_templates import require_templates
from slmpack.checkpoint.tokenizer import end_ids_of, read_tokenizer
from slmpack.errors import CheckError, SourceError
from slmpack.machine.json_file import write_json
from slmpack.machine.store import digest_files
from slmpack.prove.parity.cache import known_parity
from slmpack.prove.parity.check import TEMPLATE_CHECKS, ParityRequest, check_parity, parity_of
from slmpack.prove.parity.pair import Pair
from slmpack.records import Package, Recipe, Target

NAMES = [
    "tokenizer file",
    "vocabulary",
    "end of turn",
    "token ids",
    "token ids of raw text",
    "chat template",
    "decoding",
]
ALONE = "without the wrapper"  # fmt: skip
HYBRID_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    ],
}
LLAMA3_SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
)  # fmt: skip
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PHI3_SPECIALS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def found(package: Path, snapshot: Path) -> dict[str, str]:
    checks = parity_of(ParityRequest(package=package, snapshot=snapshot)).checks
    return {check.name: check.found for check in checks}


def small_files_of(package: Package, into: Path) -> Path:
    """Copy the files of a package but the model, which parity does not read."""
    for file in package.files:
        if not file.name.startswith("model.onnx"):
            shutil.copyfile(package.path / file.name, into / file.name)
    return into


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


# ---------------------------------------------------------------------------------------------- the real model


@pytest.mark.slow
def test_the_real_package_reads_and_answers_as_its_source(smollm2_package: Package, tmp_path: Path) -> None:
    checks = check_parity(smollm2_package.path, smollm2_package.snapshot.path, tmp_path / "log")
    assert [check.name for check in checks] == [*NAMES, ALONE]
    results = {check.name: check.found for check in checks}
    assert results["vocabulary"] == "49152 of 49152 ids"
    assert int(results["token ids"].partition(" texts")[0]) > 5000
    assert re.fullmatch(r"\d\d\d chats, \d+ refused by both", results["chat template"])
    assert results["end of turn"] == "2 '<|im_end|>'"


@pytest.mark.slow
def test_a_decoder_that_the_runtime_takes_for_sentencepiece_is_reported_and_not_refused(
    smollm2_package: Package, tmp_path: Path
) -> None:
    package = small_files_of(smollm2_package, tmp_path)
    edit(package / "tokenizer.json", lambda rules: rules.update(decoder=HYBRID_DECODER))
    *_, alone = check_parity(package, smollm2_package.snapshot.path, tmp_path / "log")
    assert alone.name == ALONE
    assert int(alone.found.partition(" of ")[0].rpartition(" ")[2]) > 1000


def test_a_file_that_the_runtime_cannot_read_is_reported_and_not_refused(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=QWEN_SPECIALS)
    words = [[text, -1.0] for text, _ in sorted(rules["model"]["vocab"].items(), key=lambda item: int(item[1]))]
    rules["model"] = {"type": "Unigram", "unk_id": 0, "vocab": words, "byte_fallback": False}
    ends = ("<|im_end|>",)
    source = write_source(tmp_path / "s", rules, CHATML, {"eos_token": "<|im_end|>"}, ends, "PreTrainedTokenizerFast")
    package = write_package(tmp_path / "p", source, ends)
    *checks, alone = check_parity(package, source, tmp_path / "log")
    assert [check.name for check in checks] == NAMES
    assert alone.found.startswith("the runtime")


@pytest.mark.slow
def test_a_second_target_of_a_snapshot_is_not_compared_again_and_a_changed_tokenizer_is(
    tiny_package: Package, workspace: Path, tmp_path: Path
) -> None:
    checks = known_parity(tiny_package, tmp_path)
    assert [check.name for check in checks] == [*NAMES, ALONE]
    written = {log.name: log.stat().st_mtime_ns for log in (tmp_path / "logs").iterdir()}
    eight = build_package(tiny_package.snapshot, Target.CPU_INT8, Recipe.SMALL, workspace)
    assert eight.digest != tiny_package.digest
    assert known_parity(eight, tmp_path) == checks
    assert {log.name: log.stat().st_mtime_ns for log in (tmp_path / "logs").iterdir()} == written

    folder = tmp_path / "changed"
    folder.mkdir()
    drop_a_merge(small_files_of(tiny_package, folder))
    changed = tiny_package.model_copy(update={"path": folder, "files": digest_files(folder, "test")})
    for _ in range(2):  # a difference is not kept
        with pytest.raises(CheckError, match=r"^tokenizer file: merge 0"):
            known_parity(changed, tmp_path)
    assert len(list((tmp_path / "logs").iterdir())) == len(written) + 1
    assert len(list((tmp_path / "parities").iterdir())) == 1


def drop_a_merge(package: Path) -> None:
    edit(package / "tokenizer.json", lambda rules: rules["model"]["merges"].pop(0))


def add_a_token(package: Path) -> None:
    edit(package / "tokenizer.json", lambda rules: rules["model"]["vocab"].update(more=49152))


def drop_a_token(package: Path) -> None:
    edit(package / "tokenizer.json", lambda rules: rules["model"]["vocab"].pop("Ġthe"))


def cut_digits_together(package: Path) -> None:
    whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

    def change(rules: Any) -> None:
        rules["pre_tokenizer"] = whole
        rules["model"]["ignore_merges"] = True

    edit(package / "tokenizer.json", change)


def drop_a_special_token(package: Path) -> None:
    edit(package / "tokenizer.json", lambda rules: rules["added_tokens"].pop(1))


def drop_a_row(package: Path) -> None:
    edit(package / "genai_config.json", lambda config: config["model"].update(vocab_size=49151))


def change_template(package: Path, change: Callable[[str], str]) -> None:
    edit(package / "chat_format.json", lambda config: config.update(chat_template=change(config["chat_template"])))


def rename_a_role(package: Path) -> None:
    change_template(package, lambda template: template.replace("assistant\n", "bot\n"))


def refuse_system_messages(package: Path) -> None:
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    change_template(package, lambda template: refusal + template)


def add_an_end(package: Path) -> None:
    edit(package / "genai_config.json", lambda config: config["model"].update(eos_token_id=[2, 0]))


def exchange_the_end(package: Path) -> None:
    edit(package / "genai_config.json", lambda config: config["model"].update(eos_token_id=0))


def leave_the_format_out(package: Path) -> None:
    (package / "chat_format.json").unlink()


def break_the_file(package: Path) -> None:
    (package / "tokenizer.json").write_text("{")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_merge, r"^tokenizer file: merge 0 is \[.*\]; \[.*\], as in the source; build the package again"),
        (add_a_token, r"^tokenizer file: 49\d+ tokens, not all the source's; the source's 49\d+"),
        (drop_a_token, r"^text files: the wrapper cannot read the package's .*out of vocabulary.*; build the package"),
        (
            drop_a_special_token,
            r"^token ids: '.*' gives \[.*\] in the package, \d+ ids; \[.*\], \d+ ids, by the source's",
        ),
        (cut_digits_together, r"^token ids: '.*\d.*' gives"),
        (drop_a_row, r"^vocabulary: the tokenizer has '.*' with the id 49151; ids below the 49151"),
        (rename_a_role, r"^chat template, one turn: '.*bot\\n' in the package; '.*assistant\\n' by transformers"),
        (refuse_system_messages, r"^chat template, a system message: the package's rendering refuses it"),
        (add_an_end, r"^end of turn: 0 '<\|endoftext\|>' is in eos_token_id .*; only 2 '<\|im_end\|>'"),
        (
            exchange_the_end,
            r"^end of turn: .* is \[0\]; 2 '<\|im_end\|>' among them, since generation_config.json asks",
        ),
        (break_the_file, r"^text files: the wrapper cannot read the package's"),
        (
            leave_the_format_out,
            r"^text files: the wrapper cannot read the package's .*chat_format.json.*build the package",
        ),
    ],
)
def test_every_difference_is_refused_by_the_check_that_found_it(
    smollm2_package: Package, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    package = small_files_of(smollm2_package, tmp_path)
    damage(package)
    with pytest.raises(CheckError, match=message):
        found(package, smollm2_package.snapshot.path)


# ---------------------------------------------------------------------------------------------- other kinds


def llama3(folder: Path, end_tokens: tuple[str, ...]) -> Path:
    rules = byte_level(split(LLAMA3), specials=LLAMA3_SPECIALS)
    rules["model"]["ignore_merges"] = True
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return write_source(folder, rules, LLAMA3_CHAT, named, end_tokens, "PreTrainedTokenizerFast")


def qwen2(folder: Path) -> Path:
    rules = byte_level(split(QWEN2), specials=QWEN_SPECIALS) | {"normalizer": {"type": "NFC"}}
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return write_source(folder, rules, CHATML, named, ("<|im_end|>", "<|endoftext|>"), "PreTrainedTokenizerFast")


def phi3(folder: Path) -> Path:
    named = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    ends = ("<|endoftext|>", "<|assistant|>", "<|end|>")
    return write_source(folder, sentencepiece(PHI3_SPECIALS), PHI3_CHAT, named, ends, "PreTrainedTokenizerFast")


def package_of(source: Path, *ends: str) -> Path:
    return write_package(source.with_name("package"), source, ends)


def test_a_llama_3_tokenizer_is_read_exactly_and_its_template_may_write_the_date(tmp_path: Path) -> None:
    source = llama3(tmp_path / "source", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
    results = found(package_of(source, "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), source)
    assert list(results) == [*NAMES, ALONE]
    assert re.fullmatch(r"\d+ chats, \d refused by both", results["chat template"])
    assert all(text in results["end of turn"] for text in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))


@pytest.mark.parametrize("kind", [qwen2, phi3])
def test_what_the_runtime_reads_otherwise_is_read_exactly_and_reported(
    tmp_path: Path, kind: Callable[[Path], Path]
) -> None:
    source = kind(tmp_path / "source")
    ends = ("<|im_end|>", "<|endoftext|>") if kind is qwen2 else ("<|endoftext|>", "<|assistant|>", "<|end|>")
    package = package_of(source, *ends)
    results = found(package, source)
    assert list(results) == [*NAMES, ALONE]
    assert re.fullmatch(r"\d+ texts", results["token ids"])
    alone = results[ALONE]
    assert re.match(r"the runtime by itself reads [1-9]\d* of \d+ texts otherwise, such as ", alone)


def test_what_the_decoder_does_besides_is_done_in_a_stream_too(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=QWEN_SPECIALS)
    strip = {"type": "Strip", "content": "T", "start": 1, "stop": 0}
    rules["decoder"] = {"type": "Sequence", "decoders": [rules["decoder"], strip]}
    named = {"eos_token": "<|im_end|>"}
    source = write_source(tmp_path / "source", rules, CHATML, named, ("<|im_end|>",), "PreTrainedTokenizerFast")
    assert list(found(package_of(source, "<|im_end|>"), source)) == [*NAMES, ALONE]


def test_a_decoder_that_no_stream_can_follow_is_refused(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=QWEN_SPECIALS)
    replace = {"type": "Replace", "pattern": {"String": "e q"}, "content": "_"}  # over two words
    rules["decoder"] = {"type": "Sequence", "decoders": [rules["decoder"], replace]}
    named = {"eos_token": "<|im_end|>"}
    source = write_source(tmp_path / "source", rules, CHATML, named, ("<|im_end|>",), "PreTrainedTokenizerFast")
    with pytest.raises(CheckError, match=r"^streamed decoding: .* in the package; .* decoded at once; use --target"):
        found(package_of(source, "<|im_end|>"), source)


TEMPLATE_OF_REASONING = (
    "{% for m in messages %}{% set c = m.content or '' %}"
    "{% if m.role == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLANTED: dict[str, Callable[[Path], None]] = {
    "a branch that is never true": lambda package: change_template(
        package, lambda template: template.replace("'</think>' in c", "'</think>' in []")
    ),
    "an added token without its lstrip": lambda package: edit(
        package / "tokenizer.json", lambda rules: rules["added_tokens"][-1].update(lstrip=False)
    ),
    "no normalisation": lambda package: edit(package / "tokenizer.json", lambda rules: rules.update(normalizer=None)),
    "line ends cut otherwise": lambda package: edit(
        package / "tokenizer.json",
        lambda rules: rules["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(
            Regex=QWEN2.replace(r"\s*[\r\n]+", r"[\r\n]+")
        ),
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_that_pinned_texts_and_chats_would_miss_is_refused(tmp_path: Path, fault: str) -> None:
    rules = byte_level(split(QWEN2), specials=QWEN_SPECIALS) | {"normalizer": {"type": "NFC"}}
    rules["added_tokens"].append({**rules["added_tokens"][-1], "id": 703, "content": "<tool>", "lstrip": True})
    named = {"eos_token": "<|im_end|>"}
    source = write_source(
        tmp_path / "s", rules, TEMPLATE_OF_REASONING, named, ("<|im_end|>",), "PreTrainedTokenizerFast"
    )
    package = write_package(tmp_path / "p", source, ("<|im_end|>",))
    if fault == next(iter(PLANTED)):  # the four packages are alike before their faults
        assert list(found(package, source)) == [*NAMES, ALONE]
    PLANTED[fault](package)
    with pytest.raises(
        CheckError, match=r" in the package(, \d+ ids)?; .* by (transformers|the source's tokenizer); use"
    ):
        found(package, source)


# ---------------------------------------------------------------------------------------------- where templates are

OTHER = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
INDENTED = (
    "{% for m in messages %}\n  {% if true %}\n<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "  {% endif %}\n"
    "{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}\n"
)
FILE, NAMED, SETTINGS = "chat_template.jinja", "additional_chat_templates", "tokenizer_config.json"
PLACES: dict[str, dict[str, Any]] = {
    "a file": {FILE: CHATML},
    "a string in the settings": {SETTINGS: CHATML},
    "a list in the settings": {
        SETTINGS: [{"name": "tool_use", "template": OTHER}, {"name": "default", "template": CHATML}],
    },
    "a file, and another in the settings": {FILE: CHATML, SETTINGS: OTHER},
    "a file, and a list in the settings": {FILE: CHATML, SETTINGS: [{"name": "default", "template": OTHER}]},
    "a file and named ones": {FILE: CHATML, f"{NAMED}/rag.jinja": OTHER, f"{NAMED}/tool_use.jinja": OTHER},
    "a file, and a named default": {FILE: OTHER, f"{NAMED}/default.jinja": CHATML},
    "the settings, and one for processors": {SETTINGS: CHATML, "chat_template.json": OTHER},
}  # fmt: skip


def write_templates(folder: Path, places: dict[str, Any]) -> None:
    (folder / FILE).unlink()
    for name, value in places.items():
        if name == SETTINGS:
            edit(folder / name, lambda config, value=value: config.update(chat_template=value))  # type: ignore[misc]
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(value)


@pytest.fixture(scope="module")
def seen() -> set[tuple[bytes, bytes]]:
    """The tokenizers of a package and its source for which all checks held."""
    return set()


@pytest.mark.parametrize("template", [CHATML, INDENTED], ids=["plain", "indented"])
@pytest.mark.parametrize("case", PLACES)
def test_the_package_renders_the_template_that_transformers_takes_wherever_it_is(
    tmp_path: Path, case: str, template: str, seen: set[tuple[bytes, bytes]]
) -> None:
    source = qwen2(tmp_path / "source")
    places = json.loads(json.dumps(PLACES[case]).replace(json.dumps(CHATML), json.dumps(template)))
    write_templates(source, places)
    assert require_templates(source)["default"].text == template
    package = write_package(tmp_path / "package", source, ("<|im_end|>", "<|endoftext|>"))
    repair_tokenizer(package, source, read_tokenizer(source))
    pair = Pair(package, source)
    assert [check(pair).name for check in TEMPLATE_CHECKS] == ["end of turn", "chat template"]
    # The other checks read no template, and these files are alike in all cases.
    read_by_the_others = (package / "tokenizer.json").read_bytes(), (source / "tokenizer.json").read_bytes()
    assert read_by_the_others in seen or list(found(package, source)) == [*NAMES, ALONE]
    seen.add(read_by_the_others)
    runtime = og.Tokenizer(og.Config(str(package)))
    for prompt in (
        runtime.apply_chat_template(json.dumps([{"role": "user", "content": "Hi"}])),
        pair.template.render([{"role": "user", "content": "Hi"}]),
    ):
        assert str(prompt).startswith("<|im_start|>user\nHi<|im_end|>")


def test_templates_that_transformers_could_not_choose_from_are_not_chosen_from(tmp_path: Path) -> None:
    source = qwen2(tmp_path / "source")
    write_templates(source, {SETTINGS: [{"name": "chatml", "template": CHATML}, {"name": "rag", "template": OTHER}]})
    with pytest.raises(SourceError, match=r"has the chat templates chatml, rag, and none that is the default"):
        require_templates(source)
    with pytest.raises(ValueError, match="multiple chat templates with no default"):
        read_tokenizer(source).apply_chat_template([{"role": "user", "content": "Hi"}])


# ---------------------------------------------------------------------------------------------- the end of a turn


def test_the_token_that_the_template_ends_a_turn_with_is_called_for(tmp_path: Path) -> None:
    source = llama3(tmp_path / "source", ("<|end_of_text|>",))
    edit(source / "tokenizer_config.json", lambda config: config.update(eos_token="<|end_of_text|>"))
    rules = json.loads((source / "tokenizer.json").read_text())
    assert end_ids_of(source, read_tokenizer(source)) == {
        token_id(rules, "<|end_of_text|>"): "generation_config.json",
        token_id(rules, "<|eot_id|>"): "the chat template",
    }
    package = write_package(tmp_path / "package", source, ("<|end_of_text|>",))
    with pytest.raises(
        CheckError, match=r"^end of turn: .*'<\|eot_id\|>' among them, since the chat template asks for it"
    ):
        found(package, source)


def test_phi_3_ends_with_what_its_generation_config_names_and_its_template_writes(tmp_path: Path) -> None:
    source = phi3(tmp_path / "source")
    rules = json.loads((source / "tokenizer.json").read_text())
    ends = {token_id(rules, text) for text in ("<|endoftext|>", "<|assistant|>", "<|end|>")}
    assert end_ids_of(source, read_tokenizer(source)).keys() == ends
    write_json(source / "generation_config.json", {"eos_token_id": token_id(rules, "<|endoftext|>")})
    assert end_ids_of(source, read_tokenizer(source)).keys() == ends - {token_id(rules, "<|assistant|>")}


def test_without_a_generation_config_the_model_config_counts(tmp_path: Path) -> None:
    source = qwen2(tmp_path / "source")
    rules = json.loads((source / "tokenizer.json").read_text())
    (source / "generation_config.json").unlink()
    write_json(source / "config.json", {"eos_token_id": token_id(rules, "<|endoftext|>")})
    assert end_ids_of(source, read_tokenizer(source)) == {
        token_id(rules, "<|endoftext|>"): "config.json",
        token_id(rules, "<|im_end|>"): "the tokenizer's eos_token",
    }


def test_a_merge_that_is_lost_at_the_end_is_found(tmp_path: Path) -> None:
    rules, ends = byte_level(split(QWEN2), specials=QWEN_SPECIALS), ("<|im_end|>",)
    source = write_source(tmp_path / "s", rules, CHATML, {"eos_token": "<|im_end|>"}, ends, "PreTrainedTokenizerFast")
    package = write_package(tmp_path / "p", source, ends)
    edit(package / "tokenizer.json", lambda found: found["model"]["merges"].pop())
    last = len(rules["model"]["merges"]) - 1
    with pytest.raises(CheckError, match=rf"^tokenizer file: merge {last} is None; \[.*\], as in the source"):
        found(package, source)
