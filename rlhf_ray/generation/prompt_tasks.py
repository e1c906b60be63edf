"""Sampling tasks of prompts, which can be aborted prompt by prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PromptTasks(Generic[T]):
    """Runs the coroutines of several prompts at once.

    A coroutine must turn its cancellation into a result: `abort` ends it, but its caller still
    waits for the outcome.
    """

    def __init__(self) -> None:
        self._prompt_ids: dict[asyncio.Task[T], str] = {}

    async def run(self, prompt_id: str, coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Run the coroutines of one prompt; returns their results in order."""
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        self._prompt_ids |= dict.fromkeys(tasks, prompt_id)
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                del self._prompt_ids[task]

    async def abort(self, prompt_ids: Sequence[str]) -> None:
        """Cancel the tasks of these prompts, and wait until they have ended.

        Prompts without running tasks are ignored.
        """
        given_up = set(prompt_ids)
        tasks = [task for task, prompt_id in self._prompt_ids.items() if prompt_id in given_up]
        # A task that is cancelled before its first step never runs, so it could return no result.
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
