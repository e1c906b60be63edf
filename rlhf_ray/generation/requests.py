"""Requests to one vLLM engine: their start, their deadline, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm.exceptions import VLLMError
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from rlhf_ray.config.errors import RunFailed

# How often a waiting request looks whether the engine is still alive.
_HEALTH_POLL_S = 1.0


class EngineLost(RunFailed):
    """The vLLM engine process has ended; nothing more comes from it."""


class RequestFailed(Exception):  # noqa: N818 - see RunFailed
    """vLLM refused this request or lost it; the engine itself is well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """A request that waits for `release`, and where it learns of its collector."""

    order: tuple[int, int]
    token_ids: tuple[int, ...]
    arguments: dict[str, Any]
    admitted: asyncio.Future[Any]


class EngineRequests:
    """Starts requests and waits for them.

    Args:
        pause: held by whoever has paused the engine.
        timeout_s: time limit of one request from the moment the engine has it.
    """

    def __init__(
        self, llm: AsyncLLM, *, pause: asyncio.Lock, engine_index: int, timeout_s: float
    ) -> None:
        self._llm = llm
        self._pause = pause
        self._index = engine_index
        self._timeout_s = timeout_s
        self._num_requests = 0
        # While this is a list, requests wait in it; None lets them pass.
        self._held: list[_Held] | None = None

    async def run(
        self, token_ids: tuple[int, ...], arguments: dict[str, Any], *, order: tuple[int, int]
    ) -> Any:
        """vLLM's final `RequestOutput` for one prompt.

        Args:
            arguments: of vLLM's `SamplingParams`.
            order: requests that are held start in this order.

        Raises:
            EngineLost: the engine process has ended.
            RequestFailed: vLLM refused the request.
            TimeoutError: it did not end in time; it was aborted.
        """
        if self._held is None:
            collector = await self._admit(token_ids, arguments)
        else:
            admitted = asyncio.get_running_loop().create_future()
            self._held.append(
                _Held(order=order, token_ids=token_ids, arguments=arguments, admitted=admitted)
            )
            collector = await admitted
        finished = False
        try:
            output = await self._wait(collector)
            finished = True
            return output
        finally:
            # A time-out, or a caller that has gone: let the engine work on something else.
            if not finished and not self._llm.errored:
                await self._llm.abort(collector.request_id, internal=True)

    def hold(self) -> None:
        """Let requests come, but start none until `release`."""
        if self._held is None:
            self._held = []

    async def release(self) -> None:
        """Start all held requests in one engine step, in their order."""
        held, self._held = self._held or [], None
        if not held:
            return
        async with self._pause:
            with engine_errors(self._index):
                await self._llm.pause_generation(mode="keep", clear_cache=False)
            for request in sorted(held, key=lambda request: request.order):
                await self._admit_held(request)
            with engine_errors(self._index):
                await self._llm.resume_generation()

    async def _admit_held(self, request: _Held) -> None:
        if request.admitted.cancelled():
            return
        try:
            request.admitted.set_result(await self._admit(request.token_ids, request.arguments))
        except (RequestFailed, EngineLost) as error:
            request.admitted.set_exception(error)

    async def _admit(self, token_ids: tuple[int, ...], arguments: dict[str, Any]) -> Any:
        self._num_requests += 1
        with engine_errors(self._index):
            return await self._llm.add_request(
                f"{self._index}-{self._num_requests}",
                # A rendered input, so that vLLM neither tokenises nor hands it to a thread,
                # which would change the order of requests.
                {**TokensPrompt(prompt_token_ids=list(token_ids)), "type": "token"},
                SamplingParams(**arguments, output_kind=RequestOutputKind.FINAL_ONLY),
            )

    async def _wait(self, collector: Any) -> Any:
        deadline = time.monotonic() + self._timeout_s
        while True:
            remaining = deadline - time.monotonic()
            try:
                with engine_errors(self._index):
                    return await asyncio.wait_for(collector.get(), min(remaining, _HEALTH_POLL_S))
            except TimeoutError:
                # vLLM 0.32 does not wake its requests when the engine process is killed.
                if self._llm.errored:
                    raise engine_lost(self._index) from None
                if time.monotonic() >= deadline:
                    raise


@contextmanager
def engine_errors(engine_index: int) -> Iterator[None]:
    """vLLM's errors as this package's: `EngineLost` and `RequestFailed`."""
    try:
        yield
    except EngineDeadError:
        raise engine_lost(engine_index) from None
    except (VLLMError, ValueError) as error:
        raise RequestFailed(f"engine {engine_index}: {type(error).__name__}: {error}") from error


def engine_lost(engine_index: int) -> EngineLost:
    return EngineLost(
        f"generator {engine_index}: its vLLM engine process has ended. The cause is in the "
        "generator's log above this line; without one, the system has killed it, most often "
        "for want of memory: lower generation.kv_cache_gib or generation.max_num_seqs"
    )
