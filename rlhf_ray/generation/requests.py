"""Requests to one vLLM engine: order of their start, time limit, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.generation.errors import EngineLost, RequestFailed, T, answer, engine_lost
from rlhf_ray.generation.prompt_tasks import RunClock


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A submitted request.

    Attributes:
        order: key by which requests that start together are sorted before.
        arguments: arguments of vLLM's `SamplingParams`.
        is_held: it starts with others; otherwise `result` starts it.
        collector: gets vLLM's output collector when the request starts, or the error of the start.
    """

    order: tuple[int, int]
    token_ids: tuple[int, ...]
    arguments: dict[str, Any]
    is_held: bool
    collector: asyncio.Future[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gathering:
    """Requests that start in one engine step.

    Attributes:
        number: of requests to wait for.
        are_here: is set when the last of them has come.
    """

    number: int
    held: list[Submission] = field(default_factory=list)
    are_here: asyncio.Event = field(default_factory=asyncio.Event)


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
        # Requests of which some have not come yet.
        self._gathering: _Gathering | None = None
        self._starts: set[asyncio.Task[None]] = set()

    def submit(
        self,
        token_ids: tuple[int, ...],
        arguments: dict[str, Any],
        *,
        order: tuple[int, int],
        together: int = 0,
    ) -> Submission:
        """Register one request without awaiting anything.

        Args:
            together: number of requests that start in one engine step, in their order, as soon as
                all of them are registered; 0 starts this one by itself. What vLLM computes depends
                on the batch: requests that start as they arrive would give results that cannot be
                reproduced.

        Raises:
            RunFailed: an update of the weights has failed.
        """
        if self.refusal is not None:
            raise RunFailed(self.refusal)
        submission = Submission(
            order=order,
            token_ids=token_ids,
            arguments=arguments,
            is_held=together > 0,
            collector=asyncio.get_running_loop().create_future(),
        )
        if together:
            self._gather(submission, together)
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

    def _gather(self, submission: Submission, number: int) -> None:
        gathering = self._gathering
        if gathering is None:
            gathering = self._gathering = _Gathering(number=number)
            task = asyncio.create_task(self._start_together(gathering))
            # The loop itself keeps no task from being collected.
            self._starts.add(task)
            task.add_done_callback(self._starts.discard)
        gathering.held.append(submission)
        if len(gathering.held) >= gathering.number:
            self._gathering = None
            gathering.are_here.set()

    async def _start_together(self, gathering: _Gathering) -> None:
        """Start requests in one engine step; an error goes to the callers that wait in `result`."""
        held = gathering.held
        failure: Exception = engine_lost(self._index)
        try:
            await self._wait_for_all(gathering)
            async with self._pause:
                if self._llm.errored:  # It may be why an update has failed: say the cause.
                    raise engine_lost(self._index)
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
        except Exception as error:  # noqa: BLE001 - the callers raise it
            failure = error
        finally:
            # If the start failed half-way: a caller must not wait for a request that never starts.
            for submission in held:
                if not submission.collector.done():
                    submission.collector.set_exception(failure)

    async def _wait_for_all(self, gathering: _Gathering) -> None:
        """Wait until all requests that start together are here.

        Raises:
            RunFailed: they have not come in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await gathering.are_here.wait()
        except TimeoutError:
            self._gathering = None
            raise RunFailed(
                f"generator {self._index}: only {len(gathering.held)} of {gathering.number} "
                f"requests of a batch have arrived within {self._timeout_s:g} s"
            ) from None

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
