"""The two parts of a data set, one to learn from and one to measure by, as files of the workspace."""

from pathlib import Path

from slmpack.chats.chat import Chat, held_out
from slmpack.chats.dataset import ChatData
from slmpack.chats.lines import TokensOf, read_chats
from slmpack.errors import DataError
from slmpack.machine.store import store_folder
from slmpack.records import Record, digest_of

TRAINING, HELD_OUT = "training.jsonl", "held-out.jsonl"


class ChatParts(Record):
    """The two parts of a data set, as files of the workspace: one chat a line, each once, ordered by digest."""

    training: Path
    held_out: Path


def store_parts(
    path: Path, data: ChatData, workspace: Path, *, tokens_of: TokensOf | None = None, context_length: int = 0
) -> ChatParts:
    """Divide the chats that `check_chats` found at `path` into two files of the workspace, at hand the next time.

    They are ordered by digest, so that what is learnt depends on the chats alone. All of them are in memory meanwhile.

    Args:
        tokens_of: as `check_chats` was given, and so is `context_length`.

    Raises:
        DataError: the files are not what they were then.
        WorkspaceError: there is no room in the workspace.
    """
    share = data.policy.held_out_share

    def make(into: Path) -> dict[str, str | int | None]:
        chats = {chat.digest: chat for chat in read_chats(path, tokens_of=tokens_of, context_length=context_length)}
        if digest_of(sorted(chats)) != data.digest:
            raise DataError(f"{data.name} changed while it was read", f"{data.chats} chats", "start again")
        different = [chats[digest] for digest in sorted(chats)]
        _write(into / TRAINING, [chat for chat in different if not held_out(chat, share)])
        _write(into / HELD_OUT, [chat for chat in different if held_out(chat, share)])
        return {"digest": data.digest, "training": data.training, "held_out": data.held_out}

    folder = store_folder(workspace, "chats", digest_of([data.training_digest, data.held_out_digest]), make)
    return ChatParts(training=folder / TRAINING, held_out=folder / HELD_OUT)


def _write(path: Path, chats: list[Chat]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{chat.line()}\n" for chat in chats)
