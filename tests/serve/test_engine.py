"""The process that computes, as its front sees it: real processes, killed, stopped and started again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from slmpack.records import Package
from slmpack.serve.engine import BusyError, Engine, EngineDiedError, RefusedError
from slmpack.serve.grammar import json_grammar
from slmpack.serve.jobs import Token
from slmpack.serve.open_graph import EnginePlan
from slmpack.serve.sampling import SamplingRule

PROMPT = list(range(100, 160))
LIMIT_SECONDS = 900.0
LONG = 4000  # seconds of work: it has not ended when a test looks at it


@asynccontextmanager
async def engine(
    package: Package, log: Path, slots: int = 2, queue: int = 4, silent_seconds: float = 300.0
) -> AsyncIterator[Engine]:
    plan = EnginePlan(
        folder=package.path, slots=slots, context=4096, threads=1, provider="cpu",
        end_tokens=frozenset({2}), vocabulary=8192,
    )  # fmt: skip
    made = Engine(plan, log / "engine.log", queue, silent_seconds=silent_seconds)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            await work()

    asyncio.run(limited())


async def answer(on: Engine, new: int = 6, rule: SamplingRule | None = None) -> list[Token]:
    banned = SamplingRule(bias={2: -1000.0})  # the end of a turn
    return [token async for token in on.tokens(PROMPT, new, rule or banned, reuse=False)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_an_answer_is_the_same_alone_and_among_others(small_package: Package, tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(small_package, tmp_path) as made:
            assert made.opened is not None and made.opened.kind == "slots"
            alone = await answer(made)
            assert [token.finish for token in alone] == [None] * 5 + ["length"]
            for each in await asyncio.gather(*(answer(made) for _ in range(5))):
                assert [token.chosen for token in each] == [token.chosen for token in alone]

    run(work)


def test_more_than_may_wait_are_refused_with_a_time(small_package: Package, tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(small_package, tmp_path, slots=1, queue=1) as made:
            tasks = [asyncio.create_task(answer(made, 60)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="2 answers are waiting") as refused:
                await answer(made)
            assert refused.value.retry_seconds >= 1
            for task in tasks:
                assert len(await task) == 60

    run(work)


def test_a_stream_that_is_left_frees_its_slot_at_once(small_package: Package, tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(small_package, tmp_path) as made:
            async with aclosing(made.tokens(PROMPT, LONG, SamplingRule(bias={2: -1000.0}), reuse=False)) as tokens:
                async for _ in tokens:
                    assert made.load.slots == 1
                    break
            assert made.jobs == 0
            rule = SamplingRule(bias={2: -1000.0})
            busy = [made.load.slots async for _ in made.tokens(PROMPT, 20, rule, reuse=False)]
            assert 2 not in busy  # the one that was left had hundreds of tokens to go
            await until(lambda: made.load.slots == 0)

    run(work)


def test_a_killed_process_ends_its_answers_and_another_one_answers(small_package: Package, tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(small_package, tmp_path) as made:
            alone = await answer(made)
            task = asyncio.create_task(answer(made, LONG))
            await until(lambda: made.load.slots == 1)
            assert made.pid is not None
            os.kill(made.pid, signal.SIGKILL)
            with pytest.raises(EngineDiedError, match="send the request again"):
                await task
            assert not made.is_ready
            assert made.load.slots == 0
            with pytest.raises(EngineDiedError, match="being started"):
                await answer(made)
            await until(lambda: made.is_ready)
            assert [token.chosen for token in await answer(made)] == [token.chosen for token in alone]
            assert made.restarts == 1

    run(work)


def test_a_process_that_hangs_is_ended(small_package: Package, tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(small_package, tmp_path, silent_seconds=10.0) as made:
            task = asyncio.create_task(answer(made, LONG))
            await until(lambda: made.load.slots == 1)
            assert made.pid is not None
            os.kill(made.pid, signal.SIGSTOP)
            with pytest.raises(EngineDiedError):
                await task
            await until(lambda: made.is_ready)
            assert len(await answer(made)) == 6

    run(work)


def test_an_idle_process_may_be_silent(small_package: Package, tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(small_package, tmp_path, silent_seconds=0.2) as made:
            await asyncio.sleep(1)
            assert made.is_ready
            assert made.restarts == 0

    run(work)


def test_a_schema_that_cannot_be_followed_is_refused_and_the_process_goes_on(
    small_package: Package, tmp_path: Path
) -> None:
    async def work() -> None:
        async with engine(small_package, tmp_path) as made:
            with pytest.raises(RefusedError, match="nonsense"):
                await answer(made, rule=SamplingRule(grammar=json_grammar({"type": "nonsense"})))
            assert len(await answer(made)) == 6
            assert made.restarts == 0

    run(work)


def test_a_package_that_cannot_be_loaded_says_where_the_reason_is(small_package: Package, tmp_path: Path) -> None:
    async def work() -> None:
        broken = tmp_path / "broken"
        broken.mkdir()
        for name in ("genai_config.json", "model.onnx"):
            (broken / name).write_bytes((small_package.path / name).read_bytes())
        with pytest.raises(EngineDiedError, match=r"ended while it loaded the model; see .*engine\.log"):
            async with engine(small_package.model_copy(update={"path": broken}), tmp_path):
                pass
        assert "model.onnx.data" in (tmp_path / "engine.log").read_text()

    run(work)


def test_the_process_ends_with_its_front(small_package: Package, tmp_path: Path) -> None:
    """Its line closes when the front is killed, whatever it is doing."""
    import subprocess
    import sys

    import psutil
    from serve_process import wait_until_ended

    program = (
        "import asyncio, sys; from pathlib import Path; from slmpack.serve.engine import Engine\n"
        "from slmpack.serve.open_graph import EnginePlan\n"
        "async def main():\n"
        "    engine = Engine(EnginePlan.model_validate_json(sys.argv[1]), Path(sys.argv[2]), 4)\n"
        "    await engine.start(); print(engine.pid, flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    plan = EnginePlan(
        folder=small_package.path, slots=1, context=512, threads=1, provider="cpu",
        end_tokens=frozenset({2}), vocabulary=8192,
    )  # fmt: skip
    command = [sys.executable, "-c", program, plan.model_dump_json(), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as front:
        assert front.stdout is not None
        process = psutil.Process(int(front.stdout.readline()))
        front.kill()
    assert not wait_until_ended([process])
