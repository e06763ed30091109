"""Parity: what the runtime's tokenizer does is what transformers' does, and every difference is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from slmpack.build import build_package
from slmpack.chat_templates import require_templates
from slmpack.end_of_turn import end_ids_of
from slmpack.errors import CheckError, SourceError
from slmpack.json_file import write_json
from slmpack.known_parity import known_parity
from slmpack.parity import ParityRequest, check_parity, parity_of
from slmpack.records import Package, Recipe, Target
from slmpack.repair import repair_tokenizer
from slmpack.store import digest_files
from slmpack.tokenizer_pair import Pair, read_tokenizer

NAMES = [
    "tokenizer file", "vocabulary", "token ids", "token ids of raw text", "decoding", "chat template", "end of turn",
]  # fmt: skip
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
    assert [check.name for check in checks] == NAMES
    told = {check.name: check.found for check in checks}
    assert told["vocabulary"] == "49152 of 49152 ids"
    assert told["chat template"] == "12 chats, 0 refused by both"
    assert told["end of turn"] == "2 '<|im_end|>'"
    assert "other ids" not in " ".join(told.values())


@pytest.mark.slow
def test_a_decoder_that_the_runtime_takes_for_sentencepiece_is_refused(
    smollm2_package: Package, tmp_path: Path
) -> None:
    package = small_files_of(smollm2_package, tmp_path)
    edit(package / "tokenizer.json", lambda rules: rules.update(decoder=HYBRID_DECODER))
    with pytest.raises(CheckError, match=r"^vocabulary: '.*' gives the id -1 in the runtime; 0 to 49151; use --target"):
        check_parity(package, smollm2_package.snapshot.path, tmp_path / "log")


@pytest.mark.slow
def test_a_second_target_of_a_snapshot_is_not_compared_again_and_a_changed_tokenizer_is(
    tiny_package: Package, workspace: Path, tmp_path: Path
) -> None:
    checks = known_parity(tiny_package, tmp_path)
    assert [check.name for check in checks] == NAMES
    (log,) = (tmp_path / "logs").iterdir()
    written = log.stat().st_mtime_ns
    eight = build_package(tiny_package.snapshot, Target.CPU_INT8, Recipe.SMALL, workspace)
    assert eight.digest != tiny_package.digest
    assert known_parity(eight, tmp_path) == checks
    assert [each.stat().st_mtime_ns for each in (tmp_path / "logs").iterdir()] == [written]

    folder = tmp_path / "changed"
    folder.mkdir()
    drop_a_merge(small_files_of(tiny_package, folder))
    changed = tiny_package.model_copy(update={"path": folder, "files": digest_files(folder, "test")})
    for _ in range(2):  # a difference is not kept
        with pytest.raises(CheckError, match=r"^tokenizer file: merge 0"):
            known_parity(changed, tmp_path)
    assert len(list((tmp_path / "logs").iterdir())) == 2
    assert len(list((tmp_path / "parities").iterdir())) == 1


def drop_a_merge(package: Path) -> None:
    edit(package / "tokenizer.json", lambda rules: rules["model"]["merges"].pop(0))


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


def rename_a_role(package: Path) -> None:
    template = package / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "bot\n"))


def refuse_system_messages(package: Path) -> None:
    template = package / "chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template.write_text(refusal + template.read_text())


def add_an_end(package: Path) -> None:
    edit(package / "genai_config.json", lambda config: config["model"].update(eos_token_id=[2, 0]))


def exchange_the_end(package: Path) -> None:
    edit(package / "genai_config.json", lambda config: config["model"].update(eos_token_id=0))


def break_the_file(package: Path) -> None:
    (package / "tokenizer.json").write_text("{")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_merge, r"^tokenizer file: merge 0 is \[.*\]; \[.*\], as in the source; build the package again"),
        (drop_a_token, r"^tokenizer file: 4\d+ tokens, not all the source's; the source's 4\d+"),
        (
            drop_a_special_token,
            r"^token ids: '.*' gives \[.*\] in the runtime, \d+ ids; \[.*\], \d+ ids, by the source's",
        ),
        (cut_digits_together, r"^token ids: '.*\d.*' gives"),
        (drop_a_row, r"^vocabulary: the tokenizer has '.*' with the id 49151; ids below the 49151"),
        (rename_a_role, r"^chat template, one turn: '.*bot\\n' in the runtime; '.*assistant\\n' by transformers"),
        (refuse_system_messages, r"^chat template, a system message: the runtime's rendering refuses it"),
        (add_an_end, r"^end of turn: 0 '<\|endoftext\|>' is in eos_token_id .*; only 2 '<\|im_end\|>'"),
        (
            exchange_the_end,
            r"^end of turn: .* is \[0\]; 2 '<\|im_end\|>' among them, since generation_config.json asks",
        ),
        (break_the_file, r"^tokenizer: the runtime cannot read it"),
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


def test_a_llama_3_tokenizer_passes_and_its_template_may_write_the_date(tmp_path: Path) -> None:
    source = llama3(tmp_path / "source", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
    package = write_package(tmp_path / "package", source, ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
    told = found(package, source)
    assert list(told) == NAMES
    assert told["token ids"].endswith("; other ids for 1 of line ends within white space")
    assert told["chat template"] == "12 chats, 0 refused by both"
    assert all(text in told["end of turn"] for text in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))


def test_a_qwen_tokenizer_differs_only_on_text_that_it_would_normalise(tmp_path: Path) -> None:
    source = qwen2(tmp_path / "source")
    package = write_package(tmp_path / "package", source, ("<|im_end|>", "<|endoftext|>"))
    told = found(package, source)
    assert told["token ids"].endswith("; other ids for 1 of line ends within white space, 2 of text not in NFC")
    assert told["chat template"].endswith("; other ids for 1 of text not in NFC")


def test_a_phi_3_tokenizer_differs_only_on_what_the_runtime_cuts(tmp_path: Path) -> None:
    source = phi3(tmp_path / "source")
    package = write_package(tmp_path / "package", source, ("<|endoftext|>", "<|assistant|>", "<|end|>"))
    told = found(package, source)
    limits = [limit.partition(" of ")[2] for limit in told["token ids"].partition("other ids for ")[2].split(", ")]
    assert set(limits) <= {"", "a literal U+2581", "long unbroken text"}
    assert told["chat template"] == "12 chats, 0 refused by both"


def test_what_the_decoder_does_besides_is_refused(tmp_path: Path) -> None:
    rules = byte_level(split(QWEN2), specials=QWEN_SPECIALS)
    strip = {"type": "Strip", "content": "T", "start": 1, "stop": 0}
    rules["decoder"] = {"type": "Sequence", "decoders": [rules["decoder"], strip]}
    named = {"eos_token": "<|im_end|>"}
    source = write_source(tmp_path / "source", rules, CHATML, named, ("<|im_end|>",), "PreTrainedTokenizerFast")
    package = write_package(tmp_path / "package", source, ("<|im_end|>",))
    with pytest.raises(CheckError, match=r"^decoding: 'The quick .* in the runtime; 'he quick .* by the source's"):
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


@pytest.mark.parametrize("template", [CHATML, INDENTED], ids=["plain", "indented"])
@pytest.mark.parametrize("case", PLACES)
def test_the_package_renders_the_template_that_transformers_takes_wherever_it_is(
    tmp_path: Path, case: str, template: str
) -> None:
    source = qwen2(tmp_path / "source")
    places = json.loads(json.dumps(PLACES[case]).replace(json.dumps(CHATML), json.dumps(template)))
    write_templates(source, places)
    assert require_templates(source)["default"].text == template
    package = write_package(tmp_path / "package", source, ("<|im_end|>", "<|endoftext|>"))
    repair_tokenizer(package, source)
    assert found(package, source)["chat template"].startswith("12 chats, 0 refused by both")
    prompt = Pair(package, source).runtime.apply_chat_template(json.dumps([{"role": "user", "content": "Hi"}]))
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
