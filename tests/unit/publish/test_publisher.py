"""The publisher over fakes: transfer, proof, and another transport in place of the first."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlhf_ray.calls import Call
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.updates.device_sharing import DedicatedDevices
from rlhf_ray.publish.base import ADAPTER, POLICY, TransferSettings
from rlhf_ray.publish.gate import FidelityError, Probe
from rlhf_ray.publish.object_store import ObjectStoreTransport
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.testing.fake_roles import FakeLearner
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, done

PROBE = Probe(sequences=((1, 2, 3), (4, 5)))
LOGPROBS = [[-2.0, -3.0], [-5.0]]


class Learner(FakeLearner):
    """A learner of three buckets, with the log-probabilities of the fake engines."""

    def __init__(self, shift: float = 0.0) -> None:
        self.asked: list[tuple[int, str]] = []
        self._shift = shift

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        self.asked.append((bucket_bytes, what))
        return done("learner", 0, signal=["a", "b", "c"]), [done("learner", 1)]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        assert tuple(sequences) == PROBE.sequences
        return [done("learner", 0, signal=[[x + self._shift for x in row] for row in LOGPROBS])]


class DirectTransport:
    """A second transport: gives each receiver the whole stream at once."""

    def open(self, source: Learner, receivers: FakeGenerators) -> None:
        self._source, self._receivers = source, receivers

    def send(self, version: int, *, what: str = POLICY) -> None:
        stream, _ = self._source.weight_buckets(1, what=what)
        self._receivers.load_bucket("+".join(stream.signal))
        self._receivers.finish_update(version)

    def close(self) -> None: ...


def object_store() -> ObjectStoreTransport:
    settings = TransferSettings(bucket_bytes=7, phase="publish", timeout_s=2.0)
    return ObjectStoreTransport(InProcessWaiter(), settings)


def publisher(
    transport: Any, engines: FakeGenerators, learner: Learner, every: int = 1, what: str = POLICY
):
    transport.open(learner, engines)
    return Publisher(
        source=learner,
        receivers=engines,
        transport=transport,
        turns=DedicatedDevices(),
        waiter=InProcessWaiter(),
        probe=PROBE,
        settings=PublishSettings(what=what, probe_every=every, probe_tolerance=1e-3, timeout_s=2.0),
    )


@pytest.mark.parametrize("what", [POLICY, ADAPTER])
def test_the_object_store_passes_bucket_by_bucket(what):
    engines, learner = FakeGenerators(2), Learner()
    metrics = publisher(object_store(), engines, learner, what=what).publish(3)
    assert engines.events == ["begin_update", "load a", "load b", "load c", "finish_update"]
    assert engines.version == 3
    assert learner.asked == [(7, what)]
    assert metrics == {"publish/version": 3.0, "publish/probe_gap_max": 0.0}


def test_another_transport_moves_the_weights_and_is_probed_too():
    engines, transport = FakeGenerators(2), DirectTransport()
    metrics = publisher(transport, engines, Learner()).publish(3)
    assert engines.events == ["load a+b+c", "finish_update"]
    assert engines.version == 3
    assert metrics == {"publish/version": 3.0, "publish/probe_gap_max": 0.0}
    with pytest.raises(FidelityError, match="engine 0 differs"):
        publisher(transport, engines, Learner(shift=0.5)).publish(4)


@pytest.mark.parametrize("shift", [math.nan, math.inf, -math.inf])
def test_a_learner_that_has_diverged_is_named_and_not_the_transfer(shift):
    with pytest.raises(RunFailed, match="version 3: training has diverged") as failed:
        publisher(object_store(), FakeGenerators(), Learner(shift)).publish(3)
    assert not isinstance(failed.value, FidelityError)


@pytest.mark.parametrize(("shift", "is_said"), [(-0.5, False), (-1e5, True)])
def test_rounding_of_impossible_numbers_is_not_blamed_on_the_transfer_alone(shift, is_said):
    with pytest.raises(FidelityError) as failed:
        publisher(object_store(), FakeGenerators(), Learner(shift)).publish(3)
    assert ("go down to -1e+05" in str(failed.value)) is is_said
    assert ("lower training.learning_rate first" in str(failed.value)) is is_said


def test_the_probe_has_an_interval():
    rare = publisher(object_store(), FakeGenerators(), Learner(shift=0.5), every=2)
    assert rare.publish(1) == {"publish/version": 1.0}
    with pytest.raises(FidelityError):
        rare.publish(2)
