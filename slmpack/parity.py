r"""Parity: the package's tokenizer, chat template and end-of-turn tokens are those of its source, text by text.

    snapshot --transformers--> ids, text, prompts, end-of-turn ids --+
    package ---ONNX Runtime GenAI--> the same ----------------------+--> Check, or CheckError at the first difference

The runtime reads `tokenizer.json` with a reader of its own, which ignores what it does not know and gives other ids,
or -1, without a word; and the model answers those with nonsense. So both read the same pinned texts here.

What is compared is what the wrapper asks for. `Tokenizer.encode` adds no special tokens, which is transformers'
`apply_chat_template(tokenize=True)` for a rendered prompt; with the option `add_special_tokens` (the wrapper's raw
prompts) it adds what the post-processor adds, which is transformers' plain call. Answers are decoded by a stream.

The source's `tokenizer.json` is read as it is, not through the class that `tokenizer_config.json` names: since
transformers 5 such a class (`LlamaTokenizer`, `GPT2Tokenizer`) puts its own pre-tokenizer in the place of the file's,
and then gives other ids than the ones that the model was trained on.

What differs in the runtime for every such model is told in the check and not refused: see `tokenizer_pair`.

No weight is looked at, so the same small files are compared once: see `known_parity`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from slmpack.child import run_in_child
from slmpack.end_of_turn import end_ids_of
from slmpack.errors import CheckError
from slmpack.json_file import read_json
from slmpack.parity_corpus import Chat, chats_with
from slmpack.progress import report
from slmpack.records import Check, Record
from slmpack.tokenizer_pair import ADVICE, Limits, Pair, shown, text_differs

PARITY_LIMIT_SECONDS = 600.0


class ParityRequest(Record):
    """An ONNX Runtime GenAI folder and the checkpoint that it was built from."""

    package: Path
    snapshot: Path


class ParityResult(Record):
    """What was compared, and equal."""

    checks: tuple[Check, ...]


def check_parity(package: Path, snapshot: Path, log: Path) -> tuple[Check, ...]:
    """Compare what the package's tokenizer does with what the checkpoint's does; no weight is loaded.

    Args:
        package: the ONNX Runtime GenAI folder.
        snapshot: the checkpoint it was built from.
        log: where the child process writes.

    Raises:
        CheckError: the first difference: which check, on which text, what both gave.
    """
    request = ParityRequest(package=package, snapshot=snapshot)
    result, _ = run_in_child(
        parity_of, request, log=log, limit_seconds=PARITY_LIMIT_SECONDS, failure=CheckError, doing="the parity check"
    )
    return result.checks


def parity_of(request: ParityRequest) -> ParityResult:
    """Run in a child: compare.

    Raises:
        CheckError: the first difference.
    """
    pair = Pair(request.package, request.snapshot)
    checks = []
    for done, check in enumerate(CHECKS, start=1):
        checks.append(check(pair))
        report("parity", done, len(CHECKS), "checks")
    return ParityResult(checks=tuple(checks))


# ---------------------------------------------------------------------------------------------- the checks


def _check_vocabulary(pair: Pair) -> Check:
    """No token lies outside the model's vocabulary: the runtime would take it and the model answer nonsense."""
    text, highest = max(pair.source.get_vocab().items(), key=lambda item: item[1])
    if highest >= pair.vocabulary:
        raise CheckError(
            f"vocabulary: the tokenizer has {text!r} with the id {highest}",
            f"ids below the {pair.vocabulary} that genai_config.json has", "fetch the checkpoint again",
        )  # fmt: skip
    for text in pair.texts:
        ids = pair.runtime.encode(text).tolist()
        if wrong := [found for found in ids if not 0 <= found < pair.vocabulary]:
            raise CheckError(
                f"vocabulary: {shown(text)} gives the id {wrong[0]} in the runtime",
                f"0 to {pair.vocabulary - 1}",
                ADVICE,
            )
    return Check(name="vocabulary", found=f"{highest + 1} of {pair.vocabulary} ids")


def _check_file(pair: Pair) -> Check:
    """The vocabulary and the merges are the source's, one by one: a text finds a lost merge only if it needs it."""
    found = read_json(pair.package / "tokenizer.json")["model"]
    expected = read_json(pair.snapshot / "tokenizer.json")["model"]
    if found["vocab"] != expected["vocab"]:
        raise CheckError(
            f"tokenizer file: {len(found['vocab'])} tokens, not all the source's",
            f"the source's {len(expected['vocab'])}", "build the package again",
        )  # fmt: skip
    for index, (merge, wanted) in enumerate(zip_longest(_merges(found), _merges(expected))):
        if merge != wanted:
            raise CheckError(
                f"tokenizer file: merge {index} is {merge}", f"{wanted}, as in the source", "build the package again"
            )
    return Check(name="tokenizer file", found=f"{len(found['vocab'])} tokens, {len(_merges(found))} merges")


def _merges(model: dict[str, Any]) -> list[list[str]]:
    """Return the merges as pairs; older files have them as "left right"."""
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]


def _check_ids(pair: Pair) -> Check:
    limits = Limits(pair)
    for text in pair.texts:
        expected = pair.source(text, add_special_tokens=False)["input_ids"]
        limits.compare("token ids", text, pair.runtime.encode(text).tolist(), expected)
    return Check(name="token ids", found=f"{len(pair.texts)} texts{limits.told}")


def _check_raw_ids(pair: Pair) -> Check:
    """With the special tokens of the post-processor, as the wrapper has it for raw prompts."""
    runtime = pair.open_runtime()
    runtime.update_options(add_special_tokens="true")
    limits = Limits(pair)
    for text in pair.texts:
        limits.compare("token ids of raw text", text, runtime.encode(text).tolist(), pair.source(text)["input_ids"])
    added = len(pair.source("")["input_ids"])
    return Check(
        name="token ids of raw text", found=f"{len(pair.texts)} texts, {added} special tokens added{limits.told}"
    )


def _check_decoding(pair: Pair) -> Check:
    """Ids of ordinary text become that text, by the stream that answers go through; the whole at once is the same."""
    hidden = set(pair.source.all_special_ids) | set(pair.source.get_added_vocab().values())
    # As the wrapper: SentencePiece puts a space before the first word, and the runtime leaves it there.
    strips = pair.runtime.decode(pair.runtime.encode("a")) == " a"
    compared = 0
    for text in pair.texts:
        ids = pair.source(text, add_special_tokens=False)["input_ids"]
        if not ids or hidden & set(ids):
            continue
        expected = pair.source.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        stream = pair.runtime.create_stream()
        streamed = "".join(stream.decode(token) for token in ids)
        found = streamed.removeprefix(" ") if strips else streamed
        if found != expected:
            raise text_differs("decoding", found, expected, "by the source's tokenizer")
        if (whole := pair.runtime.decode(ids)) != streamed:
            raise text_differs("streamed decoding", streamed, whole, "decoded at once")
        compared += 1
    return Check(name="decoding", found=f"{compared} texts, streamed and whole")


def _check_chat_template(pair: Pair) -> Check:
    limits = Limits(pair)
    refused = 0
    chats = chats_with(pair.specials)
    for name, chat in chats:
        prompt = _prompt(pair, name, chat)
        if prompt is None:
            refused += 1
            continue
        limits.compare(f"chat prompt ids, {name}", prompt.text, pair.runtime.encode(prompt.text).tolist(), prompt.ids)
    if refused == len(chats):
        raise CheckError("chat template: it refuses every chat", "one user's turn to be rendered", ADVICE)
    return Check(name="chat template", found=f"{len(chats)} chats, {refused} refused by both{limits.told}")


@dataclass(frozen=True)
class Prompt:
    """A rendered chat; `ids` are transformers'."""

    text: str
    ids: list[int]


def _prompt(pair: Pair, name: str, chat: Chat) -> Prompt | None:
    """Return the prompt that both render, or None where both refuse."""
    for _ in range(2):  # a template that writes the date: midnight may come between the two
        expected = _render_source(pair, chat)
        found = _render_runtime(pair, chat)
        if found is None and expected is None:
            return None
        if expected is not None and found == expected.text:
            return expected
    label = f"chat template, {name}"
    if found is None or expected is None:
        refuses, renders = ("the runtime", "the source") if found is None else ("the source", "the runtime")
        raise CheckError(f"{label}: {refuses}'s rendering refuses it", f"a prompt, as {renders}'s gives", ADVICE)
    raise text_differs(label, found, expected.text, "by transformers")


def _render_source(pair: Pair, chat: Chat) -> Prompt | None:
    try:
        text = pair.source.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = pair.source.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
    except Exception:  # a template may raise whatever it likes: that is its way to refuse
        return None
    return Prompt(text=text, ids=ids)


def _render_runtime(pair: Pair, chat: Chat) -> str | None:
    try:
        return str(pair.runtime.apply_chat_template(json.dumps(chat), add_generation_prompt=True))
    except RuntimeError:
        return None


def _check_end_of_turn(pair: Pair) -> Check:
    asked = end_ids_of(pair.snapshot, pair.source)
    found = {int(token) for token in pair.runtime.eos_token_ids}
    if missing := sorted(asked.keys() - found):
        raise CheckError(
            f"end of turn: eos_token_id of genai_config.json is {sorted(found)}",
            f"{_named(pair, missing[0])} among them, since {asked[missing[0]]} asks for it",
            "add it to eos_token_id in the checkpoint's generation_config.json",
        )
    if more := sorted(found - asked.keys()):
        raise CheckError(
            f"end of turn: {_named(pair, more[0])} is in eos_token_id of genai_config.json",
            f"only {', '.join(_named(pair, token) for token in sorted(asked))}", "build the package again",
        )  # fmt: skip
    return Check(name="end of turn", found=", ".join(_named(pair, token) for token in sorted(found)))


def _named(pair: Pair, token: int) -> str:
    return f"{token} {pair.source.convert_ids_to_tokens(token)!r}"


CHECKS: tuple[Callable[[Pair], Check], ...] = (
    _check_file,
    _check_vocabulary,
    _check_ids,
    _check_raw_ids,
    _check_decoding,
    _check_chat_template,
    _check_end_of_turn,
)
