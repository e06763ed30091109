"""Chat data: every line is looked at, what is bad is named, and what is held out stays held out."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_lines import assistant, line_of, lines, system, user, written

from slmpack.chats.chat import Chat, ChatError, held_out, parse_chat
from slmpack.chats.dataset import MIN_CHATS, MIN_HELD_OUT, ChatData, DataPolicy, check_chats
from slmpack.chats.files import MAX_LINE_BYTES
from slmpack.chats.lines import read_chats
from slmpack.chats.parts import store_parts
from slmpack.errors import DataError

HALF = DataPolicy(held_out_share=0.5)


def chat_of(*messages: Any) -> Chat:
    return parse_chat(line_of(*messages).encode())


def test_a_file_of_chats_is_counted_and_read(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", lines(100))

    data = check_chats(path, policy=HALF)

    assert (data.name, data.lines, data.chats, data.bad, data.duplicates, data.repaired) == (
        "chats.jsonl",
        100,
        100,
        0,
        0,
        0,
    )
    assert data.training + data.held_out == 100
    assert [file.name for file in data.files] == ["chats.jsonl"]
    assert [chat.turns[0].content for chat in read_chats(path)] == [f"How much is {n}?" for n in range(100)]
    assert str(tmp_path) not in data.model_dump_json()


def test_the_same_chats_are_the_same_data_in_any_files_order_and_number(tmp_path: Path) -> None:
    chats = lines(60)
    one = check_chats(written(tmp_path / "one.jsonl", chats), policy=HALF)
    (tmp_path / "several").mkdir()
    random.Random(0).shuffle(chats)
    written(tmp_path / "several" / "b.jsonl", [*chats[:30], "", *chats[:5]])
    written(
        tmp_path / "several" / "a.json", [json.dumps(json.loads(line) | {"id": 7}, indent=None) for line in chats[30:]]
    )
    several = check_chats(tmp_path / "several", policy=HALF)

    assert (several.lines, several.chats, several.duplicates) == (65, 60, 5)
    assert [file.name for file in several.files] == ["a.json", "b.jsonl"]
    assert [getattr(several, part) for part in ("digest", "training_digest", "held_out_digest")] == [
        getattr(one, part) for part in ("digest", "training_digest", "held_out_digest")
    ]
    assert several.held_out == one.held_out
    other = check_chats(written(tmp_path / "other.jsonl", lines(61)), policy=HALF)
    assert other.digest != one.digest


def test_text_is_kept_character_by_character() -> None:
    odd = "  e\u0301 \u00e9 \U0001f642\r\n\ttab  "
    assert chat_of(user(odd), assistant(odd)).messages == [user(odd), assistant(odd)]


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines(20)).encode())
    assert check_chats(path, policy=HALF).chats == 20


def test_parts_of_text_become_lines_of_one() -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": "text", "text": "who rules?"}]
    assert chat_of(user(parts), assistant()).turns[0].content == "Look:\nwho rules?"


def test_two_turns_of_the_user_become_one_and_an_open_end_is_left_out() -> None:
    chat = chat_of(system(), user("Hi."), user("Who rules?"), assistant("I do."), user("Thanks."))
    assert chat.messages == [system(), user("Hi.\n\nWho rules?"), assistant("I do.")]
    assert chat.repaired
    assert not chat_of(user(), assistant()).repaired


BAD = {
    "it is not JSON (Expecting value at character 14)": '{"messages": oops}',
    "it is not JSON (Expecting value at character 15)": '{"messages": [',
    "it is JSON that Python does not read": '{"messages": ' + "[" * 100_000,
    "it holds text, not an object": '"hello"',
    "it holds null, not an object": "null",
    "it holds a list, not an object": "[1]",
    "it has no messages": '{"text": "hello"}',
    "messages is text, not a list": '{"messages": "hello"}',
    "messages is empty": '{"messages": []}',
    "message 1 is text, not an object": line_of("hello"),
    "message 2 has the role 'bot', not one of system, user, assistant": line_of(user(), assistant() | {"role": "bot"}),
    "message 1 has the role 'None', not one of system, user, assistant": line_of({"content": "x"}),
    "the content of message 1 is empty": line_of(user(" \n"), assistant()),
    "the content of message 2 is null, not text": line_of(user(), assistant(None)),
    "the content of message 2 is a number, not text": line_of(user(), assistant(7)),
    "the content of message 1 has a part that is image_url, not text": line_of(user([{"type": "image_url"}])),
    "the content of message 1 has a NUL at character 3": line_of(user("aa\0b"), assistant()),
    "the content of message 2 has half a character at 2": line_of(user(), assistant("x\ud83d")),
    "message 2 has tool_calls, which cannot be learnt": line_of(user(), assistant("x") | {"tool_calls": [{"id": "1"}]}),
    "message 2 has a weight, and every answer is learnt": line_of(user(), assistant("x") | {"weight": 0}),
    "it has no answer of the assistant": line_of(system(), user()),
    "it has only a system message": line_of(system()),
    "the assistant speaks before the user": line_of(system(), assistant(), user()),
    "message 3 is a second answer of the assistant in a row": line_of(user(), assistant(), assistant("Or not.")),
    "message 2 is system, which can only be the first": line_of(user(), system(), assistant()),
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_says_why(reason: str) -> None:
    with pytest.raises(ChatError) as refused:
        parse_chat(BAD[reason].encode())
    assert str(refused.value) == reason


def test_bytes_that_are_not_utf_8_are_a_bad_line() -> None:
    with pytest.raises(ChatError, match="byte 47 is not UTF-8"):
        parse_chat(line_of(user("caf#")).encode().replace(b"#", b"\xe9"))


def test_a_few_bad_lines_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = lines(100)
    path = written(tmp_path / "chats.jsonl", [*good[:7], "oops", "", *good[7:], line_of(user())])

    with caplog.at_level("INFO", "slmpack"):
        data = check_chats(path, policy=DataPolicy(max_bad_share=0.05, held_out_share=0.5))

    assert (data.lines, data.chats, data.bad) == (102, 100, 2)
    assert [str(line) for line in data.first_bad] == [
        "chats.jsonl line 8: it is not JSON (Expecting value at character 1)",
        "chats.jsonl line 103: it has no answer of the assistant",
    ]
    assert f"2 bad lines are left out: {data.first_bad[0]}, {data.first_bad[1]}" in caplog.text
    assert len(list(read_chats(path))) == 100


def test_too_many_bad_lines_are_refused_with_the_first_of_them_and_their_share(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", [*lines(15), *["oops"] * 5])
    with pytest.raises(DataError) as refused:
        check_chats(path)
    bad = "it is not JSON (Expecting value at character 1)"
    assert str(refused.value) == (
        "5 of 20 lines of chats.jsonl are bad (25.0%): "
        f"chats.jsonl line 16: {bad}, chats.jsonl line 17: {bad}, chats.jsonl line 18: {bad}, and 2 more; "
        "at most 2.0%; correct them or take them out"
    )


def test_a_file_without_one_chat_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", ['{"prompt": "a", "completion": "b"}'] * 9)
    with pytest.raises(DataError, match=r"9 of 9 lines of chats\.jsonl are bad \(100\.0%\): .* it has no messages"):
        check_chats(path, policy=DataPolicy(max_bad_share=0.999))


def test_a_line_without_an_end_is_not_taken_into_memory(tmp_path: Path) -> None:
    long = line_of(user("x" * (MAX_LINE_BYTES + 1)), assistant())
    path = written(tmp_path / "chats.jsonl", [*lines(60), long, *lines(60, start=60)])
    data = check_chats(path, policy=HALF)
    assert (data.lines, data.chats) == (121, 120)
    assert str(data.first_bad[0]) == f"chats.jsonl line 61: it is longer than {MAX_LINE_BYTES:,} bytes"


def test_a_chat_over_the_context_length_is_a_bad_line(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", [*lines(80), line_of(user("very " * 50), assistant())])

    def words(chat: Chat) -> int:
        if "How much is 3?" in chat.messages[0]["content"]:
            raise ChatError("the chat template refuses it")
        return sum(len(turn.content.split()) for turn in chat.turns)

    data = check_chats(
        path, policy=DataPolicy(max_bad_share=0.1, held_out_share=0.5), tokens_of=words, context_length=40
    )

    assert (data.chats, data.bad) == (79, 2)
    assert [line.reason for line in data.first_bad] == [
        "the chat template refuses it",
        "it has 52 tokens, and the model takes 40",
    ]
    assert len(list(read_chats(path, tokens_of=words, context_length=40))) == 79


def nothing(path: Path) -> Path:
    return path / "nowhere.jsonl"


def empty_folder(path: Path) -> Path:
    return path


def folder_of_others(path: Path) -> Path:
    (path / "train.parquet").write_bytes(b"PAR1")
    (path / ".chats.jsonl").write_text("")
    return path


def file_of(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        (path / name).write_bytes(content)
        return path / name

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, r"there is no .*nowhere\.jsonl; a file or a folder of chats"),
        (empty_folder, r"holds nothing; files that end in \.jsonl or \.json"),
        (folder_of_others, r"holds \.chats\.jsonl, train\.parquet; files that end in"),
        (file_of("a.jsonl", b""), r"a\.jsonl is empty; 8 chats at least"),
        (file_of("a.jsonl", b"\n \n"), r"a\.jsonl is empty"),
        (file_of("a.jsonl", b"PAR1\x15\x04"), r"a\.jsonl is a Parquet file; UTF-8 text"),
        (file_of("a.jsonl", b"\x1f\x8b\x08"), r"a\.jsonl is compressed \(gzip\)"),
        (file_of("a.json", "{}".encode("utf-16")), r"a\.json is UTF-16 text"),
        (file_of("a.jsonl", b'{"a": 1}\n\x00\x01'), r"a\.jsonl is binary"),
        (file_of("a.csv", b"a,b\n"), r"a\.csv is a \.csv; UTF-8 text, one JSON object a line \(\.jsonl or \.json\)"),
        (file_of("a.json", b'\xef\xbb\xbf [{"messages": []}]'), r"a\.json is one JSON list; .*; type: jq -c"),
    ],
)
def test_what_is_no_file_of_chats_is_refused_by_name(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        check_chats(make(tmp_path))


def test_data_that_repeat_one_chat_are_refused_with_the_figure(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", [*lines(40), *lines(1) * 59])
    with pytest.raises(DataError, match=r"one chat is 60 of 99 lines of chats\.jsonl \(61%\); half of them at most"):
        check_chats(path)


def test_few_different_chats_are_refused_with_their_number(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", lines(MIN_CHATS - 1) * 3)
    with pytest.raises(DataError, match=r"chats\.jsonl has 7 different chats; at least 8; add more"):
        check_chats(path)


def test_what_is_held_out_stays_so_whatever_comes_and_goes() -> None:
    chats = [parse_chat(line.encode()) for line in lines(2000)]
    held = {chat.digest for chat in chats if held_out(chat)}
    assert 150 < len(held) < 250
    assert held <= {chat.digest for chat in chats if held_out(chat, 0.2)}
    assert held_out(chat_of(user("How much is 0?"), assistant("It is 0."))) == (chats[0].digest in held)


def test_two_answers_to_one_question_are_on_one_side() -> None:
    for n in range(200):
        asked = f"How much is {n}?"
        sides = {
            held_out(chat_of(user(asked), assistant("A.")), 0.5),
            held_out(chat_of(user(asked), assistant("B.")), 0.5),
            held_out(chat_of(system(), user(f" how much is {n} "), assistant("A.")), 0.5),
        }
        assert len(sides) == 1
    assert {held_out(chat_of(user("+" * n), assistant()), 0.5) for n in range(1, 40)} == {True, False}


def test_too_few_that_are_held_out_are_refused_with_the_share_that_would_do(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", lines(12))
    with pytest.raises(
        DataError, match=r"a share of 0\.01 holds out \d of the 12 chats .*; at least 4; hold out"
    ) as no:
        check_chats(path, policy=DataPolicy(held_out_share=0.01))
    share = float(str(no.value).rpartition("hold out ")[2].split()[0])
    data = check_chats(path, policy=DataPolicy(held_out_share=share))
    assert data.held_out >= MIN_HELD_OUT


def test_too_few_to_learn_from_are_refused(tmp_path: Path) -> None:
    held = [line for line in lines(200) if held_out(parse_chat(line.encode()), 0.5)][:10]
    with pytest.raises(DataError, match=r"leaves 0 of the 10 chats of chats\.jsonl; at least 4 to learn from"):
        check_chats(written(tmp_path / "chats.jsonl", held), policy=HALF)


def stored(path: Path, workspace: Path) -> tuple[ChatData, list[list[Chat]]]:
    data = check_chats(path, policy=DataPolicy(held_out_share=0.2))
    parts = store_parts(path, data, workspace)
    return data, [list(read_chats(part)) for part in (parts.training, parts.held_out)]


def test_the_two_parts_are_files_that_depend_on_the_chats_alone(tmp_path: Path) -> None:
    chats = lines(100)
    path = written(tmp_path / "chats.jsonl", ["oops", *chats, chats[0]])
    data, (training, held) = stored(path, tmp_path / "one")

    assert (len(training), len(held)) == (data.training, data.held_out)
    assert all(held_out(chat, 0.2) for chat in held) and not any(held_out(chat, 0.2) for chat in training)
    assert {chat.digest for chat in (*training, *held)} == {parse_chat(line.encode()).digest for line in chats}
    again, other_parts = stored(written(tmp_path / "other.jsonl", reversed(chats)), tmp_path / "two")
    assert (again.digest, other_parts) == (data.digest, [training, held])


def test_data_that_change_between_the_look_and_the_reading_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", lines(100))
    data = check_chats(path, policy=HALF)
    written(path, lines(101))
    with pytest.raises(DataError, match=r"chats\.jsonl changed while it was read; 100 chats"):
        store_parts(path, data, tmp_path / "workspace")
    assert not list((tmp_path / "workspace").glob("chats/*"))
