"""The wrapper looks at a graph before the runtime opens it: what no build writes is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzed_parsers import genai_config
from hostile_graphs import HOSTILE, edit_graph, place

from slmpack.checkpoint.config_counts import MOST_LAYERS
from slmpack.errors import CheckError
from slmpack.log import chat_model
from slmpack.log.chat_model import IntegrityError, read_config, verify_graph
from slmpack.prove import onnx_graph
from slmpack.prove.onnx_graph import GraphRequest, read_graph
from slmpack.records import Package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A configuration and a graph of one layer."""
    parser = genai_config(tmp_path)
    parser.file.write_bytes(parser.whole)
    return tmp_path


def test_a_graph_as_builds_write_it_holds(package: Path) -> None:
    verify_graph(package)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_by_what_it_has(package: Path, name: str) -> None:
    edit, found = HOSTILE[name]
    edit_graph(package, edit)
    with pytest.raises(IntegrityError, match=rf"^model\.onnx .*{found}"):
        verify_graph(package)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_proof_refuses_each_of_them_too(package: Path, name: str) -> None:
    edit_graph(package, HOSTILE[name][0])
    with pytest.raises(CheckError, match=r"^graph: "):
        read_graph(GraphRequest(package=package))


@pytest.mark.parametrize(("content", "found"), [
    (b"", "is no file with a graph"),
    (b"\x3a", "is no ONNX graph"),  # a graph without a length
    (b"\x3a\x05\x0a", r"is no ONNX graph \(cut off\)"),
    (b"\x08\x08", r"is no ONNX graph \(without a graph\)"),
    (b"\x3b\x3c", r"is no ONNX graph \(a group"),
    (b"\xba\x80\x80\x80\x10\x00", "a field without a number"),  # 7 in the lower 32 bits of the tag
    (b"\x08" + b"\xff" * 11, "a number without an end"),
    (b"\x1c\x00\x00\x00ORTM" + b"\x00" * 64, "is no ONNX graph"),  # the runtime's own format
])  # fmt: skip
def test_what_is_no_graph_is_refused(package: Path, content: bytes, found: str) -> None:
    (package / "model.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"^model\.onnx {found}|^model\.onnx is no ONNX graph \({found}"):
        verify_graph(package)


def test_a_graph_that_is_also_of_the_runtimes_own_format_is_refused(package: Path) -> None:
    graph = package / "model.onnx"
    graph.write_bytes(b"\x12\x06xxORTM" + graph.read_bytes())  # the name of who made it
    with pytest.raises(IntegrityError, match=r"^model\.onnx is no ONNX graph \(the runtime's own format\)"):
        verify_graph(package)


def test_a_graph_of_more_fields_than_any_has_is_refused_before_they_are_read(package: Path) -> None:
    fields = b"\x10\x00" * (chat_model.MOST_FIELDS + 1)
    (package / "model.onnx").write_bytes(fields)
    with pytest.raises(IntegrityError, match=r"^model\.onnx is no ONNX graph \(more than 2,097,152 fields\)"):
        verify_graph(package)


def test_a_graph_or_weights_behind_a_link_are_refused(package: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "data").write_bytes(b"0000")
    (package / "data").symlink_to(other / "data")
    edit_graph(package, place(location="data"))
    with pytest.raises(IntegrityError, match="has values in data, which is no file of the package"):
        verify_graph(package)
    shutil.move(package / "model.onnx", other / "model.onnx")
    (package / "model.onnx").symlink_to(other / "model.onnx")
    with pytest.raises(IntegrityError, match="is no file with a graph"):
        verify_graph(package)


@pytest.mark.parametrize(("content", "where"), [
    ("{}", "model"), ("[]", ""), ('{"model": 7}', "model"), ('{"model": {}}', "model.context_length"),
    ('{"model": {"decoder": {"filename": "model.onnx"}}}', "model.decoder.head_size"),
])  # fmt: skip
def test_a_configuration_without_what_is_read_is_refused_by_its_place(package: Path, content: str, where: str) -> None:
    (package / "genai_config.json").write_text(content)
    with pytest.raises(IntegrityError, match=rf"^genai_config\.json has .* at '{where}'; only what a build writes"):
        read_config(package)


@pytest.mark.parametrize(("name", "value"), [
    ("context_length", 0), ("context_length", True), ("vocab_size", 2**31), ("vocab_size", 1.5),
    ("eos_token_id", []), ("eos_token_id", "2"), ("eos_token_id", None),
])  # fmt: skip
def test_a_value_that_cannot_be_right_is_refused_by_its_place(package: Path, name: str, value: object) -> None:
    config = json.loads((package / "genai_config.json").read_text())
    config["model"][name] = value
    (package / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=rf"at 'model\.{name}'; only what a build writes"):
        read_config(package)


@pytest.mark.parametrize(
    "name", ["past.%s.key", "past.%n.key", "past.%d.%d.key", "past.key", "past %d", "%5000d", "%d" + "x" * 999]
)
def test_a_name_that_c_would_format_otherwise_is_refused(package: Path, name: str) -> None:
    config = json.loads((package / "genai_config.json").read_text())
    config["model"]["decoder"]["inputs"]["past_key_names"] = name
    (package / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=r"at 'model\.decoder\.inputs\.past_key_names'; only what a build writes"):
        read_config(package)


@pytest.mark.parametrize(("place", "value"), [
    ("model.type", 7), ("model.bos_token_id", "1"), ("model.pad_token_id", 10**400), ("model.eos_token_id", [1, 16]),
    ("model.decoder.head_size", 2**31 - 1), ("model.decoder.num_key_value_heads", -1),
    ("model.decoder.num_hidden_layers", 10**9), ("model.decoder.session_options.log_id", "%n"),
    ("model.decoder.session_options.provider_options", [7]), ("model.decoder.inputs", []),
    ("model.decoder.outputs.logits", {}), ("search", None), ("search.do_sample", 0), ("search.max_length", 10**400),
])  # fmt: skip
def test_a_value_of_another_kind_is_refused_by_its_place(package: Path, place: str, value: object) -> None:
    config = inside = json.loads((package / "genai_config.json").read_text())
    *path, last = place.split(".")
    for key in path:
        inside = inside[key]
    inside[last] = value
    (package / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(
        IntegrityError, match=rf"^genai_config\.json has .* at '{place}'; only what a build writes"
    ) as told:
        read_config(package)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(("content", "found"), [
    (b"", "JSONDecodeError: "), (b"\xff", "UnicodeDecodeError: "), (b'{"model": 1, "model": {}}', "is there twice"),
    (b"[" * 200_000, "is nested too deep"), (b'{"a": ' * 200_000, "is nested too deep"),
    (b"9" * 5000, "ValueError: "), (b" " * (17 << 20), "has more than 16,777,216 bytes"),
], ids=["nothing", "no text", "twice", "lists", "dicts", "digits", "long"])  # fmt: skip
@pytest.mark.parametrize("name", ["genai_config.json", "chat_format.json", "manifest.json"])
def test_what_is_no_json_is_refused_in_a_line(package: Path, name: str, content: bytes, found: str) -> None:
    (package / name).write_bytes(content)
    readers: dict[str, Callable[[Path], object]] = {
        "genai_config.json": read_config,
        "chat_format.json": chat_model.ChatTemplate,
        "manifest.json": chat_model.verify_package,
    }
    with pytest.raises(IntegrityError, match=rf"^{name} .*{found}") as told:
        readers[name](package)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("value", ["0.9", True, [1], float("nan"), None])
def test_a_search_setting_that_is_no_number_is_refused(package: Path, value: object) -> None:
    config = json.loads((package / "genai_config.json").read_text())
    config["search"]["top_p"] = value
    (package / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=r"at 'search\.top_p'; only what a build writes"):
        read_config(package)


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "found"), [
    (lambda settings: settings.pop("special_tokens"), "special_tokens"),
    (lambda settings: settings.update(chat_template=None), "chat_template"),
    (lambda settings: settings.update(tool_template=7), "tool_template"),
    (lambda settings: settings.update(split_special_tokens="no"), "split_special_tokens"),
])  # fmt: skip
def test_a_chat_format_that_no_build_writes_is_refused(
    tiny_package: Package, tmp_path: Path, edit: object, found: str
) -> None:
    for name in ("chat_format.json", "tokenizer.json"):
        shutil.copy(tiny_package.path / name, tmp_path / name)
    path = tmp_path / "chat_format.json"
    path.chmod(0o644)
    settings = json.loads(path.read_text())
    edit(settings)  # type: ignore[operator]
    path.write_text(json.dumps(settings))
    for reader in (chat_model.ChatTemplate, chat_model.TextTokenizer):
        with pytest.raises(IntegrityError, match=rf"^chat_format\.json has no {found} as a build writes it; "):
            reader(tmp_path)


def test_wrapper_and_proof_have_the_same_limits() -> None:
    assert chat_model.OPERATOR_DOMAINS == onnx_graph.OPERATOR_DOMAINS
    assert chat_model.MOST_LAYERS == MOST_LAYERS
