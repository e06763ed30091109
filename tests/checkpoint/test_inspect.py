"""Checkpoint: what is refused before anything expensive, and what is read from headers."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_tiny_phi3
from safetensors.numpy import save_file

from slmpack.checkpoint.inspect import inspect_checkpoint, relevant_files
from slmpack.checkpoint.licence import licence_of
from slmpack.errors import SourceError
from slmpack.records import Snapshot

pytestmark = pytest.mark.slow  # every test starts from a real checkpoint


@pytest.fixture(scope="module")
def small_phi3(smollm2: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Phi-3 with SmolLM2's tokenizer, its vocabulary cut after the first 1,000 tokens."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-phi3"
    write_tiny_phi3(folder, tokenizer=smollm2.path, vocabulary=1000)
    rules = json.loads((folder / "tokenizer.json").read_text())
    words = {word: index for word, index in rules["model"]["vocab"].items() if index < 1000}
    merges = [pair for pair in rules["model"]["merges"] if {*pair, "".join(pair)} <= words.keys()]
    rules["model"] |= {"vocab": words, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    return folder


@pytest.fixture
def checkpoint(small_phi3: Path, tmp_path: Path) -> Path:
    """A checkpoint whose files may be replaced: small ones are copies, weights a link."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in small_phi3.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        else:
            shutil.copyfile(path, folder / path.name)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def safetensors_bytes(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def split_into_shards(folder: Path) -> dict[str, str]:
    """Replace the weights by two shards of real tensors and an index; return its weight_map."""
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_torch

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(shards.values()):
        save_torch({name: tensors[name] for name in names if shards[name] == shard}, folder / shard)
    write_index(folder, shards)
    return shards


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_reads_what_a_checkpoint_is_from_its_headers(small_phi3: Path) -> None:
    from safetensors.torch import load_file

    facts = inspect_checkpoint(small_phi3)
    assert (facts.architecture, facts.dtype, facts.layers, facts.context_length) == ("Phi3ForCausalLM", "BF16", 2, 4096)
    assert facts.parameters == sum(tensor.numel() for tensor in load_file(small_phi3 / "model.safetensors").values())


def test_shards_give_the_same_facts_as_one_file(checkpoint: Path) -> None:
    whole = inspect_checkpoint(checkpoint)
    split_into_shards(checkpoint)
    assert inspect_checkpoint(checkpoint) == whole


def test_does_not_import_torch_nor_run_code_of_the_checkpoint(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", auto_map={"AutoConfig": "configuration_evil.Evil"})
    (checkpoint / "configuration_evil.py").write_text("raise SystemExit('ran')")
    code = (
        "import sys; from pathlib import Path; from slmpack.checkpoint.inspect import inspect_checkpoint;"
        "print(inspect_checkpoint(Path(sys.argv[1])).architecture, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(checkpoint)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["Phi3ForCausalLM", "False"]
    assert "configuration_evil.py" not in relevant_files(checkpoint)


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def weights(content: bytes) -> Callable[[Path], None]:
    return lambda folder: replace(folder / "model.safetensors", content)


def remove(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: replace(folder / name, content.encode())


def rename_weights(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)

    return damage


def save_with_torch(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(4)}, folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    replace(folder / "model.safetensors", whole[: len(whole) // 2])


def write_int8(folder: Path) -> None:
    import numpy as np

    (folder / "model.safetensors").unlink()
    tensors = {f"model.layers.{layer}.mlp.weight": np.zeros((64, 64), np.int8) for layer in range(2)}
    save_file(tensors, folder / "model.safetensors")


def name_a_missing_shard(folder: Path) -> None:
    shards = split_into_shards(folder)
    write_index(folder, shards | {"extra": "model-00003-of-00003.safetensors"})


def name_a_missing_tensor(folder: Path) -> None:
    shards = split_into_shards(folder)
    write_index(folder, shards | {"model.extra.weight": "model-00001-of-00002.safetensors"})


def leave_the_folder(folder: Path) -> None:
    split_into_shards(folder)
    (folder.parent / "outside.safetensors").write_bytes(safetensors_bytes({}))
    write_index(folder, {"weight": "../outside.safetensors"})


def second_shard(edit: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        split_into_shards(folder)
        edit(folder / "model-00002-of-00002.safetensors")

    return damage


def cut_in_half(path: Path) -> None:
    replace(path, path.read_bytes()[: path.stat().st_size // 2])


def write_pointer(path: Path) -> None:
    size = path.stat().st_size
    replace(path, f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n".encode())


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


def add_token(content: str, special: bool, post_processor: bool = False, **settings: str) -> Callable[[Path], None]:
    """Add a token after the 1,000 that the tokenizer has, as somebody does who forgets to resize the embedding."""

    def damage(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer["added_tokens"].append({"id": 1000, "content": content, "special": special} | flags)
        if post_processor:
            first, text = {"SpecialToken": {"id": content, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
            tokenizer["post_processor"] = {
                "type": "TemplateProcessing", "single": [first, text], "pair": [first, text],
                "special_tokens": {content: {"id": content, "ids": [1000], "tokens": [content]}},
            }  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        edit_json(folder / "tokenizer_config.json", **settings)

    return damage


def pad_rows(folder: Path) -> None:
    """Give the embedding and the head 48 rows more than there are tokens, and say so in the configuration."""
    edit_rows(folder, 1048)
    edit_json(folder / "config.json", vocab_size=1048)


def cut_rows(folder: Path) -> None:
    edit_rows(folder, 600)
    edit_json(folder / "config.json", vocab_size=600)


def edit_rows(folder: Path, rows: int) -> None:
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_torch

    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        whole = tensors[name]
        tensors[name] = whole.new_zeros(rows, whole.shape[1])
    (folder / "model.safetensors").unlink()
    save_torch(tensors, folder / "model.safetensors")


def settings_template(value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        edit_json(folder / "tokenizer_config.json", chat_template=value)

    return damage


def only_template(name: str, settings: str | None = None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"chat_template": "{{ messages }}"}')
        edit_json(folder / "tokenizer_config.json", chat_template=settings)

    return damage


BEYOND = {"weight": {"dtype": "F32", "shape": [1024], "data_offsets": [0, 4096]}}
NOT_ALIGNED = {"weight": {"dtype": "F32", "shape": [1024], "data_offsets": [0, 8]}}

BAD = {
    "no config": (remove("config.json"), r"config\.json cannot be read .*a checkpoint with config"),
    "a config that is not JSON": (text("config.json", "{"), r"config\.json is not JSON"),
    "a config that is a list": (text("config.json", "[]"), r"config\.json holds a list"),
    "no architectures": (config(architectures=None), r"config\.json names no architectures"),
    "empty architectures": (config(architectures=[]), r"config\.json names no architectures"),
    "an architecture nobody knows": (config(architectures=["FooForCausalLM"]), r"FooForCausalLM.*transformers \d"),
    "a model type nobody knows": (config(model_type="foo", auto_map={"AutoConfig": "x.Y"}), r"auto_map, is never run"),
    "an encoder": (config(architectures=["BertForMaskedLM"], model_type="bert"), r"BertForMaskedLM; a decoder-only"),
    "an encoder and decoder": (config(is_encoder_decoder=True), r"a decoder-only language model"),
    "quantised by its config": (config(quantization_config={"quant_method": "gptq"}), r"quantised .*not supported yet"),
    "quantised by its weights": (write_int8, r"are I8; .*not supported yet"),
    "no number of layers": (config(num_hidden_layers=None), r"config\.json has no num_hidden_layers"),
    "a context of zero": (config(max_position_embeddings=0), r"config\.json has no max_position_embeddings"),
    "layers that are not there": (config(num_hidden_layers=3), r"no weights for layer 2; all 3 layers"),
    "no weights": (remove("model.safetensors"), r"has no weights; model\.safetensors or"),
    "only pickles": (rename_weights("pytorch_model.bin"), r"weights as pickles \(pytorch_model\.bin\); safetensors"),
    "weights of another name": (rename_weights("consolidated.safetensors"), r"has consolidated\.safetensors; model"),
    "a pickle in disguise": (weights(pickle.dumps({"a": 1}) * 9), r"model\.safetensors is a pickle"),
    "a torch file in disguise": (save_with_torch, r"model\.safetensors is a zip archive as torch\.save writes"),
    "a Git LFS pointer": (weights(b"version https://git-lfs.github.com/spec/v1\noid"), r"is a Git LFS pointer"),
    "an empty file": (weights(b""), r"model\.safetensors is damaged"),
    "a file cut off": (cut_off, r"model\.safetensors is damaged"),
    "a header longer than the file": (weights((1 << 40).to_bytes(8, "little") + b"{}"), r"safetensors is damaged"),
    "a header that is not JSON": (weights((8).to_bytes(8, "little") + b"{{{{{{{{"), r"safetensors is damaged"),
    "offsets beyond the file": (weights(safetensors_bytes(BEYOND, b"\0" * 16)), r"safetensors is damaged"),
    "offsets that do not fit the shape": (weights(safetensors_bytes(NOT_ALIGNED, b"\0" * 8)), r"is damaged"),
    "a header without tensors": (weights(safetensors_bytes({})), r"the weights in .* are none"),
    "an index naming a shard that is not there": (name_a_missing_shard, r"names model-00003-of-00003\.safetensors"),
    "an index naming a tensor that is not there": (name_a_missing_tensor, r"names model\.extra\.weight, which model-"),
    "an index that leaves the folder": (leave_the_folder, r"names \.\./outside\.safetensors"),
    "a shard that is cut off": (second_shard(cut_in_half), r"model-00002-of-00002\.safetensors is damaged"),
    "a shard that is empty": (second_shard(lambda path: replace(path, b"")), r"model-00002-.* is damaged"),
    "a shard that is a Git LFS pointer": (second_shard(write_pointer), r"model-00002-.* is a Git LFS pointer"),
    "a shard that is not there": (second_shard(Path.unlink), r"names model-00002-of-00002\.safetensors, which is not"),
    "fewer rows than tokens": (
        cut_rows,
        r"(lm_head|model\.embed_tokens)\.weight in .* has 600 rows, but its tokenizer makes ids up to 999 "
        r".*; a row for each id; take the tokenizer that",
    ),
    "other rows than the config says": (
        config(vocab_size=600),
        r"has 1,000 rows; the 600 of vocab_size in config\.json",
    ),
    "a token without a row": (add_token("<word>", special=False), r"1,000 rows, but .* ids up to 1,000 \('<word>'\)"),
    "a token without a row that ends answers": (
        add_token("<end>", special=True, eos_token="<end>"),
        r"ids up to 1,000 \('<end>'\), which eos_token in tokenizer_config\.json writes; a row for each id",
    ),
    "a padding token without a row that the template writes": (
        both(add_token("<pad>", special=True, pad_token="<pad>"), text("chat_template.jinja", "{{ pad_token }}")),
        r"\('<pad>'\), which the chat template default writes",
    ),
    "a token without a row that stands before every text": (
        add_token("<first>", special=True, post_processor=True),
        r"\('<first>'\), which the post-processor of tokenizer\.json writes",
    ),
    "a token without a row that generation ends at": (
        both(add_token("<end>", special=True), text("generation_config.json", '{"eos_token_id": [2, 1000]}')),
        r"\('<end>'\), which eos_token_id in generation_config\.json writes",
    ),
    "weights that the configuration has elsewhere": (
        config(transformers_weights="fused.safetensors"),
        r"config\.json names 'fused\.safetensors' in transformers_weights; weights in model\.safetensors",
    ),
    "generation settings that are not JSON": (
        text("generation_config.json", "{"),
        r"generation_config\.json is not JSON",
    ),
    "generation settings that are null": (text("generation_config.json", "null"), r"holds a NoneType; a JSON object"),
    "generation settings that are a list": (text("generation_config.json", "[]"), r"holds a list; a JSON object"),
    "an end of answers that is a text": (
        text("generation_config.json", '{"eos_token_id": "2"}'),
        r"eos_token_id in .*generation_config\.json is '2'; the id of a token",
    ),
    "no tokenizer": (remove("tokenizer.json"), r"has no tokenizer; tokenizer\.json"),
    "a tokenizer that is cut off": (text("tokenizer.json", '{"model": {'), r"tokenizer\.json is not JSON"),
    "a tokenizer without a model": (text("tokenizer.json", "{}"), r"tokenizer\.json has no model; a fast tokenizer"),
    "no chat template": (remove("chat_template.jinja"), r"no chat template; one in chat_template\.jinja"),
    "a chat template that does not compile": (text("chat_template.jinja", "{% for m in %}"), r"does not compile"),
    "a chat template that is not text": (settings_template(7), r"in .*tokenizer_config\.json is not text"),
    "named templates that are not text": (settings_template([7]), r"in .*tokenizer_config\.json is not text"),
    "a template whose name is a path": (
        settings_template([{"name": "../x", "template": "{{ messages }}"}]),
        r"has the name '\.\./x'; one such as default",
    ),
    "named templates and no default": (
        settings_template([{"name": "chatml", "template": "x"}, {"name": "rag", "template": "x"}]),
        r"has the chat templates chatml, rag, and none that is the default; one in chat_template\.jinja, or named",
    ),
    "a named file and no default": (
        only_template("additional_chat_templates/rag.jinja"),
        r"the chat templates rag, and",
    ),
    "a named file, whatever the settings have": (
        only_template("additional_chat_templates/rag.jinja", settings="{{ messages }}"),
        r"the chat templates rag, and",
    ),
    "a template for processors": (
        only_template("chat_template.json"),
        r"template in chat_template\.json, which tokenizers do not read; one in",
    ),
    "a named template that does not compile": (
        settings_template([{"name": "default", "template": "x"}, {"name": "rag", "template": "{% for %}"}]),
        r"does not compile",
    ),
    "a tokenizer configuration that is not JSON": (text("tokenizer_config.json", "{"), r"config\.json is not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(checkpoint: Path, case: str) -> None:
    damage, message = BAD[case]
    damage(checkpoint)
    with pytest.raises(SourceError, match=message) as caught:
        inspect_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        pad_rows,
        add_token("<image>", special=True),
        add_token("[PAD]", special=True, pad_token="[PAD]"),
        add_token("[PAD]", special=False, pad_token="[PAD]"),
    ],
    ids=["rows", "idle special token", "padding token", "padding token that is not special"],
)
def test_takes_rows_without_a_token_and_tokens_that_nothing_writes(
    checkpoint: Path, change: Callable[[Path], None]
) -> None:
    change(checkpoint)
    assert inspect_checkpoint(checkpoint).architecture == "Phi3ForCausalLM"


@pytest.mark.parametrize("names", [("vocab.json",), ("merges.txt",), ("vocab.txt",), ("spiece.model",)])
def test_says_so_when_there_is_only_a_slow_tokenizer(checkpoint: Path, names: tuple[str, ...]) -> None:
    (checkpoint / "tokenizer.json").unlink()
    for name in names:
        (checkpoint / name).write_text("{}")
    message = rf"only a slow tokenizer \({', '.join(names)}\); tokenizer\.json, a fast one; run AutoTokenizer\.from_pre"
    with pytest.raises(SourceError, match=message):
        inspect_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "chat_template.jinja",
            "{% generation %}{{ messages }}{% endgeneration %}{% for m in [] %}{% break %}{% endfor %}",
        ),
        ("additional_chat_templates/default.jinja", "{{ messages }}"),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "{{ messages }}"}]}'),
    ],
)
def test_finds_the_chat_template_wherever_it_is(checkpoint: Path, name: str, content: str) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text(content)
    assert inspect_checkpoint(checkpoint).architecture == "Phi3ForCausalLM"


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, None),
        ({"README.md": "# no card"}, None),
        ({"README.md": "---\nlicense: mit\n---\n"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: gemma\n---\n"}, "gemma"),
        ({"README.md": "---\nlicense: [\n---\n", "LICENSE": "MIT License\n\nCopyright"}, "mit"),
        ({"LICENSE.txt": "Apache License\nVersion 2.0, January 2004"}, "apache-2.0"),
        ({"LICENSE": "All rights reserved"}, "see LICENSE"),
        ({"LICENSE.txt": "A license file could not be found for the 'x' repository."}, None),
        ({"LICENSES/MIT.txt": "MIT License", "LICENSES/Apache-2.0.txt": "Apache License"}, "apache-2.0 and mit"),
        ({"LICENSE.d/x": "", "README.md/x": "", "LICENCE": "MIT License"}, "mit"),
    ],
)
def test_reads_the_licence_from_the_card_or_its_file(
    tmp_path: Path, files: dict[str, str], licence: str | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert licence_of(tmp_path) == licence


def test_takes_along_what_a_model_needs_and_nothing_else(tmp_path: Path) -> None:
    needed = {
        "config.json", "generation_config.json", "layers-1.safetensors", "model.safetensors.index.json",
        "tokenizer.json", "tokenizer.model", "additional_chat_templates/rag.jinja", "LICENSE", "NOTICE.txt",
        "README.md", "LICENSES/MIT.txt",
    }  # fmt: skip
    left = {
        "pytorch_model.bin", "modeling_phi3.py", "consolidated.safetensors", "model.fp16.safetensors", "model.onnx",
        "onnx/config.json", "original/model.safetensors", "x.gguf", "training_args.bin", "optimizer.pt",
        "model-00001-of-00002.safetensors", "consolidated.safetensors.index.json",
    }  # fmt: skip
    for name in needed | left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write_index(tmp_path, {"a": "layers-1.safetensors", "b": "layers-2.safetensors"})  # the second is not there
    assert set(relevant_files(tmp_path)) == needed
    (tmp_path / "model.safetensors").touch()
    assert set(relevant_files(tmp_path)) == (
        needed - {"layers-1.safetensors", "model.safetensors.index.json"} | {"model.safetensors"}
    )


@pytest.mark.parametrize(
    "name",
    ["README.md", "LICENSE", "LICENSES", "NOTICE", "generation_config.json", "special_tokens_map.json", "vocab.json",
     "additional_chat_templates/rag.jinja", "model.safetensors.index.json", "tokenizer_config.json"],
)  # fmt: skip
def test_a_folder_in_a_files_place_is_no_file(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name / "within").mkdir(parents=True)
    (checkpoint / name / "own.txt").touch()
    inspect_checkpoint(checkpoint)
    assert name not in relevant_files(checkpoint)
    licence_of(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file_that_is_needed_is_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).mkdir()
    with pytest.raises(SourceError) as caught:
        inspect_checkpoint(checkpoint)
    assert str(caught.value).count(";") >= 2


@pytest.mark.parametrize(
    "form", ["layers-{}.safetensors", "model.safetensors-{:05d}-of-00002.safetensors", "Modell {} (größer).safetensors"]
)
def test_shards_have_the_names_that_the_index_gives_them(checkpoint: Path, form: str) -> None:
    expected = inspect_checkpoint(checkpoint)
    shards = split_into_shards(checkpoint)
    renamed = {old: form.format(number) for number, old in enumerate(sorted(set(shards.values())), 1)}
    for old, new in renamed.items():
        (checkpoint / old).rename(checkpoint / new)
    write_index(checkpoint, {name: renamed[old] for name, old in shards.items()})
    shutil.copyfile(checkpoint / renamed["model-00001-of-00002.safetensors"], checkpoint / "consolidated.safetensors")
    assert inspect_checkpoint(checkpoint) == expected
    assert {name for name in relevant_files(checkpoint) if name.endswith(".safetensors")} == set(renamed.values())


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "a\\x.safetensors", "x\0.safetensors", "x\n.safetensors",
     "x.bin", "%2e%2e.safetensors", ".safetensors", 7, None, ["x.safetensors"]],
)  # fmt: skip
def test_a_shard_lies_beside_its_index(checkpoint: Path, shard: object) -> None:
    (checkpoint / "model.safetensors").unlink()
    write_index(checkpoint, {"a": shard})
    for read in (inspect_checkpoint, relevant_files):
        with pytest.raises(SourceError, match=r"names .*; the name of a \.safetensors file beside it; ") as caught:
            read(checkpoint)
        assert str(caught.value).isprintable()
