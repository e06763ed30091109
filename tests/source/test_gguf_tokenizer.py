# ruff: noqa: RUF001 - the texts are there to confuse tokenizers
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from gguf_files import TRAINING_TEXT, byte_level_fields, llama_cpp, sentencepiece_fields, write_gguf
from tokenizers import Tokenizer

from slmpack.errors import SourceError
from slmpack.records import Package, Snapshot
from slmpack.source.gguf.header import read_header
from slmpack.source.gguf.pretokenizers import PRE_TOKENIZERS
from slmpack.source.gguf.tokenizer import read_vocabulary, write_tokenizer

TEXTS = (
    "", " ", "Hello, world!", "In 1984, 3.14159 and 1,000,000; 2² + ½.", "I'm you're THEY'LL we'D 'S 's 't",
    "def f(x):\n\treturn x  # naïve\n\n\n    pass\r\n\r\n", "a    b     c      ", "\n\n\n", "   \n  \n", "\t\t\tx",
    "Привет, мир! 你好，世界。こんにちは 안녕하세요", "مرحبا שלום नमस्ते สวัสดี",
    "e\u0301a\u0308 \u00a0nbsp\u3000wide", "▁x ▁ <0x0A>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "x<|endoftext|> y <|im_end|>  z",
    "http://a.b/c?d=e&f=g#h", '{"k": [1, 2.5e-3, null]}', "ǅ ſt ı K Å", "١٢٣ ௧௨ Ⅷ ①②③",
    "CamelCaseHTTPServer2Go iOS17 HeLLo", "</s> x <s>y<unk>", "<|user|>\n\thello<|end|>\n <tool>  x",
    "!\x04! \x06\x13 a\x1db", "emoji 😀\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 end",
)  # fmt: skip
PIECES = [
    *"abcXYZ019.,!?'\"-_/\\|<>$+^~`()[]{}=*&%#@:;", " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "'s", "'LL", "'re",
    *"éßÑЖя你のカעשनไ½²Ⅷ٣①€©→∑、。！—…«ǅſİ", "the", " and", "123", "4567", "e\u0301", "世界", "한국", "\u093f", "😀",
    "\U0001f469\u200d\U0001f467", "\u200d", "\ufe0f", "\u00a0", "\u3000", "\u2028", "\ufffd", "\x04", "        ",
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|", "|>", "<user>", "<|end|>", "<s>", "</s>", "<tool>",
    *TRAINING_TEXT.split(" "),
]  # fmt: skip
# Letters, marks, numbers and symbols of scripts in use. Characters younger than llama.cpp's tables are none of these.
BLOCKS = [(0x21, 0x7F), (0xA1, 0x530), (0x5D0, 0x5EB), (0x620, 0x6D5), (0x905, 0x94E), (0xE01, 0xE3B), (0x10D0, 0x10FB),
          (0x1E00, 0x1F00), (0x2010, 0x2028), (0x2030, 0x205F), (0x2190, 0x2400), (0x3041, 0x3097), (0x4E00, 0x9FA6),
          (0xAC00, 0xD7A4), (0xFF01, 0xFF5F), (0x1D400, 0x1D455), (0x1F300, 0x1F650)]  # fmt: skip

# What ONNX Runtime GenAI 0.18 reads right; the other expressions it refuses or reads in its own way.
READ_BY_THE_RUNTIME = ("gpt-2", "smollm", "llama-bpe", "qwen2")


def random_texts(count: int, seed: int = 7) -> Iterator[str]:
    """Yield texts of pieces that tokenizers are known to trip over, and of characters of all scripts in use."""
    chance = random.Random(seed)
    for _ in range(count):
        if chance.random() < 0.2:
            yield "".join(chr(chance.randrange(*chance.choice(BLOCKS))) for _ in range(chance.randrange(1, 12)))
        else:
            yield "".join(chance.choices(PIECES, k=chance.randrange(1, 20)))


def differing(ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]], texts: Iterable[str]) -> list[str]:
    return [text for text in texts if ours(text) != theirs(text)]


def written(path: Path) -> Tokenizer:
    folder = path.with_suffix(".tokenizer")
    folder.mkdir()
    write_tokenizer(path, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def plain_ids(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def runtime_ids(package: Path, tokenizer: Path, into: Path) -> Callable[[str], list[int]]:
    """Return how ONNX Runtime GenAI reads a tokenizer; -1 is what it gives for a byte that is no token."""
    import onnxruntime_genai

    shutil.copytree(package, into, ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    into.chmod(0o755)
    for file in tokenizer.glob("token*"):
        shutil.copy(file, into)
    read = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(into)))
    return lambda text: [int(index) for index in read.encode(text) if index >= 0]


@pytest.mark.slow
def test_gives_the_ids_of_llama_cpp_for_the_real_model(smollm2_gguf: Path, smollm2: Snapshot) -> None:
    ours = plain_ids(Tokenizer.from_file(str(smollm2.path / "tokenizer.json")))
    with llama_cpp(smollm2_gguf) as theirs:
        assert differing(ours, theirs.ids, [*TEXTS, *random_texts(3000)]) == []


@pytest.mark.slow
def test_splits_digits_one_by_one_where_the_file_says_smollm(smollm2: Snapshot) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))
    assert tokenizer.encode("in 1984").tokens == ["in", "Ġ", "1", "9", "8", "4"]


@pytest.mark.slow
def test_the_runtime_reads_the_real_tokenizer_as_llama_cpp_does(
    smollm2_gguf: Path, smollm2: Snapshot, tiny_package: Package, tmp_path: Path
) -> None:
    ours = runtime_ids(tiny_package.path, smollm2.path, tmp_path / "package")
    with llama_cpp(smollm2_gguf) as theirs:
        assert differing(ours, theirs.ids, [*TEXTS, *random_texts(2000)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_cuts_words_as_llama_cpp_does(pre: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", byte_level_fields(pre))
    tokenizer = written(path)
    with llama_cpp(path) as theirs:
        assert differing(plain_ids(tokenizer), theirs.ids, [*TEXTS, *random_texts(250)]) == []
        assert tokenizer.encode("Hi").ids == theirs.ids("Hi", add_special=True)


@pytest.mark.slow
@pytest.mark.parametrize("pre", READ_BY_THE_RUNTIME)
def test_the_runtime_cuts_words_as_llama_cpp_does(pre: str, tiny_package: Package, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", byte_level_fields(pre))
    written(path)
    ours = runtime_ids(tiny_package.path, tmp_path / "model.tokenizer", tmp_path / "package")
    with llama_cpp(path) as theirs:
        assert differing(ours, theirs.ids, [*TEXTS, *random_texts(500)]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("prefix", "name"), list(product((True, False), ("Llama 2", "Phi3"))))
def test_reads_scores_and_bytes_as_llama_cpp_does(prefix: bool, name: str, tmp_path: Path) -> None:
    fields = sentencepiece_fields(add_space_prefix=prefix, add_eos_token=not prefix)
    path = write_gguf(tmp_path / "model.gguf", fields, general__name=name)
    tokenizer = written(path)
    # After a special token of Phi-3 `tokenizers` also drops white space beyond ASCII, which llama.cpp keeps.
    texts = [text for text in (*TEXTS, *random_texts(1000)) if name != "Phi3" or not {*"\u00a0\u2028\u3000"} & {*text}]
    with llama_cpp(path) as theirs:
        assert differing(plain_ids(tokenizer), theirs.ids, texts) == []
        assert tokenizer.encode("Hi <tool>").ids == theirs.ids("Hi <tool>", add_special=True)


@pytest.mark.slow
def test_special_tokens_of_phi_3_swallow_the_white_space_after_them(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", sentencepiece_fields(), general__name="Phi3")
    tokenizer = written(path)
    with llama_cpp(path) as theirs:
        for text in ("<|user|>\n the<|end|>\n", "<s> the", "</s>\n\nthe", "<tool>  the"):
            assert tokenizer.encode(text, add_special_tokens=False).ids == theirs.ids(text)
    assert tokenizer.encode("<|end|> \nthe").ids == tokenizer.encode("<|end|>the").ids
    assert tokenizer.encode("<s> the").ids != tokenizer.encode("<s>the").ids


@pytest.mark.parametrize("fields", [byte_level_fields("smollm"), sentencepiece_fields()], ids=["gpt2", "llama"])
def test_decoding_gives_the_text_back(fields: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = written(write_gguf(tmp_path / "model.gguf", fields))
    for text in ("The quick  brown\n\n fox", " leading 123", "naïve 你好 😀 नमस्ते"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_writes_the_template_of_the_file_and_none_where_it_has_none(tmp_path: Path) -> None:
    template = "{{ messages }}\r\n<|im_end|>"
    written(write_gguf(tmp_path / "with.gguf", byte_level_fields(), tokenizer__chat_template=template))
    written(write_gguf(tmp_path / "without.gguf", byte_level_fields()))
    assert (tmp_path / "with.tokenizer" / "chat_template.jinja").read_bytes() == template.encode()
    assert not (tmp_path / "without.tokenizer" / "chat_template.jinja").exists()


def test_transformers_loads_what_was_written(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = written(write_gguf(tmp_path / "model.gguf", sentencepiece_fields(add_eos_token=True)))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model.tokenizer")
    assert loaded("Hi 123<tool>").input_ids == tokenizer.encode("Hi 123<tool>").ids
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.model_max_length) == (1, 2, 64)


def test_an_answer_ends_at_every_token_that_the_file_or_its_template_ends_turns_with(tmp_path: Path) -> None:
    def ends(**changes: Any) -> tuple[int, ...]:
        path = write_gguf(tmp_path / "model.gguf", byte_level_fields(eos_token_id=0), **changes)
        return read_vocabulary(read_header(path)).end_ids

    assert ends() == (0,)
    assert ends(tokenizer__ggml__eot_token_id=2) == (0, 2)
    assert ends(tokenizer__chat_template="{{ x }}<|im_end|>") == (0, 2)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"pre": "tomorrow"}, "tokenizer.ggml.pre is 'tomorrow'"),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"token_type": [1, 1, 1]}, "tokenizer.ggml.token_type has 3 entries"),
        ({"token_type": None}, "tokenizer.ggml.token_type is missing"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges has 'ab'"),
        ({"merges": ["a nowhere"]}, "tokenizer.ggml.merges has 'a nowhere'"),
        ({"eos_token_id": None}, "tokenizer.ggml.eos_token_id is missing"),
        ({"eos_token_id": 70000}, "tokenizer.ggml.eos_token_id is 70000"),
        ({"eos_token_id": "two"}, "tokenizer.ggml.eos_token_id is 'two'; a whole number"),
        ({"bos_token_id": None, "add_bos_token": True}, "tokenizer.ggml.bos_token_id is missing"),
        ({"tokens": ["a", "b", "a"]}, "tokenizer.ggml.tokens has 'a' twice"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens is 'abc'; a list of texts"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens has the entry 1; a list of texts"),
        ({"token_type": [True] * 3}, "tokenizer.ggml.token_type has the entry True; a list of whole numbers"),
        ({"model": 2}, "tokenizer.ggml.model is 2; a text"),
        ({"pre": ["default"]}, r"tokenizer.ggml.pre is \['default'\]; a text"),
        ({"eos_token_id": [2, 0]}, r"tokenizer.ggml.eos_token_id is \[2, 0\]; a whole number"),
        ({"eos_token_id": True}, "tokenizer.ggml.eos_token_id is True; a whole number"),
        ({"eos_token_id": -1}, "tokenizer.ggml.eos_token_id is -1; a whole number from 0"),
        ({"eot_token_id": 2.0}, "tokenizer.ggml.eot_token_id is 2.0; a whole number"),
        ({"eos_token_ids": [2, 70000]}, r"tokenizer.ggml.eos_token_ids is \[2, 70000\]; ids below"),
        ({"eos_token_ids": "2"}, "tokenizer.ggml.eos_token_ids is '2'; a list of whole numbers"),
        ({"add_bos_token": "yes"}, "tokenizer.ggml.add_bos_token is 'yes'; true or false"),
    ],
)
def test_refuses_byte_level_fields_that_do_not_fit(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="^" + field):
        written(write_gguf(tmp_path / "model.gguf", byte_level_fields(**changes)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scores": [0.5]}, "tokenizer.ggml.scores has 1 entries"),
        ({"scores": None}, "tokenizer.ggml.scores is missing"),
        ({"scores": 1.0}, "tokenizer.ggml.scores is 1.0; a list of numbers"),
        (
            {"tokens": ["<s>", "</s>", "a"], "scores": [0.0] * 3, "token_type": [3, 3, 1]},
            "tokenizer.ggml.tokens has no <0x00>",
        ),
    ],
)
def test_refuses_scored_fields_that_do_not_fit(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="^" + field):
        written(write_gguf(tmp_path / "model.gguf", sentencepiece_fields(**changes)))


@pytest.mark.parametrize("template", [1, True, ["{{ messages }}"], 2.5])
def test_refuses_a_template_that_is_not_text(template: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", byte_level_fields(), tokenizer__chat_template=template)
    with pytest.raises(SourceError, match=r"^tokenizer\.chat_template is .*; a text; "):
        written(path)


def test_an_answer_ends_at_every_id_that_a_list_of_them_has(tmp_path: Path) -> None:
    fields = byte_level_fields(eos_token_ids=[2, 0])
    vocabulary = read_vocabulary(read_header(write_gguf(tmp_path / "model.gguf", fields)))
    assert vocabulary.end_ids == (2, 0)
