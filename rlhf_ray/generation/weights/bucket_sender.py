"""Buckets from the engine's own process into its workers, two in flight."""

from __future__ import annotations

import asyncio

import numpy as np
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf_ray.generation.weights.segments import SharedSegment
from rlhf_ray.publish.bucket import WeightBucket


class BucketSender:
    """Copies a bucket into one shared segment while the workers load from the other.

    The segments are kept from publish to publish: memory that is touched for the first time is
    many times slower than memory in use.
    """

    # What requests have to name beside the model's own weights.
    adapter = None

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._segments: list[SharedSegment | None] = [None, None]
        self._next = 0
        self._loading: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Prepare the workers for new weights."""
        await self._llm.start_weight_update()

    async def send(self, bucket: WeightBucket) -> None:
        """Returns when the bucket was copied; the workers load it meanwhile.

        Raises:
            Exception: as vLLM raised it while it loaded the bucket before this one.
        """
        segment = self._segment(bucket.num_bytes)
        await asyncio.to_thread(np.copyto, segment.array[: bucket.num_bytes], bucket.data)
        await self.wait()
        request = WeightTransferUpdateRequest(
            update_info={
                "segment_path": segment.path,
                "segment_bytes": segment.num_bytes,
                "names": list(bucket.names),
                "dtypes": list(bucket.dtypes),
                "shapes": [list(shape) for shape in bucket.shapes],
            }
        )
        self._loading = asyncio.create_task(self._llm.update_weights(request))

    async def finish(self, version: int) -> None:
        """All was sent: the workers use it, and call it `version`."""
        await self.wait()
        await self._llm.finish_weight_update(weight_version=str(version))

    async def wait(self) -> None:
        """Until the workers have loaded all that was sent."""
        loading, self._loading = self._loading, None
        if loading is not None:
            await loading

    def close(self) -> None:
        for segment in self._segments:
            if segment is not None:
                segment.close()
        self._segments = [None, None]

    def _segment(self, num_bytes: int) -> SharedSegment:
        """The segment that nobody reads, made larger where it is too small."""
        # `send` waits for the load before the last one, so this one is free.
        self._next = 1 - self._next
        segment = self._segments[self._next]
        if segment is None or segment.num_bytes < num_bytes:
            if segment is not None:
                segment.close()
            segment = SharedSegment(num_bytes)
            self._segments[self._next] = segment
        return segment
