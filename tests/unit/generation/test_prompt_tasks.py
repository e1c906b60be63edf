"""Tasks of prompts: results in order, and an end of the aborted prompts only."""

from __future__ import annotations

import asyncio

from rlhf_ray.generation.prompt_tasks import PromptTasks


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
