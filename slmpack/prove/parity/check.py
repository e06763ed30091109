r"""Parity: a package's tokenizer, chat template and end-of-turn tokens are those of its source, text by text.

    snapshot --transformers-------------> ids, text, prompts, end-of-turn ids --+
    package ---the wrapper that travels-> the same ----------------------------+--> Check, or CheckError

Both read the same inputs: pinned texts and chats, and those made from this very tokenizer and template so that every
added token, edge and branch is met (see `tokenizer_texts`, `template_chats`). There is no known difference: ids,
decoded text and prompts are equal, or the package is refused.

What is compared is what the wrapper does. A rendered prompt gets no special tokens of its own, which is transformers'
`apply_chat_template(tokenize=True)`; raw text gets what the post-processor adds, which is transformers' plain call.
Answers are decoded by a stream.

The source's `tokenizer.json` is read as it is, not through the class that `tokenizer_config.json` names: since
transformers 5 such a class (`LlamaTokenizer`, `GPT2Tokenizer`) puts its own pre-tokenizer in the place of the file's,
and then gives other ids than the ones that the model was trained on.

How the runtime reads the package without the wrapper is compared as well and only reported: see `runtime_reading`.

No weight is looked at, so the same small files are compared once: see `known_parity`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from slmpack.checkpoint.texts.template_chats import TemplateChat
from slmpack.checkpoint.tokenizer import end_ids_of
from slmpack.errors import CheckError
from slmpack.machine.child import limited, run_in_child
from slmpack.machine.forks import MLFLOW, TOKENIZER, forked_with
from slmpack.machine.json_file import read_json
from slmpack.progress import report
from slmpack.prove.parity.pair import ADVICE, Pair, ids_differ, text_differs
from slmpack.prove.parity.runtime_reading import NAME, compare_runtime
from slmpack.records import Record
from slmpack.reports import Check

PARITY_LIMIT_SECONDS = 600.0
REPLACEMENT = "\ufffd"
MOST_RENDERINGS = 3  # of one chat, where the template writes the time


class ParityRequest(Record):
    """An ONNX Runtime GenAI folder and the checkpoint that it was built from.

    Attributes:
        with_runtime: also count what the runtime reads otherwise by itself.
    """

    package: Path
    snapshot: Path
    with_runtime: bool = True


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
    try:
        return _run(request, log)
    except CheckError:
        # Perhaps the runtime's own reader crashed or hung, on a file that nobody needs it for: no reason to refuse.
        checks = _run(request.model_copy(update={"with_runtime": False}), log)
    return (*checks, Check(name=NAME, found="the runtime fails to read the text files by itself"))


def _run(request: ParityRequest, log: Path) -> tuple[Check, ...]:
    result, _ = run_in_child(
        parity_of, request, log=log, limit_seconds=PARITY_LIMIT_SECONDS, failure=CheckError, doing="the parity check"
    )
    return result.checks


@forked_with(*MLFLOW, *TOKENIZER)
def parity_of(request: ParityRequest) -> ParityResult:
    """Run in a child: compare.

    Raises:
        CheckError: the first difference.
    """
    import transformers  # noqa: F401 - its memory is not the texts'

    import slmpack.log.chat_model  # noqa: F401

    with limited(f"the tokenizer or a chat template of {request.snapshot}", PARITY_LIMIT_SECONDS):
        return _compared(request)


def _compared(request: ParityRequest) -> ParityResult:
    pair = Pair(request.package, request.snapshot)
    checks = []
    for done, check in enumerate(CHECKS, start=1):
        checks.append(check(pair))
        report("parity", done, len(CHECKS), "checks")
    if request.with_runtime:
        checks.append(compare_runtime(pair))
    return ParityResult(checks=tuple(checks))


# ---------------------------------------------------------------------------------------------- the checks


def _check_vocabulary(pair: Pair) -> Check:
    """No token lies outside the model's vocabulary: the runtime would take it and the model answer nonsense."""
    text, highest = max(pair.source.get_vocab().items(), key=lambda item: item[1])
    if highest >= pair.vocabulary:
        raise CheckError(
            f"vocabulary: the tokenizer has {text!r} with the id {highest}",
            f"ids below the {pair.vocabulary} that genai_config.json has",
            "fetch the checkpoint again",
        )
    return Check(name="vocabulary", found=f"{highest + 1} of {pair.vocabulary} ids")


def _check_file(pair: Pair) -> Check:
    """Compare the vocabulary and the merges one by one: a text finds a lost merge only if it needs it."""
    found = read_json(pair.package / "tokenizer.json")["model"]
    expected = read_json(pair.snapshot / "tokenizer.json")["model"]
    if found["vocab"] != expected["vocab"]:
        raise CheckError(
            f"tokenizer file: {len(found['vocab'])} tokens, not all the source's",
            f"the source's {len(expected['vocab'])}",
            "build the package again",
        )
    for index, (merge, source_merge) in enumerate(zip_longest(_merges(found), _merges(expected))):
        if merge != source_merge:
            raise CheckError(
                f"tokenizer file: merge {index} is {merge}",
                f"{source_merge}, as in the source",
                "build the package again",
            )
    return Check(name="tokenizer file", found=f"{len(found['vocab'])} tokens, {len(_merges(found))} merges")


def _merges(model: dict[str, Any]) -> list[list[str]]:
    """Return the merges as pairs; older files have them as "left right"."""
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]


def _check_ids(pair: Pair) -> Check:
    for text, expected in zip(pair.inputs.texts, pair.source_ids, strict=True):
        if (found := pair.tokenizer.encode(text)) != expected:
            raise ids_differ("token ids", text, found, expected)
    return Check(name="token ids", found=f"{len(pair.inputs.texts)} texts")


def _check_raw_ids(pair: Pair) -> Check:
    """With the special tokens of the post-processor, as the wrapper has it for raw prompts."""
    sources = pair.source(list(pair.inputs.texts))["input_ids"]
    for text, expected in zip(pair.inputs.texts, sources, strict=True):
        if (found := pair.tokenizer.encode(text, add_special_tokens=True)) != expected:
            raise ids_differ("token ids of raw text", text, found, expected)
    added = len(pair.source("")["input_ids"])
    return Check(name="token ids of raw text", found=f"{len(pair.inputs.texts)} texts, {added} special tokens added")


def _check_decoding(pair: Pair) -> Check:
    """Ids become the text that transformers makes of them, at once and by the stream that answers go through.

    Where bytes make no character, the stream has let out what came before, and may differ in U+FFFD.
    """
    sequences = [ids for ids in dict.fromkeys([*map(tuple, pair.source_ids), *pair.inputs.sequences]) if ids]
    for ids in sequences:
        expected = pair.source.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if (found := pair.tokenizer.decode(list(ids))) != expected:
            raise text_differs("decoding", found, expected, "by the source's tokenizer")
        if (streamed := _streamed(pair, ids)) != expected and REPLACEMENT not in expected:
            raise text_differs("streamed decoding", streamed, expected, "decoded at once")
    return Check(name="decoding", found=f"{len(sequences)} sequences, streamed and whole")


def _streamed(pair: Pair, ids: tuple[int, ...]) -> str:
    from slmpack.log.chat_model import TextStream

    stream = TextStream(pair.for_streams, [])
    return "".join([*map(stream.push, ids), stream.rest()])


def _check_chat_template(pair: Pair) -> Check:
    refused = 0
    for chat in pair.inputs.chats:
        prompt = _prompt(pair, chat)
        if prompt is None:
            refused += 1
        elif (found := pair.tokenizer.encode(prompt.text)) != prompt.ids:
            raise ids_differ(f"chat prompt ids, {chat.name}", prompt.text, found, prompt.ids)
    if refused == len(pair.inputs.chats):
        raise CheckError("chat template: it refuses every chat", "one user's turn to be rendered", ADVICE)
    return Check(name="chat template", found=f"{len(pair.inputs.chats)} chats, {refused} refused by both")


@dataclass(frozen=True)
class Prompt:
    """A rendered chat; `ids` are transformers'."""

    text: str
    ids: list[int]


def _prompt(pair: Pair, chat: TemplateChat) -> Prompt | None:
    """Return the prompt that both render, or None where both refuse."""
    for _ in range(MOST_RENDERINGS):  # a template that writes the date: midnight may come between the two
        expected = _render_source(pair, chat)
        found = _render_package(pair, chat)
        if found is None and expected is None:
            return None
        if expected is not None and found == expected.text:
            return expected
    label = f"chat template, {chat.name}"
    if found is None or expected is None:
        refuses, renders = ("the package", "the source") if found is None else ("the source", "the package")
        raise CheckError(f"{label}: {refuses}'s rendering refuses it", f"a prompt, as {renders}'s gives", ADVICE)
    raise text_differs(label, found, expected.text, "by transformers")


def _render_source(pair: Pair, chat: TemplateChat) -> Prompt | None:
    given: dict[str, Any] = {
        "conversation": list(chat.messages),
        "tools": None if chat.tools is None else list(chat.tools),
        "add_generation_prompt": chat.add_generation_prompt,
    }
    try:
        text = pair.source.apply_chat_template(**given, tokenize=False)
        ids = pair.source.apply_chat_template(**given, tokenize=True, return_dict=False)
    except MemoryError:
        raise
    except Exception:  # a template may raise anything: that is its way to refuse
        return None
    return Prompt(text=text, ids=ids)


def _render_package(pair: Pair, chat: TemplateChat) -> str | None:
    from slmpack.log.chat_model import TemplateLimitError

    tools = None if chat.tools is None else list(chat.tools)
    try:
        return pair.template.render(list(chat.messages), tools, add_generation_prompt=chat.add_generation_prompt)
    except TemplateLimitError as error:
        raise CheckError(f"chat template, {chat.name}: {error}") from error
    except Exception:  # as above
        return None


def _check_end_of_turn(pair: Pair) -> Check:
    end_ids = end_ids_of(pair.snapshot, pair.source)
    found = _ends_of(pair.package)
    if missing := sorted(end_ids.keys() - found):
        raise CheckError(
            f"end of turn: eos_token_id of genai_config.json is {sorted(found)}",
            f"{_named(pair, missing[0])} among them, since {end_ids[missing[0]]} asks for it",
            "add it to eos_token_id in the checkpoint's generation_config.json",
        )
    if more := sorted(found - end_ids.keys()):
        raise CheckError(
            f"end of turn: {_named(pair, more[0])} is in eos_token_id of genai_config.json",
            f"only {', '.join(_named(pair, token) for token in sorted(end_ids))}",
            "build the package again",
        )
    return Check(name="end of turn", found=", ".join(_named(pair, token) for token in sorted(found)))


def _ends_of(package: Path) -> set[int]:
    ends = read_json(package / "genai_config.json")["model"]["eos_token_id"]
    return set(ends) if isinstance(ends, list) else {ends}


def _named(pair: Pair, token: int) -> str:
    return f"{token} {pair.source.convert_ids_to_tokens(token)!r}"


TEMPLATE_CHECKS: tuple[Callable[[Pair], Check], ...] = (_check_end_of_turn, _check_chat_template)
CHECKS: tuple[Callable[[Pair], Check], ...] = (  # those that take longest come last: a difference is found early
    _check_file,
    _check_vocabulary,
    _check_end_of_turn,
    _check_ids,
    _check_raw_ids,
    _check_chat_template,
    _check_decoding,
)
