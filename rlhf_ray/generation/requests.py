"""Requests to one vLLM engine: their start, their deadline, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.generation.errors import EngineLost, RequestFailed, T, answer, engine_lost

_ARRIVAL_POLL_S = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A request that was submitted, and where its vLLM collector turns up when it starts.

    Attributes:
        order: requests that are held start in this order.
        arguments: of vLLM's `SamplingParams`.
        is_held: `release` starts it.
    """

    order: tuple[int, int]
    token_ids: tuple[int, ...]
    arguments: dict[str, Any]
    is_held: bool
    collector: asyncio.Future[Any]


class EngineRequests:
    """Starts requests and waits for them.

    Args:
        pause: held by whoever has paused the engine.
        timeout_s: time limit of one request from the moment the engine has it.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        *,
        pause: asyncio.Lock,
        engine_index: int,
        timeout_s: float,
    ) -> None:
        self._llm = llm
        self._pause = pause
        self._index = engine_index
        self._timeout_s = timeout_s
        # What requests that start now use beside the model's own weights.
        self.adapter: LoRARequest | None = None
        self._num_requests = 0
        # While this is a list, requests wait in it; None lets them pass.
        self._held: list[Submission] | None = None

    def submit(
        self,
        token_ids: tuple[int, ...],
        arguments: dict[str, Any],
        *,
        order: tuple[int, int],
        may_be_held: bool = True,
    ) -> Submission:
        """Take on one request, at once and without a wait: a `release` that comes next has it.

        Args:
            may_be_held: it waits where requests are held, and is one of those that count.
        """
        held = self._held if may_be_held else None
        submission = Submission(
            order=order,
            token_ids=token_ids,
            arguments=arguments,
            is_held=held is not None,
            collector=asyncio.get_running_loop().create_future(),
        )
        if held is not None:
            held.append(submission)
        return submission

    async def result(self, submission: Submission) -> Any:
        """vLLM's final `RequestOutput`; starts the request if it is not held.

        Raises:
            EngineLost: the engine process has ended.
            RequestFailed: vLLM refused the request.
            TimeoutError: it did not end in time; it was aborted.
        """
        if not submission.is_held:
            await self._start(submission)
        collector = await submission.collector
        finished = False
        try:
            async with asyncio.timeout(self._timeout_s):
                output = await self._answer(collector.get())
            finished = True
            return output
        finally:
            # A time-out, or a caller that has gone: let the engine work on something else.
            if not finished and not self._llm.errored:
                await self._answer(self._llm.abort(collector.request_id, internal=True))

    def hold(self) -> None:
        """Let requests come, but start none until `release`."""
        if self._held is None:
            self._held = []

    async def release(self, num_requests: int) -> None:
        """Start all held requests in one engine step, in their order.

        Args:
            num_requests: how many there must be before they start: calls that were made before
                this one may arrive after it.

        Raises:
            RunFailed: they have not come in time.
        """
        deadline = time.monotonic() + self._timeout_s
        while self._held is not None and len(self._held) < num_requests:
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"generator {self._index}: {len(self._held)} of {num_requests} requests of a "
                    f"batch have come within {self._timeout_s:g} s"
                )
            await asyncio.sleep(_ARRIVAL_POLL_S)
        held, self._held = self._held or [], None
        if not held:
            return
        try:
            async with self._pause:
                # Without what others left in the prefix cache, such as an evaluation: their
                # numbers may differ in the last bits from those of a run that did not have it.
                await self._answer(self._llm.pause_generation(mode="keep", clear_cache=True))
                for submission in sorted(held, key=lambda submission: submission.order):
                    await self._start(submission)
                await self._answer(self._llm.resume_generation())
        finally:
            # Whatever stopped us: nobody may wait for a request that will never start.
            for submission in held:
                if not submission.collector.done():
                    submission.collector.set_exception(engine_lost(self._index))

    async def _start(self, submission: Submission) -> None:
        """Hand the request to vLLM. What it says against it is for whoever waits for it."""
        if submission.collector.cancelled():
            return
        self._num_requests += 1
        try:
            collector = await self._answer(
                self._llm.add_request(
                    f"{self._index}-{self._num_requests}",
                    # A rendered input, so that vLLM neither tokenises nor hands it to a thread,
                    # which would change the order of requests.
                    {
                        **TokensPrompt(prompt_token_ids=list(submission.token_ids)),
                        "type": "token",
                    },
                    SamplingParams(
                        **submission.arguments, output_kind=RequestOutputKind.FINAL_ONLY
                    ),
                    lora_request=self.adapter,
                )
            )
        except (RequestFailed, EngineLost) as error:
            submission.collector.set_exception(error)
        else:
            submission.collector.set_result(collector)

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        return await answer(self._llm, self._index, call)
