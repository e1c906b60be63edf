"""Channels into a real engine: the same weights as by the object store, and what follows a failure.

The learner's end lives in a thread of this process, with a model in plain torch.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.publish.channel import ChannelSettings
from rlhf_ray.publish.gate import FidelityError
from rlhf_ray.publish.plan import plan_buckets
from rlhf_ray.publish.sending import SendingEnd
from rlhf_ray.publish.transports import COLLECTIVE, IPC
from tests.stack.generation.harness import (
    BUCKET_BYTES,
    PROBE,
    StartedEngine,
    make_prompt,
    named_weights,
)
from tests.stack.generation.worker_extension import digest

pytestmark = pytest.mark.stack
CPU = torch.device("cpu")
# Beyond what a bucket takes on a busy machine; a hung worker costs this much.
TIMEOUT_S = 20.0
_NUMBERS = itertools.count()


@dataclass
class Channel:
    """An open channel from this process to one engine."""

    engine: StartedEngine
    end: SendingEnd

    def publish(self, model: PreTrainedModel) -> tuple[str, str]:
        """The failures of the learner's end and of the engine's."""
        self.engine.version += 1
        return self.engine.run(self._publish(model))

    async def _publish(self, model: PreTrainedModel) -> tuple[str, str]:
        sending = asyncio.to_thread(self.end.send, iter(named_weights(model)))
        receiving = self.engine.engine.updates.receive(self.engine.version)
        sent, received = await asyncio.gather(sending, receiving)
        return sent, received


@contextmanager
def channel(
    kind: str, engine: StartedEngine, model: PreTrainedModel, bucket_bytes: int = BUCKET_BYTES
) -> Iterator[Channel]:
    end = SendingEnd()
    settings = ChannelSettings(
        kind=kind,
        name=f"test-{next(_NUMBERS)}",
        addresses=(end.listen("127.0.0.1"),),
        workers=(engine.engine.num_workers,),
        first_worker=0,
        specs=tuple(
            (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in named_weights(model)
        ),
        bucket_bytes=bucket_bytes,
        timeout_s=TIMEOUT_S,
    )
    assert len(plan_buckets(settings.specs, bucket_bytes)) > 3

    async def open_both() -> list[str]:
        opening = asyncio.to_thread(end.open, settings, 0, CPU)
        return list(await asyncio.gather(opening, engine.engine.updates.open_channel(settings)))

    try:
        assert engine.run(open_both()) == ["", ""]
        yield Channel(engine, end)
    finally:
        end.close()


def rpc(engine: StartedEngine, method: str, *arguments: Any) -> list[Any]:
    return engine.run(engine.engine._llm.collective_rpc(method, args=arguments))


def scores(engine: StartedEngine) -> list[list[float]]:
    return engine.run(engine.engine.score_sequences(list(PROBE.sequences)))


# The smallest has a bucket of its size for the embedding, which is larger than a bucket.
@pytest.mark.parametrize("bucket_bytes", [BUCKET_BYTES, 20_000])
@pytest.mark.parametrize("kind", [COLLECTIVE, IPC])
def test_a_channel_brings_what_the_object_store_brings(kind, bucket_bytes, engine, models):
    model = models["tied1"]
    engine.run(engine.update(model))
    engine.prove(model)
    expected = scores(engine)
    engine.run(engine.update(models["tied0"]))
    with pytest.raises(FidelityError):
        engine.prove(model, tolerance=0.5)
    with channel(kind, engine, model, bucket_bytes) as opened:
        # The second time both buffers hold the bytes of the first.
        for sent in (models["tied0"], model):
            rpc(engine, "watch_loads")
            assert opened.publish(sent) == ("", "")
            digests = {name: digest(tensor) for name, tensor in named_weights(sent)}
            assert rpc(engine, "loaded") == [digests]
        engine.prove(model)
        # Bit for bit, not within a tolerance.
        assert scores(engine) == expected
        engine.run(engine.engine.updates.close_channel())


# Of small buckets many end within a layer, of which vLLM then holds a part.
@pytest.mark.parametrize(
    ("kind", "bucket_bytes", "break_at"),
    [(COLLECTIVE, BUCKET_BYTES, 2), (IPC, BUCKET_BYTES, 2), (IPC, 20_000, 3), (IPC, 20_000, 4)],
)
def test_an_engine_goes_on_after_a_publish_that_failed(
    kind, bucket_bytes, break_at, engine, models
):
    """The failure is told at once, no request runs on half of the weights, a new channel works."""
    model = models["tied1"]
    engine.run(engine.update(models["tied0"]))
    with channel(kind, engine, model, bucket_bytes) as opened:
        rpc(engine, "watch_loads", break_at, "refuse")
        started = time.monotonic()
        sent, received = opened.publish(model)
        assert time.monotonic() - started < TIMEOUT_S / 2
        assert "the worker refuses this bucket" in received
        assert sent.startswith("lost the other end of the channel")
        with pytest.raises(RunFailed, match="part old and part new"):
            engine.run(engine.engine.score_sequences([(5, 6)]))
    rpc(engine, "watch_loads")
    with channel(kind, engine, model) as opened:
        assert opened.publish(model) == ("", "")
    engine.prove(model)
    engine.generate(make_prompt(0))


def test_a_learner_that_gives_up_frees_the_engine(engine, models):
    """All weights are asked for, although the channel broke: other ranks gather with this one."""
    model = models["tied1"]
    asked = []

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in named_weights(model):
            asked.append(name)
            # Of another shape than the plan has, in the middle.
            yield name, tensor[:1] if len(asked) == 7 else tensor

    with channel(COLLECTIVE, engine, model) as opened:

        async def publish() -> list[Any]:
            sending = asyncio.to_thread(opened.end.send, broken())
            receiving = engine.engine.updates.receive(engine.version + 1)
            return await asyncio.gather(sending, receiving, return_exceptions=True)

        started = time.monotonic()
        error, received = engine.run(publish())
    assert time.monotonic() - started < TIMEOUT_S / 2
    assert isinstance(error, RuntimeError)
    assert "the plan of the transfer has" in str(error)
    assert "lost the other end of the channel" in received
    assert asked == [name for name, _ in named_weights(model)]
    engine.run(engine.update(model))
    engine.prove(model)
