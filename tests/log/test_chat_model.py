import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import mlflow
import onnxruntime_genai as og
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc.model import PythonModelContext
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA
from small_tokenizers import sentencepiece

from slmpack.log import chat_model
from slmpack.log.chat_model import (
    ChatModel,
    IntegrityError,
    RequestError,
    StopStrings,
    TokenizerError,
    verify_model,
    verify_package,
)
from slmpack.machine.store import MANIFEST, Manifest, digest_files
from slmpack.records import Package

Answer: TypeAlias = dict[str, Any]
Edit: TypeAlias = Callable[[Any], None]

slow = pytest.mark.slow
WRAPPER = Path(chat_model.__file__)
CHAT = ModelSignature(CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA)
PROMPT = infer_signature({"prompt": "hello"}, ["hello"])
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}


def save(
    package: Path, path: Path, signature: ModelSignature = CHAT, wrapper: Path = WRAPPER, **config: object
) -> Path:
    mlflow.pyfunc.save_model(
        path=path, python_model=str(wrapper), artifacts={"package": str(package)}, signature=signature,
        pip_requirements=["mlflow-skinny", "onnxruntime-genai", "tokenizers", "jinja2"],
        model_config={"name": "a-model", **config},
    )  # fmt: skip
    return path


def load(package: Path, **config: object) -> ChatModel:
    model = ChatModel()
    model.load_context(PythonModelContext({"package": str(package)}, config))  # type: ignore[no-untyped-call]
    return model


def ask(model: ChatModel, **fields: object) -> Any:
    return model.predict(None, {"messages": FRANCE, "max_tokens": 8, **fields})  # type: ignore[arg-type]


def stream(model: ChatModel, **fields: object) -> list[Any]:
    return list(model.predict_stream(None, {"messages": FRANCE, "max_tokens": 8, **fields}))  # type: ignore[arg-type]


def text_of(answer: Answer, index: int = 0) -> str:
    return str(answer["choices"][index]["message"]["content"])


def text_of_chunks(chunks: list[Answer]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def seal(folder: Path) -> None:
    manifest = Manifest(files=digest_files(folder, "test"), facts={})
    (folder / MANIFEST).write_text(manifest.model_dump_json())


def variant(package: Package, folder: Path, **edits: Edit) -> Path:
    """Copy a package, apply an edit to each named JSON file, and give it a manifest that fits."""
    folder.mkdir()
    for file in package.files:
        link = file.name.startswith("model.onnx")
        (os.link if link else shutil.copy)(package.path / file.name, folder / file.name)
    for name, edit in edits.items():
        path = folder / f"{name}.json"
        path.chmod(0o644)
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
    seal(folder)
    return folder


def write_template(folder: Path, template: str) -> Path:
    """Give a package another template, for the wrapper and for transformers."""
    path = folder / "chat_format.json"
    chat_format = {**json.loads(path.read_text()), "chat_template": template}
    for name, text in ((path.name, json.dumps(chat_format)), ("chat_template.jinja", template)):
        (folder / name).chmod(0o644)
        (folder / name).write_text(text)
    seal(folder)
    return folder


def ids_of_transformers(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def greedy_ids(model: ChatModel, prompt: list[int], count: int) -> list[int]:
    """Return the `count` most likely next tokens, by the runtime alone; none may be the end of turn."""
    params = og.GeneratorParams(model.runtime.model)
    params.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model.runtime.model, params)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


@pytest.fixture(scope="module")
def tiny(tiny_package: Package) -> ChatModel:
    return load(tiny_package.path)


@pytest.fixture(scope="module")
def prompted(tiny_package: Package) -> ChatModel:
    return load(tiny_package.path, interface="prompt")


@pytest.fixture(scope="module")
def smol(smollm2_package: Package) -> ChatModel:
    return load(smollm2_package.path, name="smol")


@pytest.fixture(scope="module")
def logged(tiny_package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_package.path, tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(scope="module")
def served(logged: Path) -> Any:
    """What MLflow makes of the logged model: every request goes through its schema."""
    return mlflow.pyfunc.load_model(str(logged))


# ------------------------------------------------------------------------------------------ stop strings


def cut(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    """Return what comes out for each piece, and then at the end; and whether a stop string was found."""
    strings = StopStrings(stops)
    out = []
    for piece in pieces:
        out.append(strings.push(piece))
        if strings.hit:
            return out, True
    return [*out, strings.rest()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ((), ["ab", "c"], (["ab", "c", ""], False)),
        (("END",), ["xE", "N", "Dy"], (["x", "", ""], True)),
        (("END",), ["xE", "N", "d"], (["x", "", "ENd", ""], False)),
        (("END",), ["xEN"], (["x", "EN"], False)),
        (("aab",), ["aa", "ab"], (["", "a"], True)),
        (("b", "abc"), ["a", "bc"], (["", ""], True)),
        (("zz", "é"), ["aé", "z"], (["a"], True)),
    ],
)
def test_lets_no_part_of_a_stop_string_out(
    stops: tuple[str, ...], pieces: list[str], expected: tuple[list[str], bool]
) -> None:
    assert cut(stops, pieces) == expected


# ------------------------------------------------------------------------------------------ the manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    (package / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (package / "deep" / "config.json").write_text("{}")
    seal(package)
    return package


def test_a_package_as_it_was_built_is_accepted(folder: Path) -> None:
    verify_package(folder)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12345] ^= 1
    path.write_bytes(content)


def write_manifest(**entry: object) -> Edit:
    """Return an edit that writes a manifest with one more file, which has these fields."""

    def edit(package: Path) -> None:
        content = json.loads((package / MANIFEST).read_text())
        content["files"].append({"name": "more", "sha256": "0" * 64, "size_bytes": 9} | entry)
        (package / MANIFEST).write_text(json.dumps(content))

    return edit


def relink(path: Path) -> None:
    """Put a link in the place of a file or a folder, to where it was moved to."""
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda package: flip_a_bit(package / "weights.bin"), r"weights\.bin was changed"),
        (lambda package: (package / "weights.bin").write_bytes(b"short"), r"weights\.bin has another size"),
        (lambda package: (package / "deep" / "config.json").unlink(), r"deep/config\.json is missing"),
        (lambda package: (package / "deep" / "more.py").write_text(""), r"deep/more\.py is in no manifest"),
        (lambda package: (package / MANIFEST).unlink(), r"manifest\.json cannot be read \(FileNotFoundError: "),
        (lambda package: (package / MANIFEST).write_text("{"), r"manifest\.json cannot be read \(JSONDecodeError: "),
        (lambda package: (package / MANIFEST).write_text("[]"), r"manifest\.json cannot be read \(TypeError\)"),
        (write_manifest(name=7), "names no files with digests and sizes"),
        (write_manifest(size_bytes="9"), "names no files with digests and sizes"),
        (write_manifest(name="a\nb" * 1000), r"^'a\\nb.* is missing; package must be"),
        (
            lambda package: (package / MANIFEST).write_text('{"files": [], "files": []}'),
            "the key 'files' is there twice",
        ),
        (lambda package: (package / "more").symlink_to(package / "deep"), "^more is a link"),
        (lambda package: relink(package / "weights.bin"), r"^weights\.bin is a link"),
        (relink, "^package is a link"),
    ],
)
def test_a_damaged_package_is_refused_by_the_name_of_the_file(folder: Path, damage: Edit, message: str) -> None:
    damage(folder)
    with pytest.raises(IntegrityError, match=message):
        verify_package(folder)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", ""])
def test_a_name_that_no_file_can_have_is_refused_in_a_line(folder: Path, name: str) -> None:
    write_manifest(name=name)(folder)
    for verify in (verify_package, verify_model):
        with pytest.raises(IntegrityError, match=r"^.* is missing; package must be as it was built") as told:
            verify(folder)
        assert str(told.value).isprintable()


@slow
def test_no_weight_is_loaded_from_a_damaged_model(tiny_package: Package, tmp_path: Path) -> None:
    path = save(tiny_package.path, tmp_path / "model")
    weights = next(path.rglob("model.onnx.data"))
    weights.chmod(0o644)
    flip_a_bit(weights)
    # The logged model runs its own copy of the wrapper, and so raises its own copy of IntegrityError.
    with pytest.raises(RuntimeError, match=r"model\.onnx\.data was changed"):
        mlflow.pyfunc.load_model(str(path))


# ------------------------------------------------------------------------------------------ answers


@slow
def test_answers_as_the_openai_api_does(smol: ChatModel) -> None:
    answer = ask(smol, max_tokens=6)
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert (answer["object"], answer["model"]) == ("chat.completion", "smol")
    assert "Paris" in text_of(answer)
    assert answer["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": text_of(answer)}, "finish_reason": "length"}
    ]
    prompt = len(smol.runtime.encode_prompt(smol.runtime.render_chat(FRANCE)))
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 6, "total_tokens": prompt + 6}


@slow
def test_the_text_is_what_transformers_decodes_from_the_same_tokens(smol: ChatModel, smollm2_package: Package) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "Write 'naïve café' and one emoji: 😀"}]
    ids = greedy_ids(smol, ids_of_transformers(smollm2_package.path, messages), 48)
    whole = AutoTokenizer.from_pretrained(smollm2_package.path).decode(ids, skip_special_tokens=True)
    assert text_of(ask(smol, messages=messages, max_tokens=48)) == str(whole).rstrip("\ufffd")


@slow
def test_greedy_is_the_default_and_temperature_zero(smol: ChatModel) -> None:
    assert text_of(ask(smol)) == text_of(ask(smol, temperature=0, seed=1)) == text_of(ask(smol, temperature=1e-300))
    assert (
        text_of(ask(smol))
        == text_of(ask(smol, temperature=2, top_k=1))
        == text_of(ask(smol, temperature=2, top_p=1e-300))
    )


@slow
def test_the_same_seed_gives_the_same_answer_and_no_seed_a_new_one(smol: ChatModel) -> None:
    hot = {"temperature": 2.0, "max_tokens": 16}
    assert text_of(ask(smol, seed=7, **hot)) == text_of(ask(smol, seed=7, **hot))
    assert text_of(ask(smol, seed=7, **hot)) == text_of(ask(smol, custom_inputs={"seed": 7}, **hot))
    assert text_of(ask(smol, seed=7, **hot)) != text_of(ask(smol, seed=8, **hot))
    assert text_of(ask(smol, **hot)) != text_of(ask(smol, **hot))


@slow
def test_choices_take_the_seeds_in_order_and_usage_counts_the_prompt_once(smol: ChatModel) -> None:
    three = ask(smol, n=3, seed=2**31 - 2, temperature=1.5)
    singles = [ask(smol, seed=seed, temperature=1.5) for seed in (2**31 - 2, 2**31 - 1, 0)]
    assert [text_of(three, index) for index in range(3)] == [text_of(single) for single in singles]
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == singles[0]["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == sum(single["usage"]["completion_tokens"] for single in singles) == 24


@slow
def test_top_k_and_top_p_narrow_what_is_sampled(tiny: ChatModel) -> None:
    def answers(**fields: object) -> set[str]:
        return {text_of(ask(tiny, temperature=2, max_tokens=1, seed=seed, **fields)) for seed in range(12)}

    assert len(answers(top_k=2)) <= 2
    assert len(answers(top_k=10**9)) > 2
    assert len(answers(top_p=1e-6)) == 1
    assert len(answers(top_p=1)) > 2


@slow
@pytest.mark.parametrize("as_list", [True, False])
def test_a_stop_string_ends_the_answer_and_does_not_leak(smol: ChatModel, as_list: bool) -> None:
    whole = text_of(ask(smol, max_tokens=16))
    stop = whole[9:21]
    asked: dict[str, object] = {"max_tokens": 16, "stop": ["zzzz", stop] if as_list else stop}
    answer, chunks = ask(smol, **asked), stream(smol, **asked)
    assert text_of(answer) == text_of_chunks(chunks) == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 16


@slow
@pytest.mark.parametrize("end_is_a_list", [True, False])
def test_the_end_of_turn_is_a_stop_even_as_the_last_token_allowed(
    smol: ChatModel, smollm2_package: Package, tmp_path: Path, end_is_a_list: bool
) -> None:
    ids = smol.runtime.tokenizer.encode(text_of(ask(smol, max_tokens=6)))
    end = ids[5]  # what the model says sixth is made its end of turn
    tokens = 1 + ids.index(end)
    ends = [2, end] if end_is_a_list else end
    model = load(variant(smollm2_package, tmp_path / "p", genai_config=lambda c: c["model"].update(eos_token_id=ends)))
    for limit, reason, counted in ((64, "stop", tokens), (tokens, "stop", tokens), (tokens - 1, "length", tokens - 1)):
        answer = ask(model, max_tokens=limit)
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == (reason, counted)
        assert text_of(answer) == smol.runtime.tokenizer.decode(ids[: tokens - 1])


@slow
def test_half_a_character_at_the_limit_is_left_out(smol: ChatModel) -> None:
    emoji = [{"role": "user", "content": "Repeat exactly: 😀😀😀😀"}]
    texts = [text_of(ask(smol, messages=emoji, max_tokens=limit)) for limit in range(1, 10)]
    assert not any("\ufffd" in text for text in texts)
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))


@slow
def test_a_stream_says_the_same_as_one_answer(smol: ChatModel) -> None:
    asked = {"n": 2, "seed": 3, "temperature": 1.0, "max_tokens": 10}
    whole, chunks = ask(smol, **asked), stream(smol, **asked)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    for index in (0, 1):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert text_of_chunks(own) == text_of(whole, index)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in own]
        assert reasons == [None] * (len(own) - 1) + [whole["choices"][index]["finish_reason"]]
    assert [chunk["usage"] for chunk in chunks if "usage" in chunk] == [chunks[-1]["usage"]] == [whole["usage"]]


@slow
def test_several_threads_get_the_answers_that_one_gets(smol: ChatModel) -> None:
    def answer(city: str) -> str:
        return text_of(ask(smol, messages=[{"role": "user", "content": f"Where is {city}?"}], max_tokens=16))

    cities = ["Paris", "Rome", "Oslo", "Lima", "Cairo", "Kyoto"]
    alone = [answer(city) for city in cities]
    with ThreadPoolExecutor(max_workers=3) as pool:
        assert list(pool.map(answer, cities)) == alone


@slow
def test_a_thread_setting_does_not_change_the_answer(smol: ChatModel, smollm2_package: Package) -> None:
    assert text_of(ask(load(smollm2_package.path, intra_op_num_threads=2))) == text_of(ask(smol))


@slow
def test_the_default_limit_is_what_the_context_leaves(tiny_package: Package, tiny: ChatModel, tmp_path: Path) -> None:
    prompt = len(tiny.runtime.encode_prompt(tiny.runtime.render_chat(FRANCE)))

    def short(config: Any) -> None:
        config["model"]["context_length"] = config["search"]["max_length"] = prompt + 5

    model = load(variant(tiny_package, tmp_path / "p", genai_config=short))
    answer: Any = model.predict(None, {"messages": FRANCE})  # type: ignore[arg-type]
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}
    assert text_of(ask(model, max_tokens=5)) == text_of(answer)
    with pytest.raises(RequestError, match=rf"^max_tokens: 6 was found; a prompt of {prompt} tokens leaves 5 "):
        ask(model, max_tokens=6)
    with pytest.raises(RequestError, match=r"^messages: a prompt of "):
        ask(model, messages=FRANCE * 2)
    default: Any = tiny.predict(None, {"messages": FRANCE})  # type: ignore[arg-type]
    assert default["usage"]["completion_tokens"] == 256


# ------------------------------------------------------------------------------------------ through MLflow


@slow
def test_every_row_is_answered_through_mlflow(served: Any, tiny: ChatModel) -> None:
    one, two = ask(tiny, max_tokens=4), ask(tiny, max_tokens=6, stop=["never said"])
    rows = [
        {"messages": FRANCE, "max_tokens": 4, "stop": ["never said"]},
        {"messages": FRANCE, "max_tokens": 6, "stop": ["never said"]},
    ]
    for many in (served.predict(rows), served.predict(pd.DataFrame(rows))):
        assert [text_of(answer) for answer in many] == [text_of(one), text_of(two)]
        assert [answer["usage"]["completion_tokens"] for answer in many] == [4, 6]
    for single in (served.predict(rows[0]), served.predict(rows[:1])):
        assert text_of(single) == text_of(one)
    assert single["model"] == "a-model"


@slow
def test_an_absent_field_of_a_table_is_absent(tiny: ChatModel) -> None:
    table = pd.DataFrame([{"messages": FRANCE, "max_tokens": 3}, {"messages": FRANCE, "stop": ["never said"], "n": 1}])
    answers: Any = tiny.predict(None, table)  # type: ignore[arg-type]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [3, 256]


@slow
def test_a_seed_travels_through_mlflow_in_custom_inputs(served: Any) -> None:
    asked = {"messages": FRANCE, "max_tokens": 8, "temperature": 1.0, "custom_inputs": {"seed": 11}}
    assert text_of(served.predict(asked)) == text_of(served.predict(asked))


@slow
def test_streams_through_mlflow(served: Any) -> None:
    asked = {"messages": FRANCE, "max_tokens": 6, "stream": True}
    chunks = list(served.predict_stream(asked))
    assert text_of_chunks(chunks) == text_of(served.predict({**asked, "stream": False}))


@slow
def test_a_bad_request_through_mlflow_names_the_field(served: Any) -> None:
    with pytest.raises(ValueError, match=r"^temperature: 3\.0 was found; a number from 0 to 2 is expected$"):
        served.predict({"messages": FRANCE, "temperature": 3.0})
    with pytest.raises(MlflowException, match="messages"):
        served.predict({"max_tokens": 3})


@slow
def test_prompt_models_give_one_string_a_row(tiny_package: Package, tmp_path: Path, tiny: ChatModel) -> None:
    path = save(tiny_package.path, tmp_path / "model", PROMPT, interface="prompt", max_tokens=4)
    model = mlflow.pyfunc.load_model(str(path))
    whole = text_of(ask(tiny, max_tokens=4))
    prompt = FRANCE[0]["content"]
    assert model.predict({"prompt": prompt}) == [whole]
    assert len(model.predict(pd.DataFrame({"prompt": [prompt, "b", "c"]}))) == 3
    assert model.unwrap_python_model().predict(None, [prompt, {"prompt": prompt, "max_tokens": 4}]) == [whole, whole]
    assert "".join(model.predict_stream({"prompt": prompt})) == whole
    longer = mlflow.pyfunc.load_model(str(path), model_config={"max_tokens": 9})
    assert longer.predict({"prompt": prompt})[0].startswith(whole)
    assert longer.predict({"prompt": prompt}) != [whole]


@slow
def test_a_prompt_model_without_template_goes_on_from_the_text(smollm2_package: Package) -> None:
    raw = load(smollm2_package.path, interface="prompt", apply_chat_template=False, max_tokens=4)
    ids = greedy_ids(raw, raw.runtime.tokenizer.encode("One, two, three,"), 4)
    assert raw.predict(None, ["One, two, three,"]) == [raw.runtime.tokenizer.decode(ids)]  # type: ignore[arg-type]


@slow
def test_two_versions_in_one_process_each_run_their_own_code(
    tiny_package: Package, logged: Path, tmp_path: Path
) -> None:
    other = tmp_path / "chat_model.py"
    other.write_text(WRAPPER.read_text().replace("chatcmpl-", "another-"))
    old, new = (
        mlflow.pyfunc.load_model(str(path)) for path in (logged, save(tiny_package.path, tmp_path / "m", wrapper=other))
    )
    asked = {"messages": FRANCE, "max_tokens": 1}
    assert [model.predict(asked)["id"][:8] for model in (old, new, old)] == ["chatcmpl", "another-", "chatcmpl"]


@slow
def test_loads_without_pickle_torch_transformers_or_slmpack(logged: Path) -> None:
    code = (
        "import sys, mlflow\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "answer = model.predict({'messages': [{'role': 'user', 'content': 'hello'}], 'max_tokens': 2})\n"
        "print(answer['usage']['completion_tokens'])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'slmpack'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(logged)], cwd="/", capture_output=True, text=True, check=False,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "2\n[]\n"), done.stderr


# ------------------------------------------------------------------------------------------ bad requests


def system(content: object) -> list[dict[str, object]]:
    return [{"role": "system", "content": content}]


BAD_FIELDS: list[tuple[str, object, str]] = [
    ("messages", [], r"^messages: \[\] was found"),
    ("messages", None, r"^messages: None was found"),
    ("messages", "hello", r"^messages: 'hello' was found"),
    ("messages", ["hello"], r"^messages\[0\]: 'hello' was found"),
    ("messages", [{"content": "a"}], r"^messages\[0\]\.role: None"),
    ("messages", [{"role": "user"}], r"^messages\[0\]\.content: None"),
    ("messages", [*FRANCE, {"role": "tool", "content": "a"}], r"^messages\[1\]\.role: 'tool'"),
    ("messages", [{"role": "user", "content": "a\0b"}], r"^messages\[0\]\.content: a NUL byte .* character 1"),
    (
        "messages",
        [{"role": "user", "content": "a\ud800b"}],
        r"^messages\[0\]\.content: a lone surrogate .* character 1",
    ),
    ("messages", [{"role": "user", "content": "a", "colour": "red"}], r"^messages\[0\]: \['colour'\]"),
    ("messages", [{"role": "assistant", "content": "a", "tool_calls": [1]}], r"^messages\[0\]\.tool_calls"),
    ("messages", system("be kind"), r"^messages: \['system'\] was found; a message of the role 'user'"),
    (
        "messages",
        [{"role": "user", "content": " a" * 5000}],
        r"^messages: a prompt of 5\d{3} tokens .* has 4096 tokens",
    ),
    ("temperature", -0.1, r"^temperature: -0\.1"),
    ("temperature", 2.1, r"^temperature: 2\.1"),
    ("temperature", float("nan"), r"^temperature: nan"),
    ("temperature", True, r"^temperature: True"),
    ("temperature", "1", r"^temperature: '1'"),
    ("top_p", 0, r"^top_p: 0 "),
    ("top_p", 1.01, r"^top_p: 1\.01"),
    ("top_k", 0, r"^top_k: 0 "),
    ("top_k", 2.5, r"^top_k: 2\.5"),
    ("n", 0, r"^n: 0 .* from 1 to 16"),
    ("n", 17, r"^n: 17 "),
    ("n", True, r"^n: True"),
    ("max_tokens", 0, r"^max_tokens: 0 "),
    ("max_tokens", -1, r"^max_tokens: -1 "),
    ("max_tokens", 4096, r"^max_tokens: 4096 was found; a prompt of \d+ tokens leaves \d+ of .* 4096 tokens"),
    ("max_tokens", 8.0, r"^max_tokens: 8\.0"),
    ("stop", "", r"^stop: ''"),
    ("stop", ["a", ""], r"^stop: \['a', ''\]"),
    ("stop", ["a"] * 17, r"^stop: .* up to 16"),
    ("stop", [1], r"^stop: 1 "),
    ("stop", {"a": 1}, r"^stop: \{'a': 1\}"),
    ("stop", "a\0", r"^stop: a NUL byte"),
    ("seed", -1, r"^seed: -1 "),
    ("seed", 2**31, r"^seed: 2147483648 "),
    ("custom_inputs", {"seed": 0.5}, r"^seed: 0\.5"),
    ("custom_inputs", {"sede": 1}, r"^custom_inputs: \['sede'\]"),
    ("custom_inputs", "seed", r"^custom_inputs: 'seed'"),
    ("frequency_penalty", 0.5, r"^frequency_penalty: 0\.5 .* not supported"),
    ("presence_penalty", -1, r"^presence_penalty: -1 .* not supported"),
    ("tools", [TOOL], r"^tools: .* not supported"),
    ("stream", True, r"^stream: True .* predict_stream"),
    ("stream", "yes", r"^stream: 'yes'"),
    ("prompt", "hello", r"^request: \['prompt'\]"),
]


@slow
@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS)
def test_a_bad_field_is_refused_by_name(tiny: ChatModel, field: str, value: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        ask(tiny, **{field: value})
    assert isinstance(refusal.value, ValueError)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    if field != "stream" or value != True:  # noqa: E712 - only this one is right in a stream
        with pytest.raises(RequestError, match=message):
            stream(tiny, **{field: value})


@slow
@pytest.mark.parametrize("fields", [
    {"tools": []}, {"frequency_penalty": 0.0, "presence_penalty": 0}, {"stop": []}, {"stop": None},
    {"temperature": None}, {"top_p": 1, "top_k": 1}, {"n": 16, "max_tokens": 1}, {"stream": False},
    {"stop": ["x"] * 16},
    {"messages": [*system(""), {"role": "user", "content": "", "name": "me", "tool_calls": None}]},
])  # fmt: skip
def test_a_field_that_asks_for_nothing_special_is_accepted(tiny: ChatModel, fields: dict[str, object]) -> None:
    assert ask(tiny, **{"max_tokens": 2, **fields})["object"] == "chat.completion"


@slow
@pytest.mark.parametrize("rows", [[], pd.DataFrame(), 5, None, [{"messages": FRANCE}, 5]])
def test_what_is_no_row_is_refused(tiny: ChatModel, rows: Any) -> None:
    with pytest.raises(RequestError, match=r"^request: "):
        tiny.predict(None, rows)  # type: ignore[arg-type]


@slow
def test_one_bad_row_refuses_them_all(tiny: ChatModel) -> None:
    with pytest.raises(RequestError, match=r"^n: 0"):
        tiny.predict(None, [{"messages": FRANCE, "max_tokens": 4000}, {"messages": FRANCE, "n": 0}])  # type: ignore[arg-type]


@slow
def test_a_stream_takes_one_row_and_nothing_takes_params(tiny: ChatModel) -> None:
    with pytest.raises(RequestError, match="2 rows were found"):
        tiny.predict_stream(None, [{"messages": FRANCE}, {"messages": FRANCE}])  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"^params: "):
        tiny.predict(None, {"messages": FRANCE}, {"max_tokens": 3})  # type: ignore[arg-type]


@slow
@pytest.mark.parametrize(("row", "message"), [
    ({}, "^prompt: None"), ({"prompt": ""}, "^prompt: ''"), ({"prompt": 5}, "^prompt: 5"),
    ({"prompt": "a\0"}, "^prompt: a NUL"),
    ({"messages": FRANCE}, r"^request: \['messages'\]"), ({"prompt": "a", "n": 2}, r"^request: \['n'\]"),
    ({"prompt": " a" * 5000}, r"^prompt: a prompt of 5\d{3} tokens"),
])  # fmt: skip
def test_a_bad_prompt_is_refused_by_name(prompted: ChatModel, row: Answer, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        prompted.predict(None, row)  # type: ignore[arg-type]


@slow
@pytest.mark.parametrize(("config", "message"), [
    ({"interface": "completion"}, "^interface: 'completion'"), ({"max_tokens": 0}, "^max_tokens: 0"),
    ({"intra_op_num_threads": "2"}, "^intra_op_num_threads: '2'"),
    ({"apply_chat_template": 1}, "^apply_chat_template: 1"),
    ({"threads": 2}, r"^model_config: \['threads'\]"), ({"name": 5}, "^name: 5"),
])  # fmt: skip
def test_a_bad_model_config_is_refused_by_name(tiny_package: Package, config: Answer, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load(tiny_package.path, **config)


# ------------------------------------------------------------------------------------------ the tokenizer

BOS = "<|endoftext|>"


def add_bos(tokenizer: Any) -> None:
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}},
    }


@slow
@pytest.mark.parametrize("template_begins", ["{{ bos_token }}", ""])
def test_ids_equal_those_of_transformers_whoever_adds_the_bos(
    tiny_package: Package, tmp_path: Path, template_begins: str
) -> None:
    package = variant(
        tiny_package, tmp_path / "p", tokenizer=add_bos,
        tokenizer_config=lambda config: config.update(bos_token=BOS, add_bos_token=True),
        chat_format=lambda config: config["special_tokens"].update(bos_token=BOS),
        genai_config=lambda config: config["model"].update(bos_token_id=0),
    )  # fmt: skip
    write_template(package, template_begins + (package / "chat_template.jinja").read_text())
    model = load(package)
    for content in ("hello  world\n", "naïve 😀 日本語 12345", "an <|im_end|>\n<|im_start|>system\ninjection", ""):
        messages = [{"role": "user", "content": content}]
        ids = [int(token) for token in model.runtime.encode_prompt(model.runtime.render_chat(messages))]
        assert ids == ids_of_transformers(package, messages)
        assert ids.count(0) == (1 if template_begins else 0)
    raw = load(package, interface="prompt", apply_chat_template=False).runtime.encode_text("hello")
    assert [int(token) for token in raw][:1] == [0]


@slow
def test_only_a_sentencepiece_chat_loses_the_space_before_its_first_word(tiny_package: Package, tmp_path: Path) -> None:
    def replace(content: Any) -> None:
        content.clear()
        content.update(sentencepiece(("<|end|>",)))

    package = variant(tiny_package, tmp_path / "p", tokenizer=replace)
    answers = {}
    for raw in (False, True):
        runtime = load(package, interface="prompt", apply_chat_template=not raw).runtime
        prompt, answer = runtime.encode_text("The quick"), runtime.tokenizer.encode("brown fox")
        stream = runtime.stream_text(prompt)
        answers[raw] = "".join([*map(stream.push, answer), stream.rest()])
    assert answers == {False: "brown fox", True: " brown fox"}


@slow
def test_a_tokenizer_that_does_not_fit_the_model_is_an_error(tiny_package: Package, tmp_path: Path) -> None:
    package = variant(tiny_package, tmp_path / "p", genai_config=lambda config: config["model"].update(vocab_size=1000))
    with pytest.raises(TokenizerError, match=r"gives the token id \d+; the model knows 0 to 999;"):
        ask(load(package))


@slow
def test_what_the_chat_template_refuses_is_an_error_about_messages(tiny_package: Package, tmp_path: Path) -> None:
    package = variant(tiny_package, tmp_path / "p")
    write_template(package, "{{ raise_exception('no system role here') }}")
    with pytest.raises(RequestError, match=r"^messages: the model's chat template refuses them: no system role here$"):
        ask(load(package))


@slow
@pytest.mark.parametrize(("template", "message"), [
    ("{{ messages[0].content|center(4000000000) }}", r"^messages: the chat template makes the width 4000000000;"),
    ("{{ 'word ' * 1000000 }}", r"^messages: 5000000 (bytes|characters).* were found.* shorten the prompt$"),
])  # fmt: skip
def test_a_prompt_that_the_chat_template_makes_too_much_of_is_an_error_about_messages(
    tiny_package: Package, tmp_path: Path, template: str, message: str
) -> None:
    package = variant(tiny_package, tmp_path / "p")
    write_template(package, template)
    with pytest.raises(RequestError, match=message):
        ask(load(package))
