"""Bounded files: what is no regular file is never waited for, and what is too large is never read."""

import os
import socket
import threading
from pathlib import Path

import pytest

from slmpack.chats.dataset import check_chats
from slmpack.chats.lines import read_good_chats
from slmpack.checkpoint.licence import licence_of
from slmpack.errors import DataError, UsageError
from slmpack.machine.bounded_file import (
    MOST_DEPTH,
    IrregularFileError,
    LargeFileError,
    limit_of,
    open_regular,
    parse_json,
    read_bounded,
)
from slmpack.machine.bounded_yaml import parse_yaml
from slmpack.machine.json_file import read_json
from slmpack.machine.store import sha256_of
from slmpack.prove.quality.text import read_text
from slmpack.records import FileDigest


def test_reads_a_regular_file_and_one_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "file") == read_bounded(tmp_path / "link") == b"content"


def test_a_named_pipe_with_and_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (open_regular, read_bounded, sha256_of):
        with pytest.raises(IrregularFileError, match="it is a named pipe"):
            read(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"{}"))
    writer.start()
    with pytest.raises(IrregularFileError):
        open_regular(pipe)
    assert pipe.read_bytes() == b"{}"  # nothing was taken from it
    writer.join()


def test_devices_sockets_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IrregularFileError, match="it is a character device"):
        read_bounded(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.close()
    with pytest.raises(IrregularFileError, match="it is a socket"):
        read_bounded(tmp_path / "s")


def test_a_file_of_more_than_its_name_allows_is_refused_unread(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(limit_of(name) + 1)
        with pytest.raises(LargeFileError, match=f"more than {limit_of(name):,}"):
            read_bounded(tmp_path / name)
    assert limit_of("tokenizer.json") > limit_of("config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, f"nested more than {MOST_DEPTH} deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, f"nested more than {MOST_DEPTH} deep"),  # Python reads it
        (b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1), f"nested more than {MOST_DEPTH} deep"),
        (b"[" + b"[]," * 600_000 + b"[]]", "about 1,200,002 values"),
        (b"{", "Expecting property name"),
        (b'"\xff"', "utf-8"),
        (b"9" * 5000, "4300 digits"),
    ],
    ids=["deep", "deep and whole", "one too deep", "too many", "cut off", "not UTF-8", "a long number"],
)
def test_json_that_cannot_be_used_is_a_value_error(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(content)


def test_json_of_a_plain_depth_is_read() -> None:
    content = b"[" * MOST_DEPTH + b"]" * MOST_DEPTH
    assert str(parse_json(content)).encode() == content
    brackets = b'"' + b"[{" * 100 + b'"'
    assert parse_json(brackets) == "[{" * 100


def test_a_long_list_of_small_values_within_the_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"merges": [' + '["a","b"],' * 70_000 + '["a","b"]]}')
    assert len(read_json(tmp_path / "tokenizer.json")["merges"]) == 70_001


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{at}: &a{at} [*a{at - 1}, *a{at - 1}]\n" for at in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "with its aliases written out"),
        ("a: &a [*a]", "an alias to a, which is not there before it"),
        ("[" * 100_000, "nested more than"),
        ("x" * (2 << 20), "characters of YAML"),
        ("a: [", "no YAML"),
        ("!!python/object/apply:os.system [true]", "no YAML"),
    ],
    ids=["a bomb", "itself", "deep", "long", "cut off", "code"],
)
def test_yaml_that_stands_for_too_much_is_a_value_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_yaml_with_a_few_aliases_is_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb:\n  <<: *a\nc: [*a, *a]")["c"] == [{"x": 1}, {"x": 1}]


def test_a_licence_is_a_text_or_a_few_whatever_the_card_holds(tmp_path: Path) -> None:
    for stated, expected in (
        ("[mit, apache-2.0]", "mit and apache-2.0"),
        ("{a: b}", None),
        ("x" * 999, "x" * 197 + "..."),
    ):
        (tmp_path / "README.md").write_text(f"---\r\nlicense: {stated}\r\n---\r\n# A model")
        assert licence_of(tmp_path) == expected


def test_texts_and_chats_of_the_user_that_are_no_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, kind in ((tmp_path / "pipe.jsonl", "a named pipe"), (Path("/dev/zero"), "a character device")):
        with pytest.raises(UsageError, match=f"it is {kind}"):
            read_text(path)
        for read in (lambda path: list(read_good_chats(path)), check_chats):
            with pytest.raises(DataError, match=f"it is {kind}"):
                read(path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "a//b", "", ".", "a\0b"])
def test_a_record_of_a_file_names_one_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="no path in a folder"):
        FileDigest(name=name, sha256="0" * 64, size_bytes=1)
