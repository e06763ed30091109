"""Chats made from a chat template, so that every branch of it is taken and all that is written in it is content, too.

    template --words--> structures (roles, turns, tools, keys)  --+
                    +-> its own texts within every role's text  --+--> those with new branches first, up to MOST_CHATS

Two renderers that differ in one branch, or in how they find `</think>` in an answer, differ on one of these chats.
What a caller of `apply_chat_template` has to pass by a name of the template's own (`enable_thinking`, `documents`) is
left out. Nothing is drawn by chance: a template has the same chats everywhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product, zip_longest
from typing import Any

from slmpack.checkpoint.texts.template_branches import Branch, BranchMeter, Rendering
from slmpack.checkpoint.texts.template_structures import interleaved, structures_of
from slmpack.checkpoint.texts.template_tools import TOOLS, assistant, user
from slmpack.checkpoint.texts.template_words import TemplateWords, words_of

MOST_CHATS = 400
MOST_TEXTS = 600
_PLAIN_TOGETHER = 6
_MOST_BESIDE = 25
_PLACES = ("{0} start", "in the {0} middle", "in{0}side", "at the end {0}", "{0}", "\n{0}\n\n", "{0}{0} twice")
Message = dict[str, Any]


@dataclass(frozen=True)
class TemplateChat:
    """One input of a chat template; messages and tools are not to be changed.

    Attributes:
        name: what is tried, in words.
        messages: as for `apply_chat_template`; contents may be None or lists of parts where the template knows them.
        tools: JSON schemas of functions, or None.
    """

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Message, ...] | None
    add_generation_prompt: bool


def chats_of(template: str, specials: Mapping[str, str]) -> tuple[TemplateChat, ...]:
    """Make at most `MOST_CHATS` chats from the text of a template that compiles.

    Args:
        template: as transformers' `get_chat_template` returns it.
        specials: the named special tokens as a template sees them, such as `bos_token` to its text.
    """
    words = words_of(template)
    meter = BranchMeter(template, specials)
    sorter = _Sorter(meter)
    for structure in structures_of(words):
        sorter.add(TemplateChat(*structure), "prompt")
    for chat in islice(_texts(words, tuple(specials.values()), _takes_system(meter)), MOST_TEXTS):
        if not sorter.add(chat, "text"):
            sorter.add(_without_answers(chat), "text")
    return tuple(sorter.ordered()[:MOST_CHATS])


class _Sorter:
    """Sorts chats by what is new in their renderings; a chat in which nothing is new has no place."""

    def __init__(self, meter: BranchMeter) -> None:
        self._meter = meter
        self._branches: set[Branch] = set()
        self._paths: set[tuple[frozenset[Branch], bool]] = set()
        self._prompts: set[str] = set()
        self._found: dict[str, list[TemplateChat]] = {rank: [] for rank in ("branch", "path", "text", "prompt", "none")}

    def add(self, chat: TemplateChat, otherwise: str) -> bool:
        """Measure a chat, and return whether the template takes it.

        Args:
            chat: the chat.
            otherwise: its rank where nothing but its prompt is new, or where measuring has taken too long.
        """
        if self._meter.spent:
            self._found[otherwise].append(chat)
            return True
        rendering = self._meter.render(list(chat.messages), chat.tools, chat.add_generation_prompt)
        self._found[self._rank(chat, rendering, otherwise)].append(chat)
        return rendering.text is not None

    def _rank(self, chat: TemplateChat, rendering: Rendering, otherwise: str) -> str:
        passed, prompt = rendering
        path, key = (passed, prompt is None), f"{prompt} {[_form(message) for message in chat.messages]}"
        new_branch, new_path = not passed <= self._branches, path not in self._paths
        new_prompt = prompt is not None and key not in self._prompts
        self._branches |= passed
        self._paths.add(path)
        self._prompts.add(key)
        if new_branch:
            return "branch"
        if new_path and (prompt is None or otherwise != "text"):
            return "path"
        return otherwise if new_prompt else "none"

    def ordered(self) -> list[TemplateChat]:
        """Return new branches first; then new ways through the template and the template's own texts in turn."""
        found = self._found
        turns = zip_longest(found["path"], found["text"])
        return [*found["branch"], *(chat for turn in turns for chat in turn if chat is not None), *found["prompt"]]


def _form(message: Message) -> list[tuple[str, str]]:
    return [(key, type(value).__name__) for key, value in message.items()]


def _without_answers(chat: TemplateChat) -> TemplateChat:
    messages = tuple(assistant("Hello.") if each["role"] == "assistant" else each for each in chat.messages)
    return replace(chat, name=f"{chat.name}, not in answers", messages=messages)


def _takes_system(meter: BranchMeter) -> bool:
    chat = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello."), user("Bye")]
    return meter.render(chat, None, True).text is not None


# ---------------------------------------------------------------------------------------------- its own texts


def _texts(words: TemplateWords, specials: tuple[str, ...], system: bool) -> Iterator[TemplateChat]:
    """Yield chats with the template's texts in them: every one at some place first, then at the next, and so on."""
    telling = tuple(dict.fromkeys([*specials, *words.telling]))
    pairs = _pairs(telling)
    between = [_between(*pair, system) for pair in pairs]
    yield from interleaved([_placed(telling, system), _plain(words, system), *between, _beside(pairs)])


def _placed(telling: tuple[str, ...], system: bool) -> Iterator[TemplateChat]:
    for turn in range(len(_PLACES)):
        for index, text in enumerate(telling):
            first, second, third = (
                _PLACES[(turn + index + role) % len(_PLACES)].replace("{0}", text) for role in range(3)
            )
            yield _chat(f"{text!r} in contents, {turn}", first, second, third, system=system)


def _plain(words: TemplateWords, system: bool) -> Iterator[TemplateChat]:
    """Yield chats with several of the plain texts each, but alone those that a template may refuse in an answer."""
    groups: list[tuple[str, ...]] = [
        (text,) for text in words.plain if any(telling in text for telling in words.telling)
    ]
    others = [text for text in words.plain if (text,) not in groups]
    groups += [tuple(others[start : start + _PLAIN_TOGETHER]) for start in range(0, len(others), _PLAIN_TOGETHER)]
    for index, group in enumerate(groups):
        text = "\n".join(group)
        yield _chat(f"plain words of the template, {index}", text, " ".join(group), text[::-1], system=system)


def _chat(name: str, first: str, second: str, third: str, *, system: bool) -> TemplateChat:
    before = [{"role": "system", "content": third}] if system else []
    messages = (*before, user(first), assistant(second), user("and " + first))
    return TemplateChat(name, messages, None, True)


def _pairs(telling: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the opening and closing tags that belong together, such as `<think>` and `</think>`."""
    closing = [text for text in telling if text.startswith(("</", "[/")) and text[-1] in ">]"]
    return [(text[0] + text[2:], text) for text in closing]


def _beside(pairs: list[tuple[str, str]]) -> Iterator[TemplateChat]:
    """Yield chats with text between two tags in the last question and between two others in the answer before it."""
    for (opening, closing), (first, last) in islice(product(pairs, repeat=2), _MOST_BESIDE):
        answer = assistant(f"{first}\nso it is\n{last}\n\nThe answer.")
        for text in (f"{opening}\nso\n{closing}", f"{opening}so", f"so{closing}"):
            yield TemplateChat(f"{text!r} after {first}", (user("Hi"), answer, user(text)), None, True)


def _between(opening: str, closing: str, system: bool) -> Iterator[TemplateChat]:
    """Yield chats with text between two tags, whole and broken, in earlier and last answers and in questions."""
    whole = f"{opening}\nso it is\n{closing}\n\nThe answer."
    variants = (
        whole,
        f"{opening}{closing}x",
        f"{opening}one line{closing}",
        f"no opening{closing}after",
        f"{opening}no closing",
        f"before{opening}a{closing}between{opening}b{closing}after",
        f"{closing}reversed{opening}",
        f"{whole}\n",
        f"\n\n{opening}\n\n a \n\n{closing}\n\n\n b \n\n",
    )
    for index, text in enumerate(variants):
        yield _chat(f"{opening} to {closing}, {index}", text, text, text, system=system)
        answered = (user("Hi"), assistant(text), user(text), assistant(text))
        yield TemplateChat(f"{opening} to {closing}, answered last, {index}", answered, None, index % 2 == 0)
        yield TemplateChat(f"{opening} to {closing}, with tools, {index}", answered[:3], TOOLS, True)
