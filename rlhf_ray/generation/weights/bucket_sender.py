"""Sender of weight buckets from the engine's process to its workers, two in flight."""

from __future__ import annotations

import asyncio

import numpy as np
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf_ray.publish.bucket import WeightBucket
from rlhf_ray.publish.segments import SharedSegment


class BucketSender:
    """Copies a bucket into one shared segment while the workers load from the other.

    The segments are kept from publish to publish: the first write to fresh memory is many times
    slower, because the kernel maps each page then.
    """

    # Requests name no adapter: the model's own weights change.
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
        """Copy one bucket and let the workers load it; returns after the copy.

        Raises:
            Exception: as vLLM raised it while it loaded the previous bucket.
        """
        segment = self._segment(bucket.num_bytes)
        # The copy overlaps with the load of the previous bucket. Only then is that load awaited, so
        # that the workers get one bucket at a time, in order.
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
        """Make the workers use the weights that were sent, as `version`."""
        await self.wait()
        await self._llm.finish_weight_update(weight_version=str(version))

    async def abandon(self) -> None:
        """End an update of which some buckets have not come; another one must follow.

        vLLM 0.32 begins none before the last is finished, and a finish without a version leaves
        that of the engine as it is.
        """
        await self.wait()
        await self._llm.finish_weight_update()

    async def wait(self) -> None:
        """Wait until the workers have loaded all buckets that were sent."""
        # Cleared first, so that a failed load is raised once, not again at the next publish.
        loading, self._loading = self._loading, None
        if loading is not None:
            await loading

    def close(self) -> None:
        """Free the segments."""
        for segment in self._segments:
            if segment is not None:
                segment.close()
        self._segments = [None, None]

    def _segment(self, num_bytes: int) -> SharedSegment:
        """The segment that no worker reads, replaced if it is too small."""
        # `send` has awaited the load of the bucket before the last, so its segment is free.
        self._next = 1 - self._next
        segment = self._segments[self._next]
        if segment is None or segment.num_bytes < num_bytes:
            if segment is not None:
                segment.close()
            segment = SharedSegment(num_bytes)
            self._segments[self._next] = segment
        return segment
