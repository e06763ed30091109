"""Parsers to fuzz: for each a valid file, how a damaged copy of it is made, and who reads the file from a stranger."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml  # type: ignore[import-untyped]
from mutations import mutate_bytes, mutate_json, mutate_tree, mutate_yaml, write_tree
from small_tokenizers import CHATML, byte_level, write_source

Mutate = Callable[[random.Random], bytes]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class Parser(NamedTuple):
    """A file, its content when whole and when damaged, and who reads it: each returns, or raises an error of ours."""

    file: Path
    whole: bytes
    mutate: Mutate
    readers: tuple[Callable[[], object], ...]


def gguf(folder: Path) -> Parser:
    from gguf_files import byte_level_fields, sentencepiece_fields, write_gguf

    from slmpack.source.gguf.convert import inspect_gguf
    from slmpack.source.gguf.header import read_header
    from slmpack.source.gguf.tokenizer import write_tokenizer

    file, into = folder / "model.gguf", folder / "tokenizer"
    into.mkdir()
    whole, headers = [], []
    for fields in (byte_level_fields(), sentencepiece_fields()):
        header = read_header(write_gguf(file, fields))
        start = min(tensor.start for tensor in header.tensors)
        whole.append(file.read_bytes())
        headers.append((header.metadata, whole[-1][start:]))

    def mutate(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutate_bytes(rng, rng.choice(whole), head=2000)
        number = rng.randrange(2)
        metadata = mutate_tree(rng, headers[number][0], raw=0)
        return _with_metadata(rng, whole[number], metadata, len(headers[number][0]))

    return Parser(file, whole[0], mutate, (partial(inspect_gguf, file), partial(write_tokenizer, file, into)))


def _with_metadata(rng: random.Random, content: bytes, metadata: Any, entries: int) -> bytes:
    """Return a GGUF file with other values of metadata; the tensors' table stays where it is relative to them."""
    from slmpack.source.gguf.header import _Reader

    reader: Any = _Reader(Path("whole"), content)  # type: ignore[arg-type] # bytes are read as a map is
    tensors = reader._scalar("Q")
    reader._scalar("Q")
    for _ in range(entries):
        reader._string()
        reader._value(reader._scalar("I"))
    if not isinstance(metadata, dict):
        metadata = {"general.architecture": metadata}
    values = b"".join(_text(key) + _value(rng, value) for key, value in metadata.items())
    count = len(metadata) if rng.random() < 0.95 else 2**63
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + values + content[reader._position :]


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _value(rng: random.Random, value: Any) -> bytes:
    if isinstance(value, list):
        kinds = {_value(rng, each)[:4] for each in value[:1]} or {struct.pack("<I", 4)}
        items = [_value(rng, each) for each in value]
        return struct.pack("<I", 9) + kinds.pop() + struct.pack("<Q", len(items)) + b"".join(each[4:] for each in items)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<IQ", 10, value % 2**64) if rng.random() < 0.5 else struct.pack("<Ii", 5, value % 2**31)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _text(value if isinstance(value, str) else "")


def safetensors(folder: Path) -> Parser:
    from safetensors.numpy import save_file

    from slmpack.checkpoint.headers import raw_header, read_header, read_weights

    whole = _numbers(save_file, folder / "model.safetensors")
    length = int.from_bytes(whole[:8], "little")

    def mutate(rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return mutate_bytes(rng, whole, head=8 + length)
        text = write_tree(mutate_tree(rng, json.loads(whole[8 : 8 + length])))
        claimed = len(text) if rng.random() < 0.9 else rng.choice((0, 2**31, 2**63, 2**64 - 1))
        return claimed.to_bytes(8, "little") + text + whole[8 + length :]

    file = folder / "model.safetensors"
    raw = _translated(partial(raw_header, file), ValueError)  # which `finite` and `original` translate
    return Parser(file, whole, mutate, (partial(read_header, file), partial(read_weights, folder), raw))


def index(folder: Path) -> Parser:
    from safetensors.numpy import save_file

    from slmpack.checkpoint.headers import INDEX, read_weights
    from slmpack.checkpoint.inspect import relevant_files

    _numbers(save_file, folder / "model-1.safetensors")
    content = write_tree(
        {"metadata": {"total_size": 32}, "weight_map": dict.fromkeys(("a", "b"), "model-1.safetensors")}
    )
    readers = partial(read_weights, folder), partial(relevant_files, folder)
    return Parser(folder / INDEX, content, lambda rng: mutate_json(rng, content), readers)


def _numbers(save: Callable[..., object], file: Path) -> bytes:
    import numpy as np

    save({"a": np.zeros((2, 2), np.float32), "b": np.ones(4, np.float32)}, file, {"format": "pt"})
    return file.read_bytes()


def _checkpoint(folder: Path) -> None:
    """Write a checkpoint of one layer."""
    import numpy as np
    from safetensors.numpy import save_file

    rules = byte_level(specials=SPECIALS)
    source = write_source(folder / "x", rules, CHATML, {"eos_token": SPECIALS[2], "bos_token": SPECIALS[0]},
                          SPECIALS[2:], "PreTrainedTokenizerFast")  # fmt: skip
    for path in source.iterdir():
        path.rename(folder / path.name)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 2,
        "num_attention_heads": 1, "max_position_embeddings": 64, "vocab_size": 710, "eos_token_id": [3, 4],
        "rope_parameters": {"rope_type": "default"}, "quantization_config": None,
    }  # fmt: skip
    (folder / "config.json").write_bytes(write_tree(config))
    names = {"model.embed_tokens.weight": (710, 2), "model.layers.0.self_attn.q_proj.weight": (2, 2)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in names.items()}, folder / "model.safetensors")


def _of_checkpoint(name: str) -> Callable[[Path], Parser]:
    def make(folder: Path) -> Parser:
        from slmpack.checkpoint.chat_templates import templates_of
        from slmpack.checkpoint.inspect import inspect_checkpoint, inspect_generation, inspect_tokenizer
        from slmpack.checkpoint.rowless_tokens import find_rowless

        _checkpoint(folder)
        content = (folder / name).read_bytes()
        tree = json.loads(content)
        if name == "config.json":
            olive = {"quant_method": "olive", "bits": 4, "group_size": 32, "overrides": {"a": {"bits": 4}}}
            tree["quantization_config"] = olive
        contents = content, write_tree(tree)
        readers = (
            partial(inspect_checkpoint, folder), partial(inspect_tokenizer, folder),
            partial(inspect_generation, folder), partial(templates_of, folder), partial(find_rowless, folder, 600),
        )  # fmt: skip
        return Parser(folder / name, content, lambda rng: mutate_json(rng, rng.choice(contents)), readers)

    return make


def adapter(folder: Path) -> Parser:
    from slmpack.source.adapter import inspect_adapter, inspect_folder

    file = folder / "adapter_config.json"
    from safetensors.numpy import save_file

    _numbers(save_file, folder / "adapter_model.safetensors")
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base", "revision": None, "r": 8,
        "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": True, "rank_pattern": {},
        "use_dora": False, "modules_to_save": None, "layers_to_transform": None, "loftq_config": {},
    }  # fmt: skip
    content = write_tree(config)
    readers = partial(inspect_adapter, file, "the adapter"), partial(inspect_folder, folder)
    return Parser(file, content, lambda rng: mutate_json(rng, content), readers)


def chats(folder: Path) -> Parser:
    from slmpack.chats.chat import ChatError, parse_chat
    from slmpack.chats.dataset import check_chats
    from slmpack.chats.lines import read_good_chats

    file = folder / "chats.jsonl"
    lines = [
        json.dumps({"messages": [
            {"role": "system", "content": "Be short."}, {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": [{"type": "text", "text": f"It is {number}."}], "weight": 1},
        ]}).encode()
        for number in range(60)
    ]  # fmt: skip

    def mutate(rng: random.Random) -> bytes:
        changed = [mutate_json(rng, line) if rng.random() < 0.05 else line for line in lines]
        return mutate_bytes(rng, b"\n".join(changed)) if rng.random() < 0.3 else b"\n".join(changed)

    def each_line() -> None:
        for line in file.read_bytes().split(b"\n"):
            _translated(partial(parse_chat, line), ChatError)()

    def good() -> int:
        return sum(1 for _ in read_good_chats(file))

    return Parser(file, b"\n".join(lines), mutate, (partial(check_chats, file), good, each_line))


def mlmodel(folder: Path) -> Parser:
    import mlflow
    from mlflow_database import write_empty_database

    from slmpack.log.staging import WRAPPER
    from slmpack.log.trust import require_trusted_folder
    from slmpack.prove.logged_files import TEXT_FILES, read_logged_files
    from slmpack.records import LoggedModel
    from slmpack.source.logged_model import pin

    write_empty_database(folder / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.create_experiment("fuzz", (folder / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        for name in TEXT_FILES:
            mlflow.log_text("mlflow==3.17.2\n", f"model/{name}")
    place = folder / "artifacts" / run.info.run_id / "artifacts" / "model"
    shutil.copyfile(WRAPPER, place / WRAPPER.name)
    model: LoggedModel = cast(Any, LoggedModel).model_construct(uri=str(place))  # no other field is looked at
    readers = (
        partial(require_trusted_folder, "the model", place), partial(read_logged_files, model, folder),
        partial(pin, f"runs:/{run.info.run_id}/model"),
    )  # fmt: skip
    return Parser(place / "MLmodel", _MLMODEL.encode(), lambda rng: mutate_yaml(rng, yaml.safe_load(_MLMODEL)), readers)


_MLMODEL = """
artifact_path: model
flavors:
  python_function:
    artifacts: {package: {path: artifacts/package, uri: package}}
    code: null
    env: {conda: conda.yaml, virtualenv: python_env.yaml}
    loader_module: mlflow.pyfunc.loaders.code_model
    model_code_path: chat_model.py
    python_version: 3.12.3
    streamable: true
  transformers: {model_binary: model, task: text-generation, code: null, framework: pt}
metadata: {task: llm/v1/chat, license: mit, slmpack: {digest: "00"}}
mlflow_version: 3.17.2
model_id: null
model_size_bytes: 1000
model_uuid: 0123456789abcdef0123456789abcdef
resources: {databricks: {serving_endpoint: [{name: x}]}, api_version: "1"}
run_id: 0123456789abcdef0123456789abcdef
saved_input_example_info: {artifact_path: input_example.json, type: json_object, serving_input_path: x}
signature: {inputs: '[{"type": "string", "required": true}]', outputs: '[{"type": "string"}]', params: null,
  type_hint: null}
type_hint_from_example: false
utc_time_created: '2026-11-27 10:00:00.000000'
"""


def graph(folder: Path) -> Parser:
    """A graph with all that the wrapper looks at: values beside it, and bodies within bodies."""
    from onnx import TensorProto, helper, load

    from slmpack.log.chat_model import IntegrityError, verify_graph

    parser = genai_config(folder)
    parser.file.write_bytes(parser.whole)
    (folder / "data").write_bytes(bytes(8))
    model = load(folder / "model.onnx")
    outside = TensorProto(name="outside", data_type=1, dims=[2], data_location="EXTERNAL")
    for key, value in {"location": "data", "offset": "0", "length": "8"}.items():
        outside.external_data.add(key=key, value=value)
    model.graph.initializer.append(outside)
    number = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("c", TensorProto.FLOAT, (1,), [0.0]))
    body = helper.make_graph([number], "body", [], [], [helper.make_tensor("d", TensorProto.FLOAT, (1,), [0.0])])
    for kind in ("If", "If", "Loop"):
        names = {"body": body} if kind == "Loop" else {"then_branch": body, "else_branch": body}
        body = helper.make_graph([helper.make_node(kind, ["x"], ["y"], **names)], "body", [], [])
    model.graph.node.extend(body.node)
    content = model.SerializeToString()
    reader = _translated(partial(verify_graph, folder), IntegrityError)  # the other one has a process of its own
    return Parser(folder / "model.onnx", content, lambda rng: mutate_bytes(rng, content), (reader,))


def chat_format(folder: Path) -> Parser:
    from slmpack.log.chat_model import ChatTemplate, IntegrityError, TemplateFileError

    content = write_tree({
        "chat_template": CHATML, "tool_template": None, "special_tokens": {"eos_token": SPECIALS[2], "more": ["<x>"]},
        "split_special_tokens": False,
    })  # fmt: skip
    reader = _translated(partial(ChatTemplate, folder), IntegrityError, TemplateFileError)
    return Parser(folder / "chat_format.json", content, lambda rng: mutate_json(rng, content), (reader,))


def manifest(folder: Path) -> Parser:
    from slmpack.log.chat_model import IntegrityError, verify_model, verify_package
    from slmpack.machine.store import Manifest, digest_files

    (folder / "weights").write_bytes(bytes(100))
    (folder / "deep").mkdir()
    (folder / "deep" / "config.json").write_text("{}")
    content = Manifest(files=digest_files(folder, "fuzz"), facts={}).model_dump_json().encode()
    readers = tuple(_translated(partial(read, folder), IntegrityError) for read in (verify_package, verify_model))
    return Parser(folder / "manifest.json", content, lambda rng: mutate_json(rng, content), readers)


def genai_config(folder: Path) -> Parser:
    from slmpack.log.chat_model import IntegrityError, read_config
    from slmpack.prove.onnx_graph import GraphRequest, read_graph

    _write_graph(folder / "model.onnx")
    decoder = {
        "filename": "model.onnx", "head_size": 4, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
        "num_key_value_heads": 2, "session_options": {"log_id": "x", "provider_options": []},
        "inputs": {"input_ids": "input_ids", "past_key_names": "past.%d.key", "past_value_names": "past.%d.value"},
        "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value"},
    }  # fmt: skip
    model = {"type": "phi3", "vocab_size": 16, "context_length": 64, "eos_token_id": [1], "decoder": decoder}
    content = write_tree({"model": model, "search": {"max_length": 64, "top_k": 1}})
    proof = partial(read_graph, GraphRequest(package=folder))
    wrapper = _translated(partial(read_config, folder), IntegrityError)
    return Parser(folder / "genai_config.json", content, lambda rng: mutate_json(rng, content), (proof, wrapper))


def _write_graph(file: Path) -> None:
    """Write a graph with the inputs and outputs of a decoder of one layer."""
    from onnx import TensorProto, helper, save

    def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, list(shape))

    caches = [value(f"{kind}.0.{part}", "b", 2, kind, 4) for kind in ("past", "present") for part in ("key", "value")]
    nodes = [helper.make_node("Identity", [f"past.0.{part}"], [f"present.0.{part}"]) for part in ("key", "value")]
    nodes.append(helper.make_node("Gather", ["rows", "input_ids"], ["logits"]))
    rows = helper.make_tensor("rows", TensorProto.FLOAT, (16, 16), [0.0] * 256)
    ids = value("input_ids", "b", "s", kind=TensorProto.INT64)
    made = helper.make_graph(nodes, "g", [ids, *caches[:2]], [value("logits", "b", "s", 16), *caches[2:]], [rows])
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))


def _translated(reader: Callable[[], object], *errors: type[Exception]) -> Callable[[], object]:
    """Take errors that the documentation of a function names, and that each of its callers translates."""

    def read() -> object:
        from slmpack.errors import SourceError

        try:
            return reader()
        except errors as error:
            raise SourceError(str(error)) from error

    return read


PARSERS: dict[str, Callable[[Path], Parser]] = {
    "gguf": gguf,
    "safetensors": safetensors,
    "index": index,
    "config": _of_checkpoint("config.json"),
    "generation": _of_checkpoint("generation_config.json"),
    "tokenizer": _of_checkpoint("tokenizer.json"),
    "tokenizer_config": _of_checkpoint("tokenizer_config.json"),
    "adapter_config": adapter,
    "chats": chats,
    "MLmodel": mlmodel,
    "genai_config": genai_config,
    "graph": graph,
    "chat_format": chat_format,
    "manifest": manifest,
}
