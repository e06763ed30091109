"""MLmodel: what a stranger wrote there is refused before MLflow takes it for what it should be."""

import pytest

from slmpack.source.mlmodel import read_mlmodel

SOUND = "flavors: {transformers: {model_binary: model}}\nmodel_id: m-0123456789abcdef0123456789abcdef\nrun_id: r\n"


def test_a_file_as_mlflow_writes_it_is_read() -> None:
    assert read_mlmodel(SOUND.encode()).flavors == {"transformers": {"model_binary": "model"}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "it has no fields"),
        ("flavors: [a]", r"flavors is '\['a'\]'|flavors is \"\['a'\]\""),
        ("flavors: {}", "flavors has no flavours"),
        ("flavors: {1: {}}", "flavors has no flavours"),
        ("flavors: {transformers: 7}", "flavors has no flavours"),
        (f"{SOUND}metadata: [1]", "metadata is"),
        (SOUND.replace("m-0123456789abcdef0123456789abcdef", "{a: b}"), "model_id is"),
        (SOUND.replace("m-0123456789abcdef0123456789abcdef", "'m-0/../..'"), r"model_id is 'm-0/\.\./\.\.'"),
        (f"{SOUND}signature: {{inputs: [1]}}", "TypeError: "),
        (f"{SOUND}signature: {{inputs: 'no JSON'}}", "JSONDecodeError: "),
        (f"{SOUND}saved_input_example_info: &a [*a]", "alias|recursive"),
    ],
)
def test_a_file_that_mlflow_would_fail_at_is_refused_in_a_line(content: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        read_mlmodel(content.encode())
    assert "\n" not in str(caught.value)
