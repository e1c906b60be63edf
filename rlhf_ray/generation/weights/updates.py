"""Updates of an engine's weights: pause, new weights by any transport, resume."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf_ray.generation.errors import EngineLost, T, answer
from rlhf_ray.generation.requests import EngineRequests
from rlhf_ray.generation.weights.adapter_sender import AdapterSender
from rlhf_ray.generation.weights.bucket_sender import BucketSender
from rlhf_ray.publish.channel import ChannelSettings, first_line


class WeightUpdates:
    """Gives one engine new weights.

    After a failed update the weights are part old and part new. The engine then stays paused and
    refuses requests until another update has succeeded. An engine with several workers is ended
    instead: vLLM 0.32 (multiproc_executor) raises the first worker's error and leaves the others'
    answers in their queues, where they would be taken for the answers to the next call.

    Args:
        pause: lock that is held while the engine is paused.
        num_workers: worker processes of the engine.

    Attributes:
        seconds: of the parts of the last update. "pause": the engine stops, its cache is dropped
            and layers are prepared; "weights": transfer and load, side by side; "resume": layers
            are finished, requests go on.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        sender: AdapterSender | BucketSender,
        requests: EngineRequests,
        *,
        pause: asyncio.Lock,
        engine_index: int,
        num_workers: int,
    ) -> None:
        self._llm = llm
        self._sender = sender
        self._requests = requests
        self._pause = pause
        self._index = engine_index
        self._num_workers = num_workers
        self._ending: asyncio.Future[None] | None = None
        self.seconds: dict[str, float] = {}
        self._part_began = 0.0
        self._is_open = False

    @property
    def is_pausing(self) -> bool:
        """Whether an update or the start of held requests keeps the engine paused."""
        return self._pause.locked()

    async def begin(self) -> None:
        """Pause the engine and prepare for new weights."""
        was_open, self._is_open = self._is_open, True
        if not was_open:
            await self._pause.acquire()
        self._part_began = time.monotonic()
        with self._failing():
            if was_open:
                # Its learner has died. The engine stays paused: its weights are part old and new.
                await self._answer(self._sender.abandon())
            clears = not self._requests.keeps_cache
            await self._answer(self._llm.pause_generation(mode="keep", clear_cache=clears))
            await self._answer(self._sender.begin())
        self._part_ends("pause")

    async def load(self, bucket: Any) -> None:
        """Take one bucket; its memory may be reused when this returns."""
        with self._failing():
            await self._answer(self._sender.send(bucket))

    async def finish(self, version: int) -> None:
        """Use the new weights as `version`; resume the engine."""
        self._part_ends("weights")
        with self._failing():
            await self._answer(self._sender.finish(version))
            self._requests.adapter = self._sender.adapter
            self._requests.refusal = None
            self._requests.num_updates += 1
            await self._answer(self._llm.resume_generation())
        self._part_ends("resume")
        self._end_pause()

    async def open_channel(self, settings: ChannelSettings) -> str:
        """Connect all workers with the learner; returns the text of a failure, or ""."""
        request = WeightTransferInitRequest(init_info=asdict(settings))
        try:
            await self._answer(self._llm.init_weight_transfer_engine(request))
        except EngineLost:
            raise
        except Exception as error:  # noqa: BLE001 - the driver compares the failures of all ends
            self._end_if_confused()
            return first_line(error)
        return ""

    async def receive(self, version: int) -> str:
        """Take all weights from the channel and use them; see `open_channel` for the result."""
        await self.begin()
        try:
            with self._failing():
                # vLLM wants a request for every update. This one says nothing: both ends know what
                # comes from the opening of the channel.
                request = WeightTransferUpdateRequest(update_info={})
                await self._answer(self._llm.update_weights(request))
        except EngineLost:
            raise
        except Exception as error:  # noqa: BLE001 - the driver compares the failures of all ends
            return first_line(error)
        await self.finish(version)
        return ""

    async def close_channel(self) -> None:
        """Disconnect all workers."""
        await self._answer(self._llm.shutdown_weight_transfer_engine())

    def _part_ends(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part], self._part_began = now - self._part_began, now

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Give up an update that fails: the next one must not wait for this one's pause."""
        try:
            yield
        except BaseException:
            self._requests.refusal = (
                f"generator {self._index}: an update of its weights has failed, and they are part "
                f"old and part new until the next one"
            )
            self._end_pause()
            self._end_if_confused()
            raise

    def _end_pause(self) -> None:
        self._is_open = False
        self._pause.release()

    def _end_if_confused(self) -> None:
        """End an engine of several workers; in a thread, because a worker that hangs takes time."""
        if self._num_workers > 1 and self._ending is None:
            loop = asyncio.get_running_loop()
            self._ending = loop.run_in_executor(None, self._llm.shutdown)

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        return await answer(self._llm, self._index, call)
