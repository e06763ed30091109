"""A retraining's data: fetched, looked at, and divided; chats that the model cannot read in one piece are left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slmpack.chat_data import ChatData, ChatParts, DataPolicy, TokensOf, check_chats, store_parts
from slmpack.chat_dataset import fetch_data
from slmpack.chats import Chat, ChatError
from slmpack.errors import DataError
from slmpack.mlflow_dataset import FoundData
from slmpack.private import folder_in
from slmpack.records import Snapshot
from slmpack.tokenizer_pair import read_tokenizer


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
    count = tokens_by(snapshot)
    with data_here(found.text, workspace) as path:
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


def tokens_by(snapshot: Snapshot) -> TokensOf:
    """Return what counts the tokens of a chat in the snapshot's template."""
    tokenizer: Any = read_tokenizer(snapshot.path)

    def count(chat: Chat) -> int:
        try:
            return len(tokenizer.apply_chat_template(chat.messages, tokenize=True, return_dict=False))
        except Exception as error:  # a template may raise whatever it likes: that is its way to refuse
            raise ChatError(f"the model's chat template refuses it ({' '.join(str(error).split())[:100]})") from error

    return count
