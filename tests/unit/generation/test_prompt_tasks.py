"""Tasks of prompts: results in order, and an end of the aborted prompts only."""

from __future__ import annotations

import asyncio
import time

import pytest

from rlhf_ray.generation.prompt_tasks import PromptTasks, RunClock


async def _sample(name: str, finished: asyncio.Event) -> str:
    try:
        await finished.wait()
    except asyncio.CancelledError:
        return f"{name} aborted"
    return f"{name} finished"


async def _abort_first(*, after_steps: int) -> list[list[str]]:
    """Start two prompts, abort the first after some steps of the event loop, finish the second."""
    finished = asyncio.Event()
    tasks: PromptTasks[str] = PromptTasks()
    first = asyncio.create_task(tasks.run("p1", [_sample(n, finished) for n in ("a", "b")]))
    second = asyncio.create_task(tasks.run("p2", [_sample("c", finished)]))
    for _ in range(1 + after_steps):
        await asyncio.sleep(0)
    await tasks.abort(["p1", "unknown"])
    finished.set()
    return [await first, await second]


def test_only_the_aborted_prompt_ends_early():
    outcomes = asyncio.run(_abort_first(after_steps=5))
    assert outcomes == [["a aborted", "b aborted"], ["c finished"]]


def test_a_task_that_has_not_begun_gives_a_result_too():
    outcomes = asyncio.run(_abort_first(after_steps=0))
    assert outcomes == [["a aborted", "b aborted"], ["c finished"]]


def test_nothing_is_left_of_a_prompt_that_has_ended():
    async def run() -> list[str]:
        tasks: PromptTasks[str] = PromptTasks()
        finished = asyncio.Event()
        finished.set()
        outcomes = await tasks.run("p1", [_sample("a", finished), _sample("b", finished)])
        assert tasks._prompt_ids == {}
        await tasks.abort(["p1"])
        return outcomes

    assert asyncio.run(run()) == ["a finished", "b finished"]


class Engine:
    """An engine as its clock sees it."""

    def __init__(self) -> None:
        self.is_paused = False
        self.begun: set[str] = set()
        self.clock = RunClock(is_paused=lambda: self.is_paused, has_begun=self.begun.__contains__)

    async def run(self, request_id: str, limit_s: float) -> float:
        """Seconds until the request is given up."""
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with self.clock.limit(request_id, limit_s):
                await asyncio.sleep(60)
        return time.monotonic() - started


def test_time_in_the_queue_does_not_count():
    async def run() -> tuple[float, float]:
        engine = Engine()
        engine.begun.add("first")
        first = asyncio.create_task(engine.run("first", 0.5))
        second = asyncio.create_task(engine.run("second", 0.2))
        await asyncio.sleep(0.4)
        engine.begun.add("second")
        return await first, await second

    first, second = asyncio.run(run())
    assert 0.5 <= first < 5
    assert 0.5 <= second < 5, "0.4 s in the queue, 0.2 s of its own"


def test_a_pause_does_not_count():
    async def run() -> float:
        engine = Engine()
        engine.begun.add("a")
        request = asyncio.create_task(engine.run("a", 0.2))
        engine.is_paused = True
        await asyncio.sleep(0.5)
        engine.is_paused = False
        return await request

    assert 0.6 <= asyncio.run(run()) < 5


def test_an_engine_that_begins_nothing_is_given_up():
    async def run() -> list[float]:
        engine = Engine()
        return await asyncio.gather(engine.run("a", 0.2), engine.run("b", 0.2))

    assert all(0.2 <= waited < 5 for waited in asyncio.run(run()))


def test_a_request_that_ends_in_time_leaves_nothing_behind():
    async def run() -> None:
        engine = Engine()
        async with engine.clock.limit("a", 0.05):
            pass
        await asyncio.sleep(0.1)
        assert not engine.clock._limited
        assert engine.clock._ticker is not None
        assert engine.clock._ticker.done()

    asyncio.run(run())
