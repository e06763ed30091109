"""A served model: one version's texts, and the engine that runs its package."""

import asyncio
import copy
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmpack.errors import HardwareError
from slmpack.log.chat_model import (
    LIMIT_FIELDS,
    AnswerText,
    IntegrityError,
    Request,
    RequestError,
    RequestReader,
    Row,
    Texts,
    provider_of,
    read_config,
    read_settings,
    verify_graph,
    verify_model,
    verify_package,
)
from slmpack.machine.cores import share_of_cores
from slmpack.machine.memory import available_bytes
from slmpack.machine.store import log_folder
from slmpack.serve.chat_request import Extras
from slmpack.serve.engine import Engine, EngineDiedError, Started
from slmpack.serve.jobs import Token
from slmpack.serve.locate import Located
from slmpack.serve.memory_plan import plan_context, weight_bytes
from slmpack.serve.open_graph import EnginePlan
from slmpack.serve.options import ServeOptions
from slmpack.serve.sampling import SamplingRule
from slmpack.serve.slot_graph import GraphShape
from slmpack.serve.tools import Tooled, form_in


@dataclass(frozen=True)
class Piece:
    """The next part of one answer's text.

    Attributes:
        tokens: those that were chosen since the piece before.
        finish: `stop` or `length` with the last piece.
    """

    index: int
    text: str
    tokens: tuple[Token, ...]
    finish: str | None


class ServedModel:
    """Answers requests for one version.

    Attributes:
        located: which version it is.
        engine: the process that computes.
        context: tokens of a prompt and its answer at most.
        kv_bytes: what keys and values of all slots take at most.
        tool_form: how the model calls tools; None: its template has none of a known form.
        searched: the package's own `top_k` and `top_p`.
        users: requests that have found this version and are not answered.
        capacity: answers under way or waiting at most.
    """

    def __init__(
        self, located: Located, options: ServeOptions, workspace: Path, started: Started | None = None
    ) -> None:
        """Verify every file of the version and read what its texts need; nothing is computed yet.

        Raises:
            IntegrityError: a file is not what was logged.
            HardwareError: the slots do not fit into memory.
        """
        verify_model(located.folder)
        verify_package(located.package)
        verify_graph(located.package)
        self.located = located
        self.users = 0
        self.settings = read_settings(dict(located.config), located.name)
        self.texts = Texts(located.package, self.settings)
        shape = GraphShape(located.package)
        window, slots = self.texts.context_length, options.slots
        self.context = plan_context(
            window, options.context, slots, shape.bytes_per_token,
            available=available_bytes(), weights=weight_bytes(shape.file), models=options.models,
        )  # fmt: skip
        self.slots = slots
        self.capacity = slots + options.queue
        self.kv_bytes = slots * self.context * shape.bytes_per_token
        self.bytes_per_token = shape.bytes_per_token
        self.texts.context_length = self.context  # a longer prompt is refused with both lengths
        self._chats = RequestReader(self.texts, read_settings(located.config | _CHAT, located.name))
        self._continued = copy.copy(self.texts)
        self._continued.continues = True
        self._raw = RequestReader(self._continued, read_settings(located.config | _RAW, located.name))
        self.tool_form = form_in(located.package)
        search = read_config(located.package)["search"]
        self.searched: tuple[float, int] = float(search.get("top_p", 1.0)), int(search.get("top_k", 0))
        self.threads = options.threads or share_of_cores()
        self.engine = Engine(self._plan(), engine_log(workspace), options.queue, started)

    def _plan(self) -> EnginePlan:
        return EnginePlan(
            folder=self.located.package,
            slots=self.slots,
            context=self.context,
            threads=self.threads,
            provider=self.settings.execution_provider or provider_of(self.texts.decoder),
            end_tokens=self.texts.end_tokens,
            vocabulary=self.texts.vocabulary,
        )

    @property
    def label(self) -> str:
        """The name that answers have: NAME@ALIAS, NAME/VERSION, or the name of a folder."""
        name, alias, version = self.located.name, self.located.alias, self.located.version
        return f"{name}@{alias}" if alias else f"{name}/{version}" if version else name

    @property
    def names(self) -> tuple[str, ...]:
        """What else a request may call it: the label, the URI, and the version by its number."""
        numbered = f"{self.located.name}/{self.located.version}"
        return self.label, self.located.uri, numbered, f"models:/{numbered}"

    async def read_chat(self, row: Row, tooled: Tooled | None = None) -> Request:
        """Return the request for a chat's answer; its template and tokenizer run beside everything else."""
        if tooled is not None:
            return await asyncio.to_thread(self._read_tooled, row, tooled)
        return (await asyncio.to_thread(self._chats.read, [row]))[0]

    def _read_tooled(self, row: Row, tooled: Tooled) -> Request:
        """Return the request of a chat with tools, which the wrapper does not read: its fields by one without."""
        (plain,) = self._chats.read([row | {"messages": [{"role": "user", "content": "."}]}])
        ids = self.texts.encode_prompt(self.texts.render_chat(tooled.messages, tooled.tools))
        room = self.context - len(ids)
        limit = next((row[name] for name in LIMIT_FIELDS if name in row), None)
        if room < 1 or (isinstance(limit, int) and limit > room):
            raise RequestError(
                f"messages: a prompt of {len(ids)} tokens and {limit or 'an answer'} were found; the context window "
                f"has {self.context} tokens for both; shorten the chat, its tools or its answer"
            )
        return replace(plain, prompt_ids=ids, max_tokens=min(plain.max_tokens, room))

    async def read_raw(self, rows: list[Row]) -> list[Request]:
        """Return the requests for texts that go on from prompts."""
        return await asyncio.to_thread(self._raw.read, rows)

    def rule_of(self, request: Request, extras: Extras, index: int) -> SamplingRule:
        """Return how the tokens of a choice are chosen: what the request leaves open, the package says."""
        sampling = request.sampling
        top_p, top_k = self.searched
        return extras.rule(
            sampling.temperature,
            top_p if sampling.top_p is None else sampling.top_p,
            top_k if sampling.top_k is None else sampling.top_k,
            None if sampling.seed is None else sampling.seed + index,
        )

    async def answer(
        self, request: Request, rule: SamplingRule, index: int, *, reuse: bool, raw: bool = False
    ) -> AsyncGenerator[Piece]:
        """Yield one answer's text as it comes; the last piece has the reason of its end."""
        text = AnswerText(self._continued if raw else self.texts, request)
        fresh: list[Token] = []
        prompt: list[int] = request.prompt_ids.tolist()
        async with aclosing(self.engine.tokens(prompt, request.max_tokens, rule, reuse=reuse)) as tokens:
            async for token in tokens:
                fresh.append(token)
                piece = text.push(token.chosen.token)
                ended = token.finish is not None or text.has_ended
                if ended:
                    piece += text.rest()
                if piece or ended:
                    yield Piece(index, piece, tuple(fresh), text.finish_reason if ended else None)
                    fresh = []
                if ended:
                    return

    def describe(self) -> dict[str, Any]:
        """Return what `/v1/models` says of the version beyond OpenAI's fields."""
        opened = self.engine.opened
        return {
            "version": self.located.version,
            "alias": self.located.alias,
            "target": self.located.target,
            "digest": self.located.digest,
            "proved": self.located.proved,
            "context": self.context,
            "engine": None if opened is None else opened.kind,
            "steps_together": None if opened is None else opened.together,
            "tools": self.tool_form is not None,
            "prompts_reused": None if opened is None else opened.reuse,
        }


def engine_log(workspace: Path) -> Path:
    """Return where what the processes that compute say goes."""
    return log_folder(workspace) / "serve.log"


async def start_model(
    located: Located, options: ServeOptions, workspace: Path, started: Started | None = None
) -> ServedModel:
    """Return a version that takes requests.

    Args:
        started: a process that was started for it; None: one is started.

    Raises:
        HardwareError: its files are not what was logged, it does not fit, or its process does not start.
    """
    try:
        model = await asyncio.to_thread(ServedModel, located, options, workspace, started)
        await model.engine.start()
    except IntegrityError as error:
        raise HardwareError(f"{located.uri} is damaged: {error}") from error
    except EngineDiedError as error:
        raise HardwareError(f"{located.uri}: {error}", "a process that loads the model") from error
    return model


_CHAT = {"interface": "chat", "execution_provider": None}
_RAW = {"interface": "prompt", "apply_chat_template": False, "execution_provider": None}
