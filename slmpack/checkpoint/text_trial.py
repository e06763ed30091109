"""Text trial: a checkpoint's tokenizer and chat templates are run once, before anything is built of them.

Both are programs of a stranger's: a template may pad a text to gigabytes, an expression may backtrack for years. Those
that do so on ordinary texts are found here, seconds after they were fetched; for the others every later stage has the
same limits.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slmpack.checkpoint.chat_templates import templates_of
from slmpack.checkpoint.texts.sample_texts import CHATS, CORPUS
from slmpack.errors import SourceError, is_failure
from slmpack.machine.child import limited

logger = logging.getLogger(__name__)

TRIAL_SECONDS = 60.0  # of each file; ordinary ones take less than one
TRIAL_BYTES = 2 << 30
_LONG = ("i", " ", "a b", "\n", "1", "-", "你")
_REPEATED = 3000
_TAIL = "! a Z 0 \n<|x|>"  # what an expression looks for behind the letters, and finds too late


def try_texts(folder: Path, seconds: float = TRIAL_SECONDS, size_bytes: int = TRIAL_BYTES) -> None:
    """Run in a child: read texts with the tokenizer of a checkpoint, and render chats with each of its templates.

    Raises:
        SourceError: the tokenizer fails on a text. A file that breaks the limits ends the child, see `limited`.
    """
    if not (folder / "tokenizer.json").is_file():  # the base of an adapter that has its own
        return
    with limited(f"{folder / 'tokenizer.json'}", seconds, size_bytes):
        tokenizer = _read(folder)
    for each in templates_of(folder).values():
        with limited(f"the chat template in {each.place}", seconds, size_bytes):
            _render_all(tokenizer, each.text)


def _read(folder: Path) -> Any:
    from slmpack.checkpoint.tokenizer import read_tokenizer

    with _failures(folder, "does not load"):
        tokenizer = read_tokenizer(folder)
    for text in (*CORPUS, *(letter * _REPEATED + _TAIL for letter in _LONG)):
        with _failures(folder, f"fails on {text[:20]!r}"):
            tokenizer.decode(tokenizer(text)["input_ids"])
    return tokenizer


@contextmanager
def _failures(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise SourceError(
            f"{folder / 'tokenizer.json'} {what} ({' '.join(str(error).split())[:200]})",
            "a fast tokenizer",
            "fetch or save it again",
        ) from error


def _render_all(tokenizer: Any, template: str) -> None:
    for _, chat in CHATS:
        try:
            tokenizer.apply_chat_template(
                list(chat), chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except MemoryError:
            raise
        except Exception as error:  # a template may raise anything: that is its way to refuse
            logger.debug("the template refuses a chat: %s", error)
