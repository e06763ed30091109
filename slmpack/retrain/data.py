"""A retraining's data: fetched, looked at, and divided; chats that the model cannot read in one piece are left out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slmpack.chats.chat import Chat, ChatError
from slmpack.chats.dataset import ChatData, DataPolicy, check_chats
from slmpack.chats.examples import CHATS_A_LIMIT
from slmpack.chats.lines import TokensOf, read_chats
from slmpack.chats.parts import ChatParts, store_parts
from slmpack.errors import DataError
from slmpack.log.chat_artifacts import fetch_data
from slmpack.log.datasets import FoundData
from slmpack.machine.child import limited, run_in_child
from slmpack.machine.forks import TOKENIZER, forked_with
from slmpack.machine.private import folder_in
from slmpack.machine.store import log_folder
from slmpack.records import Record, Snapshot

LENGTHS_LIMIT_SECONDS = 4 * 3600.0


class LengthsRequest(Record):
    """A checkpoint, a file or folder of chats, and the file that is written."""

    snapshot: Path
    chats: Path
    into: Path


class Lengths(Record):
    """How many chats were counted."""

    counted: int


def look_at_data(found: FoundData, policy: DataPolicy, workspace: Path) -> ChatData:
    """Return what the data are, by the name that MLflow has for them if it has one; no model is needed for it.

    Raises:
        DataError: there are none, too many lines are bad, or they are too few or one and the same.
        UsageError: a URI that names no data.
    """
    with data_here(found.text, workspace) as path:
        return _named(check_chats(path, policy=policy), found)


def divide_data(
    found: FoundData, looked_at: ChatData, snapshot: Snapshot, workspace: Path
) -> tuple[ChatData, ChatParts]:
    """Return the data as the model can read them, and the two files they are divided into.

    Raises:
        DataError: as `look_at_data`, longer chats than the model's context counted as bad lines; or the files are
            others than those that were looked at.
    """
    with data_here(found.text, workspace) as path, tokens_by(snapshot, path, workspace) as count:
        data = check_chats(path, policy=looked_at.policy, tokens_of=count, context_length=snapshot.context_length)
        if data.files != looked_at.files:  # what is learnt would go by the digest of what was there before
            raise DataError(f"{looked_at.name} changed while it was read", "the same files", "start again")
        parts = store_parts(path, data, workspace, tokens_of=count, context_length=snapshot.context_length)
    return _named(data, found), parts


def _named(data: ChatData, found: FoundData) -> ChatData:
    return data if found.name is None else data.model_copy(update={"name": found.name})


@contextmanager
def data_here(text: str, workspace: Path) -> Iterator[Path]:
    """Yield the path of the data on this machine; artifacts of MLflow are downloaded, and gone afterwards."""
    scratch = folder_in(workspace, "scratch")
    with TemporaryDirectory(prefix="data-", dir=scratch) as folder:
        yield fetch_data(text, Path(folder))


@contextmanager
def tokens_by(snapshot: Snapshot, path: Path, workspace: Path) -> Iterator[TokensOf]:
    """Yield what knows the tokens of each chat at `path` in the snapshot's template; a child has counted them.

    Raises:
        DataError: the template or the tokenizer takes too long or too much memory.
    """
    with TemporaryDirectory(prefix="lengths-", dir=workspace / "scratch") as folder:
        request = LengthsRequest(snapshot=snapshot.path, chats=path, into=Path(folder) / "lengths.jsonl")
        run_in_child(
            count_lengths,
            request,
            log=log_folder(workspace) / f"lengths-{snapshot.digest[:12]}.log",
            limit_seconds=LENGTHS_LIMIT_SECONDS,
            failure=DataError,
            doing="the count of the chats' tokens",
        )
        with request.into.open(encoding="utf-8") as file:
            known: dict[str, int | str] = dict(map(json.loads, file))

        def count(chat: Chat) -> int:
            found = known.get(chat.digest, "its file changed while it was read")
            if isinstance(found, str):
                raise ChatError(found)
            return found

        yield count


@forked_with(*TOKENIZER)
def count_lengths(request: LengthsRequest) -> Lengths:
    """Run in a child: write a line of JSON for each chat, its digest and its tokens, or why the template refuses it."""
    from slmpack.checkpoint.tokenizer import read_tokenizer

    chats, counted = read_chats(request.chats), 0
    file = f"the tokenizer or the chat template of {request.snapshot}"
    with limited(file):
        tokenizer = read_tokenizer(request.snapshot)
    with request.into.open("w", encoding="utf-8", newline="\n") as lines:
        while some := list(islice(chats, CHATS_A_LIMIT)):
            with limited(file):
                found = [[chat.digest, _length(tokenizer, chat)] for chat in some]
            lines.writelines(f"{json.dumps(each)}\n" for each in found)
            counted += len(found)
    return Lengths(counted=counted)


def _length(tokenizer: Any, chat: Chat) -> int | str:
    try:
        return len(tokenizer.apply_chat_template(chat.messages, tokenize=True, return_dict=False))
    except MemoryError:
        raise
    except Exception as error:  # a template may raise anything: that is its way to refuse
        return f"the model's chat template refuses it ({' '.join(str(error).split())[:100]})"
