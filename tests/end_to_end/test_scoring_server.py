"""Requests through MLflow: its `predict`, the server of `mlflow models serve`, and `predict_stream`, field by field."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from mlflow_server import running_scoring_server
from places import PROJECT

from slmpack.log.interfaces import signature_of
from slmpack.log.staging import staged_model
from slmpack.records import Interface, Package

pytestmark = pytest.mark.slow

SECRET = "What is the capital of France?"
FRANCE = [{"role": "user", "content": SECRET}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
TABLE = re.compile(r"^\| a request with .*\n\|---.*\n((?:\|.*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """What there is of an answer however it came."""

    texts: tuple[str, ...]
    reasons: tuple[str, ...]
    tokens: int


class RefusedError(Exception):
    """An error as the client sees it."""


Fields: TypeAlias = dict[str, Any]
Way: TypeAlias = Callable[[Fields, Fields | None], Answer]


def whole(answer: Any) -> Answer:
    choices = answer["choices"]
    texts = tuple(choice["message"]["content"] for choice in choices)
    return Answer(texts, tuple(choice["finish_reason"] for choice in choices), answer["usage"]["completion_tokens"])


def joined(chunks: list[Any]) -> Answer:
    choices = [chunk["choices"][0] for chunk in chunks]
    indices = sorted({choice["index"] for choice in choices})
    texts = ("".join(c["delta"].get("content", "") for c in choices if c["index"] == index) for index in indices)
    reasons = tuple(choice["finish_reason"] for choice in choices if choice["finish_reason"])
    return Answer(tuple(texts), reasons, chunks[-1]["usage"]["completion_tokens"])


# ------------------------------------------------------------------------------------------ the three ways


@pytest.fixture(scope="module")
def folder(tiny_package: Package, workspace: Path) -> Iterator[Path]:
    """The chat model as it is logged."""
    with staged_model(tiny_package, Interface.CHAT, "tiny", "0" * 64, workspace) as found:
        yield found


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_scoring_server(folder, tmp_path_factory.mktemp("server")) as found:
        yield found


def post(address: str, body: object) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/invocations", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def ways(loaded: Any, address: str) -> dict[str, Way]:
    """Each way to ask, by its name in docs/serving.md."""

    def by_predict(fields: Fields, params: Fields | None) -> Answer:
        try:
            return whole(loaded.predict(fields, params=params))
        except MlflowException as error:
            raise RefusedError(str(error)) from error

    def by_server(fields: Fields, params: Fields | None) -> Answer:
        status, answer = post(address, fields if params is None else {"inputs": fields, "params": params})
        if status != 200:
            assert status == 400
            raise RefusedError(answer["message"])
        return whole(answer if params is None else answer["predictions"])

    def by_stream(fields: Fields, params: Fields | None) -> Answer:
        try:
            return joined(list(loaded.predict_stream(fields, params=params)))
        except MlflowException as error:
            raise RefusedError(str(error)) from error

    return {"`predict`": by_predict, "`mlflow models serve`": by_server, "`predict_stream`": by_stream}


# ------------------------------------------------------------------------------------------ the document's table


@dataclass(frozen=True)
class Probe:
    """Fields to ask with, and how an answer tells that they were obeyed; several cases must come out the same."""

    cases: tuple[Fields, ...]
    obeyed: Callable[[Answer, Answer, Callable[[], Answer]], bool]
    params: Fields | None = None


def never(answer: Answer, plain: Answer, again: Callable[[], Answer]) -> bool:
    return False


def three_tokens(answer: Answer, plain: Answer, again: Callable[[], Answer]) -> bool:
    return answer.tokens == 3


def greedy(answer: Answer, plain: Answer, again: Callable[[], Answer]) -> bool:
    return answer == plain


def sampled(answer: Answer, plain: Answer, again: Callable[[], Answer]) -> bool:
    return len({answer.texts, plain.texts, again().texts}) == 3


def repeated(answer: Answer, plain: Answer, again: Callable[[], Answer]) -> bool:
    return answer.texts != plain.texts and answer == again()


def stopped(answer: Answer, plain: Answer, again: Callable[[], Answer]) -> bool:
    return answer.reasons == ("stop",) and plain.texts[0].startswith(answer.texts[0])


def two_choices(answer: Answer, plain: Answer, again: Callable[[], Answer]) -> bool:
    return len(answer.texts) == 2


HOT = {"temperature": 1.5}
PROBES: dict[str, Probe] = {
    "`messages`, each content a string": Probe(({},), greedy),
    "`messages`, a content in text parts": Probe(
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": part} for part in (SECRET[:9], SECRET[9:])]}
                ]
            },
        ),
        greedy,
    ),
    "`messages`, a content with an image part": Probe(({"messages": [{"role": "user", "content": [IMAGE]}]},), never),
    "`model`, `user`": Probe(({"model": "other"}, {"user": "u-1"}), never),
    "`max_tokens`": Probe(({"max_tokens": 3},), three_tokens),
    "`max_completion_tokens`": Probe(({"max_completion_tokens": 3, "max_tokens": None},), three_tokens),
    "`temperature` 1.5": Probe(({"temperature": 1.5},), sampled),
    "`temperature` 2, a whole number": Probe(({"temperature": 2},), sampled),
    "`top_p`, `top_k`": Probe((HOT | {"top_p": 1e-6}, HOT | {"top_k": 1}), greedy),
    "`seed`": Probe((HOT | {"seed": 7},), repeated),
    "`seed` in `custom_inputs`": Probe((HOT | {"custom_inputs": {"seed": 7}},), repeated),
    "`stop`, a list": Probe(({"stop": ["STOP"]},), stopped),
    "`stop`, a string": Probe(({"stop": "STOP"},), stopped),
    "`n` 2": Probe(({"n": 2},), two_choices),
    "`stream` true": Probe(({"stream": True},), greedy),
    "`presence_penalty`, `frequency_penalty`": Probe(({"presence_penalty": 0.5}, {"frequency_penalty": 0.5}), never),
    "`logit_bias`": Probe(({"logit_bias": {"5": 1}},), never),
    "`response_format` of JSON": Probe(({"response_format": {"type": "json_object"}},), never),
    "`tools`": Probe(({"tools": [TOOL]},), never),
    "`params` among the fields": Probe(({"params": {"max_tokens": 3}},), three_tokens),
    "`params` beside the row": Probe(({},), three_tokens, params={"max_tokens": 3}),
    "a misspelt field": Probe(({"max_token": 3},), three_tokens),
}


def table() -> dict[str, dict[str, str]]:
    """Return the document's table: what is asked -> the way -> what comes of it."""
    text = (PROJECT / "docs" / "serving.md").read_text()
    found = TABLE.search(text)
    assert found
    head, _, *lines = found.group(0).strip().split("\n")
    _, *names = [cell.strip() for cell in head.strip("|").split("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {asked: dict(zip(names, cells, strict=True)) for asked, *cells in rows}


def outcome(way: Way, probe: Probe, case: Fields, plain: Answer) -> str:
    """Ask, and return what came of it in the document's words."""
    fields = {key: value for key, value in ({"messages": FRANCE, "max_tokens": 8} | case).items() if value is not None}
    if "stop" in fields:
        cut = plain.texts[0][3:6]
        fields["stop"] = [cut] if isinstance(fields["stop"], list) else cut
    try:
        answer = way(fields, probe.params)
    except RefusedError as error:
        if "Failed to enforce schema" in str(error):
            return "MLflow refuses"
        named = next(iter(case))
        assert str(error).startswith(named) or f"request: ['{named}'] was found" in str(error), error
        assert SECRET not in str(error)
        return "refused"
    return "obeyed" if probe.obeyed(answer, plain, lambda: way(fields, probe.params)) else "no effect"


def test_the_document_says_what_comes_of_every_field(ways: dict[str, Way]) -> None:
    told = table()
    assert told.keys() == PROBES.keys()
    plain = ways["`predict`"]({"messages": FRANCE, "max_tokens": 8}, None)
    found = {
        asked: {name: {outcome(way, probe, case, plain) for case in probe.cases} for name, way in ways.items()}
        for asked, probe in PROBES.items()
    }
    assert found == {asked: {name: {cell} for name, cell in cells.items()} for asked, cells in told.items()}


# ------------------------------------------------------------------------------------------ the server alone


@pytest.mark.parametrize("body", [
    {"inputs": {"messages": FRANCE, "max_token": 3}},
    {"inputs": [{"messages": FRANCE}, {"messages": FRANCE, "max_token": 3}]},
    {"messages": FRANCE, "max_token": 3},
])  # fmt: skip
def test_the_server_passes_a_refusal_on_without_the_request(address: str, body: Fields) -> None:
    status, answer = post(address, body)
    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert answer["message"].startswith("request: ['max_token'] was found; one of ")
    assert SECRET not in json.dumps(answer)


def test_the_server_answers_rows_that_lack_what_others_have(address: str) -> None:
    rows = [{"messages": FRANCE, "max_tokens": 2}, {"messages": FRANCE, "max_completion_tokens": 3, "temperature": 1}]
    status, answer = post(address, {"inputs": rows})
    assert status == 200
    assert [whole(row).tokens for row in answer["predictions"]] == [2, 3]


@pytest.mark.parametrize("body", [
    {"dataframe_records": [{"messages": FRANCE}]},
    {"dataframe_split": {"columns": ["messages"], "data": [[FRANCE]]}},
    {"instances": [{"messages": FRANCE}]},
])  # fmt: skip
def test_mlflow_refuses_a_table_and_names_inputs(address: str, body: Fields) -> None:
    status, answer = post(address, body)
    assert status == 400
    assert "with 'inputs' key" in answer["message"]


def test_the_server_survives_what_is_nested_or_no_number(address: str) -> None:
    start = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, '
    for field, message in (
        (b'"tools": ' + b"[" * 500 + b"]" * 500, "tools[0]"),
        (b'"temperature": NaN', "temperature: nan"),
        (b'"max_completion_tokens": 1e999', "max_completion_tokens: inf"),
        (b'"seed": ' + b"9" * 4000, "seed: a whole number of"),
        (b'"stop": "\\ud800"', "stop: a lone surrogate"),
    ):
        status, answer = post(address, start + field + b"}")
        assert (status, answer["message"][: len(message)]) == (400, message)
    assert post(address, start + b'"n": 1}')[0] == 200


# ------------------------------------------------------------------------------------------ beside it


def test_the_signature_is_still_mlflow_s_own(loaded: Any) -> None:
    assert loaded.metadata.signature == signature_of(Interface.CHAT)


def test_a_prompt_model_obeys_or_refuses_what_it_is_sent(tiny_package: Package, workspace: Path) -> None:
    with staged_model(tiny_package, Interface.PROMPT, "tiny", "0" * 64, workspace) as folder:
        model = mlflow.pyfunc.load_model(str(folder))

        def post(body: Fields) -> Any:
            content, schema = json.dumps(body).encode(), model.metadata.get_input_schema()
            return json.loads(
                scoring_server.invocations(content, "application/json", model, schema).response  # type: ignore[no-untyped-call]
            )

        assert model.metadata.signature == signature_of(Interface.PROMPT)
        (short,) = model.predict({"prompt": SECRET, "max_tokens": 2})
        (long,) = post({"prompt": SECRET, "max_completion_tokens": 8})
        assert long.startswith(short)
        assert long != short
        assert post({"inputs": [SECRET, {"prompt": SECRET, "stop": long[2:5]}]})["predictions"][1] == long[:2]
        assert "".join(model.predict_stream({"prompt": SECRET})).startswith(long)
        for extra in ({"params": {"max_tokens": 3}}, {"max_token": 3}, {"n": 2}, {"messages": FRANCE}):
            (name,) = extra
            for ask in (post, model.predict):
                with pytest.raises(MlflowException, match=rf"^(request: \['{name}'\]|{name}: )") as refusal:
                    ask({"prompt": SECRET} | extra)
                assert SECRET not in refusal.value.serialize_as_json()  # type: ignore[no-untyped-call]
