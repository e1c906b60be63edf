"""Requests to one vLLM engine: order of their start, time limit, failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.generation.errors import EngineLost, RequestFailed, T, answer, engine_lost
from rlhf_ray.generation.prompt_tasks import RunClock

_ARRIVAL_POLL_S = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A submitted request.

    Attributes:
        order: key by which held requests are sorted before they start.
        arguments: arguments of vLLM's `SamplingParams`.
        is_held: `release` starts the request; otherwise `result` does.
        collector: gets vLLM's output collector when the request starts, or the error of the start.
    """

    order: tuple[int, int]
    token_ids: tuple[int, ...]
    arguments: dict[str, Any]
    is_held: bool
    collector: asyncio.Future[Any]


class EngineRequests:
    """Starts requests and waits for their results.

    Args:
        pause: lock that is held while the engine is paused.
        timeout_s: time for which one request may run; see `RunClock`.
        keeps_cache: running requests keep their key-value cache over an update of the weights.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        *,
        pause: asyncio.Lock,
        engine_index: int,
        timeout_s: float,
        keeps_cache: bool = False,
    ) -> None:
        self._llm = llm
        self._pause = pause
        self._index = engine_index
        self._timeout_s = timeout_s
        self.keeps_cache = keeps_cache
        # Updates of the weights so far.
        self.num_updates = 0
        self._clock = RunClock(is_paused=pause.locked, has_begun=self._has_begun)
        # Adapter for requests that start from now on; None without LoRA.
        self.adapter: LoRARequest | None = None
        # Why no request may start, while the weights are not those of any version.
        self.refusal: str | None = None
        self._num_requests = 0
        # The held requests, or None while requests are not held.
        self._held: list[Submission] | None = None

    def submit(
        self,
        token_ids: tuple[int, ...],
        arguments: dict[str, Any],
        *,
        order: tuple[int, int],
        may_be_held: bool = True,
    ) -> Submission:
        """Register one request without awaiting anything, so that the next `release` includes it.

        Args:
            may_be_held: hold and count the request while requests are held; False starts it anyway.

        Raises:
            RunFailed: an update of the weights has failed.
        """
        if self.refusal is not None:
            raise RunFailed(self.refusal)
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
        """Wait for vLLM's final `RequestOutput`; starts the request if it is not held.

        Raises:
            EngineLost: the engine process has ended.
            RequestFailed: vLLM refused the request.
            TimeoutError: the request did not end in time and was aborted.
        """
        if not submission.is_held:
            await self._start(submission)
        # A held request may wait long for its start, and a started one for a place in the engine.
        # Neither is the request's own time.
        collector = await submission.collector
        finished = False
        try:
            async with self._clock.limit(collector.request_id, self._timeout_s):
                output = await self._answer(collector.get())
            finished = True
            return output
        finally:
            # After a time-out, or if the caller was cancelled: free the engine for other requests.
            if not finished and not self._llm.errored:
                await self._answer(self._llm.abort(collector.request_id, internal=True))

    def hold(self) -> None:
        """Collect requests, but start none until `release`."""
        if self._held is None:
            self._held = []

    async def release(self, num_requests: int) -> None:
        """Start all held requests in one engine step, in their order.

        Args:
            num_requests: number of held requests to wait for. Ray may deliver the calls that submit
                them after the call of `release`, although they were made before it.

        Raises:
            RunFailed: the requests have not arrived in time, or an update of weights has failed.
        """
        deadline = time.monotonic() + self._timeout_s
        while self._held is not None and len(self._held) < num_requests:
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"generator {self._index}: only {len(self._held)} of {num_requests} requests "
                    f"of a batch have arrived within {self._timeout_s:g} s"
                )
            await asyncio.sleep(_ARRIVAL_POLL_S)
        # From here on new requests pass; only those collected so far start together.
        held, self._held = self._held or [], None
        if not held:
            return
        try:
            async with self._pause:
                if self.refusal is not None:
                    # Starting them ends with a resume, which would run on these weights.
                    raise RunFailed(self.refusal)
                # The engine is paused while requests are added: all of them join the same step.
                # The prefix cache is cleared, because entries that others left there, such as an
                # evaluation, change the numbers in the last bits.
                clears = not self.keeps_cache
                await self._answer(self._llm.pause_generation(mode="keep", clear_cache=clears))
                for submission in sorted(held, key=lambda submission: submission.order):
                    await self._start(submission)
                await self._answer(self._llm.resume_generation())
        finally:
            # If the start failed half-way: a caller must not wait for a request that never starts.
            for submission in held:
                if not submission.collector.done():
                    submission.collector.set_exception(engine_lost(self._index))

    async def _start(self, submission: Submission) -> None:
        """Hand the request to vLLM; an error goes to the caller that waits in `result`."""
        # Given up before its start, by `abort` or because the caller has gone.
        if submission.collector.cancelled():
            return
        self._num_requests += 1
        try:
            collector = await self._answer(
                self._llm.add_request(
                    f"{self._index}-{self._num_requests}",
                    # Already in the form of a rendered input: vLLM would tokenise any other form
                    # in a thread, which would change the order of the requests.
                    tokens_input(
                        list(submission.token_ids), cache_salt=self._cache_of_these_weights()
                    ),
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

    def _cache_of_these_weights(self) -> str | None:
        """A salt that keeps a new request from reusing prefixes of older weights."""
        return str(self.num_updates) if self.keeps_cache else None

    def _has_begun(self, request_id: str) -> bool:
        """Whether vLLM has sampled a token for this request, or is done with it."""
        state = self._llm.output_processor.request_states.get(request_id)
        return state is None or not state.is_prefilling

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        return await answer(self._llm, self._index, call)
