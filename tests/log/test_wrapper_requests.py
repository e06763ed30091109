"""What reaches the wrapper is obeyed or refused by name: fields, their shapes, and the bounds of one call."""

import math
import pickle
import random
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModelContext

from slmpack.log import chat_model
from slmpack.log.chat_model import ChatModel, RequestError
from slmpack.records import Package

pytestmark = pytest.mark.slow

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


def load(package: Package, **config: object) -> ChatModel:
    model = ChatModel()
    model.load_context(PythonModelContext({"package": str(package.path)}, config))  # type: ignore[no-untyped-call]
    return model


@pytest.fixture(scope="module")
def tiny(tiny_package: Package) -> ChatModel:
    return load(tiny_package)


@pytest.fixture(scope="module")
def prompter(tiny_package: Package) -> ChatModel:
    return load(tiny_package, interface="prompt", max_tokens=2)


def predict(model: ChatModel, rows: object, params: object = None) -> Any:
    return model.predict(None, rows, params)  # type: ignore[arg-type]


def ask(model: ChatModel, /, **fields: object) -> Any:
    return predict(model, {"messages": FRANCE, "max_tokens": 2, **fields})


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]


def nested(depth: int) -> object:
    value: object = "a"
    for _ in range(depth):
        value = [value]
    return value


# ------------------------------------------------------------------------------------------ accepted


def test_max_completion_tokens_is_another_name_of_max_tokens(tiny: ChatModel, prompter: ChatModel) -> None:
    for fields in ({"max_completion_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 3}):
        answer = predict(tiny, {"messages": FRANCE, **fields})
        assert answer["usage"]["completion_tokens"] == 3
    prompt = str(FRANCE[0]["content"])
    assert predict(prompter, {"prompt": prompt, "max_completion_tokens": 3}) == [text_of(answer)]
    with pytest.raises(RequestError, match=r"^max_completion_tokens: 4 was found; 3, as max_tokens has it,"):
        ask(tiny, max_tokens=3, max_completion_tokens=4)
    with pytest.raises(RequestError, match=r"^max_completion_tokens: 4096 was found; a prompt of \d+ tokens leaves"):
        predict(tiny, {"messages": FRANCE, "max_completion_tokens": 4096})


def test_the_texts_of_a_message_s_parts_are_one_text(tiny: ChatModel) -> None:
    whole = ask(tiny, messages=[{"role": "user", "content": "one two"}], max_tokens=8)
    assert text_of(ask(tiny, messages=parts("one", " two"), max_tokens=8)) == text_of(whole)
    array = np.array([{"role": "user", "content": np.array([{"type": "text", "text": "one two"}])}])
    assert text_of(ask(tiny, messages=array, max_tokens=8)) == text_of(whole)


@pytest.mark.parametrize("fields", [
    {"model": "any"}, {"user": "u-1"}, {"logit_bias": {}}, {"logit_bias": None}, {"response_format": {"type": "text"}},
    {"tool_choice": "auto"}, {"logprobs": False}, {"params": {}}, {"tools": None}, {"custom_inputs": {}},
    {"custom_inputs": None}, {"custom_inputs": {"seed": None}}, {"custom_inputs": {"seed": 1}, "seed": 1},
    {"temperature": 1}, {"temperature": 2}, {"temperature": np.int64(1)}, {"top_p": np.float32(0.5)},
    {"n": np.int32(2), "max_tokens": np.uint8(2)}, {"stop": np.array(["x"])}, {"stop": ("x",)}, {"stream": np.False_},
])  # fmt: skip
def test_what_asks_for_nothing_special_is_accepted(tiny: ChatModel, fields: dict[str, object]) -> None:
    assert ask(tiny, **fields)["usage"]["completion_tokens"] >= 2


def test_every_sampling_field_may_be_in_custom_inputs(tiny: ChatModel) -> None:
    hot = {"temperature": 2.0, "seed": 7, "max_tokens": 8}
    custom = {"temperature": 2, "seed": 7, "max_completion_tokens": 8}
    assert text_of(predict(tiny, {"messages": FRANCE, "custom_inputs": custom})) == text_of(ask(tiny, **hot))
    assert text_of(ask(tiny, **hot, custom_inputs={"top_k": 1})) == text_of(ask(tiny, max_tokens=8))


def test_rows_of_one_table_may_lack_what_others_have(tiny: ChatModel, prompter: ChatModel) -> None:
    rows: list[dict[str, object]] = [
        {"messages": FRANCE, "max_tokens": 3, "stop": "never said", "temperature": None},
        {"messages": parts("hi"), "max_completion_tokens": 4, "temperature": 1, "seed": 5},
        {"messages": FRANCE, "max_tokens": 5, "n": 2, "custom_inputs": {"seed": 1}},
    ]
    for many in (rows, pd.DataFrame(rows), pd.DataFrame(rows).convert_dtypes(), np.array(rows)):
        counts = [answer["usage"]["completion_tokens"] for answer in predict(tiny, many)]
        assert counts == [3, 4, 10]
    prompts = ["one", "two"]
    for table in (prompts, pd.Series(prompts), np.array(prompts), pd.DataFrame({"prompt": prompts, "seed": [1, None]})):
        assert predict(prompter, table) == predict(prompter, [{"prompt": prompt} for prompt in prompts])


# ------------------------------------------------------------------------------------------ refused by name


REFUSED: list[tuple[dict[Any, object], str]] = [
    ({"max_token": 3}, r"^request: \['max_token'\] was found; one of .*max_tokens"),
    ({"response_format": {"type": "json_object"}}, r"^response_format: \{'type': 'json_object'\} .*not supported"),
    ({"logit_bias": {"1": 5}}, r"^logit_bias: .*not supported"),
    ({"logprobs": True}, r"^logprobs: True "),
    ({"tool_choice": "required"}, r"^tool_choice: 'required'"),
    ({"params": {"max_tokens": 3}}, r"^params: \{'max_tokens': 3\}"),
    ({"model": 5}, r"^model: 5 "),
    ({"user": ["u"]}, r"^user: \['u'\]"),
    ({"custom_inputs": {"seed": 2}, "seed": 1}, r"^custom_inputs\.seed: 2 was found; 1, as in the row,"),
    ({"custom_inputs": {"n": 2}}, r"^custom_inputs: \['n'\]"),
    ({"custom_inputs": [["seed", 1]]}, r"^custom_inputs: \[\['seed', 1\]\] was found; a dict"),
    ({"messages": [{"role": "user", "content": []}]}, r"^messages\[0\]\.content: \[\] "),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, r"^messages\[0\]\.content\[0\]: 'hi' "),
    (
        {"messages": [*FRANCE, {"role": "user", "content": [*parts("a")[0]["content"], {"type": "image_url"}]}]},
        r"^messages\[1\]\.content\[1\]\.type: 'image_url' .*no image",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "image": "b"}]}]},
        r"^messages\[0\]\.content\[0\]: \['image'\] ",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"^messages\[0\]\.content\[0\]\.text: None"),
    ({"messages": [{"role": "user", "content": "a", "name": 5}]}, r"^messages\[0\]\.name: 5 "),
    ({"messages": [{"role": {}, "content": "a"}]}, r"^messages\[0\]\.role: \{\}"),
    ({"messages": [{"role": "user", 5: "a"}]}, r"^messages\[0\]: 5 was found; a string for the name"),
    ({"messages": [{"role": "user", "content": b"a"}]}, r"^messages\[0\]\.content: b'a' "),
    ({"stop": [pd.NA]}, r"^stop\[0\]: <NA> "),
    ({"stop": {"a"}}, r"^stop: \{'a'\} "),
    ({"tools": pd.NA}, r"^tools: <NA> "),
    ({"tools": pd.DataFrame({"a": [1]})}, r"^tools: .*a.*1.* was found; what JSON has"),
    ({"seed": 10**5000}, r"^seed: a whole number of \d+ bits"),
    ({"temperature": math.inf}, r"^temperature: inf"),
    ({5: 1}, r"^request: 5 "),
    ({"a\nb": {"c\ud800": pd.NA}}, r"^a\\nb\.c\\ud800: <NA> "),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_is_not_done_is_refused_by_its_place(tiny: ChatModel, fields: dict[Any, object], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        predict(tiny, {"messages": FRANCE, "max_tokens": 2, **fields})
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_column_that_is_there_twice_is_refused(tiny: ChatModel) -> None:
    table = pd.DataFrame([[FRANCE, 2, 3]], columns=["messages", "max_tokens", "max_tokens"])
    with pytest.raises(RequestError, match=r"^request: \['max_tokens'\] was found; every column once"):
        predict(tiny, table)


def test_params_are_refused_whatever_they_are(tiny: ChatModel) -> None:
    for params in ({"max_tokens": 3}, [1], 5, nested(2000)):
        with pytest.raises(RequestError, match=r"^params: "):
            predict(tiny, {"messages": FRANCE}, params)
    assert predict(tiny, {"messages": FRANCE, "max_tokens": 1}, {})


def test_a_refusal_is_mlflow_s_own_error_and_tells_nothing_but_itself() -> None:
    error = RequestError.about("n", 0, "a whole number from 1")
    error.message = f"Failed to predict data 'a secret'. \nError: {error.message}"  # as the scoring server does
    assert isinstance(error, MlflowException)
    assert isinstance(error, ValueError)
    assert (error.error_code, error.get_http_status_code()) == ("INVALID_PARAMETER_VALUE", 400)  # type: ignore[no-untyped-call]
    assert "secret" not in error.serialize_as_json()
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is RequestError
    assert str(again) == str(error) == "n: 0 was found; a whole number from 1 is expected"


# ------------------------------------------------------------------------------------------ bounds


def refused_in_seconds(model: ChatModel, rows: object, message: str) -> float:
    started = time.process_time()  # the clock's would have other tests' in it
    with pytest.raises(RequestError, match=message) as refusal:
        predict(model, rows)
    assert len(str(refusal.value)) < 400
    return time.process_time() - started


def test_bounds_of_one_call_are_checked_before_any_work(tiny: ChatModel) -> None:
    row = {"messages": FRANCE, "max_tokens": 2}
    user = {"role": "user", "content": "a"}
    loop: list[object] = []
    loop.append(loop)
    for rows, message in (
        ([row] * 1025, r"^request: 1025 rows were found; 1 to 1024 "),
        (pd.DataFrame([row] * 1025), r"^request: 1025 rows "),
        ([row | {"max_tokens": 1024, "n": 16}] * 17, r"^max_tokens: 278528 new tokens .* at most 262144 "),
        ([{"messages": FRANCE, "n": 16}] * 65, r"^max_tokens: 266240 new tokens "),
        (row | {"messages": [user] * 10_001}, r"^messages: 10001 of them were found; at most 10000 "),
        (row | {"stop": "a" * 1025}, r"^stop: 1025 characters were found; at most 1024 "),
        (row | {"custom_inputs": {"seed": nested(5000)}}, r"^custom_inputs\.seed\[0\].* deeper than 16 "),
        (row | {"tools": nested(17)}, r"^tools\[0\]"),
        (row | {"messages": loop}, r"^messages\[0\]\[0\].* deeper than 16 "),
        (nested(5000), r"^request\[0\]\[0\].* deeper than 16 "),
        (row | {"stop": ["a"] * 200_000}, r"^request: more than 100000 values "),
        (row | {"stop": np.zeros(10**6)}, r"^request: more than 100000 values "),
        (row | {"x" * 10**6: [1] * 90_000}, r"^request: \['xxx"),
        (row | {"messages": [user] * 9_000 + [{"role": "user"}]}, r"^messages\[9000\]\.content: None"),
    ):
        assert refused_in_seconds(tiny, rows, message) < 2


def test_a_prompt_that_cannot_fit_is_not_tokenised(tiny: ChatModel, prompter: ChatModel) -> None:
    most = tiny.runtime.context_length * tiny.runtime.tokenizer.longest_token_bytes
    text = "é" * (most // 2) + "a"
    expected = rf"{most + 1} bytes of text were found; the context window has 4096 tokens, which hold at most {most} "
    assert refused_in_seconds(tiny, {"messages": [{"role": "user", "content": text}]}, "^messages: " + expected) < 1
    split = parts(*[text[:-1][: most // 4], text[most // 4 :]])
    assert refused_in_seconds(tiny, {"messages": split}, "^messages: " + expected) < 1
    assert refused_in_seconds(prompter, {"prompt": text}, "^prompt: " + expected) < 1
    prose = "It is late. " * 30_000
    expected = (
        r"^prompt: 360000 characters were found, of which 32768 are \d+ tokens; the context window has 4096 tokens"
    )
    assert refused_in_seconds(prompter, {"prompt": prose}, expected) < 1


def test_no_chat_is_rendered_before_all_are_checked(tiny_package: Package) -> None:
    model = load(tiny_package)
    good, bad = {"messages": FRANCE, "max_tokens": 4000}, {"messages": FRANCE, "seed": -1}
    long = {"messages": [{"role": "user", "content": " a" * 5000}]}  # refused once it is tokenised
    with pytest.raises(RequestError, match=r"^seed: -1"):
        predict(model, [good, long, bad])


# ------------------------------------------------------------------------------------------ any request


class _Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, -1, 2**31, 2**70, 10**5000, 0.0, 0.5, 1.0, 2.0, 1e-300, 1e300, math.nan, math.inf,
    "", "a", "user", "text", "none", "a\0", "\ud800", "\n", "é" * 50, b"a", (), [], {}, [None], [""], ["a", "b"],
    {"a": 1}, {"type": "text"}, {"seed": 3}, {"temperature": "hot"}, FRANCE, parts("a", "b"), {1: 2}, {"a"}, object(),
    _Odd(), nested(40), pd.NA, pd.NaT, pd.Timestamp(0), np.array([]), np.array(3), np.array([[1, 2]]), np.int8(3),
    np.float64("nan"), np.array(FRANCE), np.datetime64("2020-01-01"), 1 + 2j, range(3), lambda: None,
    pd.DataFrame({1: FRANCE}), pd.Series([1]),
]  # fmt: skip


SOUND: dict[Any, list[Any]] = {
    "temperature": [0, 1, 2, 0.5, np.float32(1.5), None], "top_p": [1, 0.5, 1e-300], "top_k": [1, 10**9, np.int64(3)],
    "seed": [0, 7], "n": [1, 2], "stop": ["a", ["a", "b"], [], None], "custom_inputs": [{}, {"seed": 7}, {"top_k": 5}],
    "max_completion_tokens": [1, None], "messages": [parts("a", ""), [*FRANCE, {"role": "assistant", "content": "b"}]],
    "model": ["a"], "logit_bias": [{}], "tools": [[]], "presence_penalty": [0, 0.0], "stream": [False],
}  # fmt: skip


def random_row(draw: random.Random) -> dict[Any, Any]:
    row: dict[Any, Any] = {"messages": FRANCE, "max_tokens": 1} if draw.random() < 0.9 else {}
    for name in draw.sample(list(SOUND), k=draw.randrange(4)):
        row[name] = draw.choice(SOUND[name])
    if draw.random() < 0.4:
        names = [*sorted(chat_model.CHAT_FIELDS), "prompt", "max_token", "", 7, "role"]
        value, shape = draw.choice(VALUES), draw.random()
        row[draw.choice(names)] = [value] if shape < 0.2 else {draw.choice(names): value} if shape < 0.4 else value
    if draw.random() < 0.2:
        message = {draw.choice(["role", "content", "name", "tool_calls", "refusal", 5]): draw.choice(VALUES)}
        row["messages"] = [*FRANCE, {"role": "user", "content": "a"} | message]
    return row


def test_any_request_is_answered_or_refused(tiny: ChatModel) -> None:
    draw = random.Random(20)
    answered = refused = 0
    for _ in range(800):
        rows: Any = random_row(draw)
        if draw.random() < 0.3:
            rows = [rows, random_row(draw)]
        if draw.random() < 0.1:
            rows = draw.choice(VALUES)
        elif draw.random() < 0.3:
            rows = pd.DataFrame(rows if isinstance(rows, list) else [rows], dtype=object)
        try:
            answers = predict(tiny, rows)
        except RequestError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 500
            assert error.serialize_as_json().isascii()
            refused += 1
            continue
        for answer in answers if isinstance(answers, list) else [answers]:
            answered += 1
            assert answer["usage"]["total_tokens"] > answer["usage"]["prompt_tokens"]
    assert min(answered, refused) > 150
