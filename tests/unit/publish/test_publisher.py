"""The publisher over fakes: transfer, proof, and another transport in place of the first."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.config.groups.runtime import PublishConfig
from rlhf_ray.config.setting import setting_of
from rlhf_ray.publish.base import TransferSettings, WeightReceivers, WeightSource
from rlhf_ray.publish.gate import FidelityError, Probe
from rlhf_ray.publish.object_store import ObjectStoreTransport
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.publish.transports import TRANSPORTS, engine_backend, weight_transport
from rlhf_ray.testing.fake_roles import FakeLearner
from rlhf_ray.testing.fakes import FakeGenerators, InProcessWaiter, done

PROBE = Probe(sequences=((1, 2, 3), (4, 5)))
LOGPROBS = [[-2.0, -3.0], [-5.0]]


class Learner(FakeLearner):
    """A learner of three buckets, with the log-probabilities of the fake engines."""

    def __init__(self, shift: float = 0.0) -> None:
        self.bucket_bytes: list[int] = []
        self._shift = shift

    def weight_buckets(self, bucket_bytes: int) -> tuple[Call, list[Call]]:
        self.bucket_bytes.append(bucket_bytes)
        return done("learner", 0, signal=["a", "b", "c"]), [done("learner", 1)]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        assert tuple(sequences) == PROBE.sequences
        return [done("learner", 0, signal=[[x + self._shift for x in row] for row in LOGPROBS])]


class DirectTransport:
    """A second transport: gives each receiver the whole stream at once."""

    def __init__(self) -> None:
        self.sends: list[TransferSettings] = []

    def send(
        self,
        source: WeightSource,
        receivers: WeightReceivers,
        waiter: CallWaiter,
        settings: TransferSettings,
    ) -> None:
        self.sends.append(settings)
        stream, _ = source.weight_buckets(settings.bucket_bytes)
        calls = [*receivers.begin_update(), *receivers.load_bucket("+".join(stream.signal))]
        waiter.results(calls, phase=settings.phase, timeout_s=settings.timeout_s)


def publisher(transport: Any, engines: FakeGenerators, learner: Learner, every: int = 1):
    return Publisher(
        source=learner,
        receivers=engines,
        transport=transport,
        waiter=InProcessWaiter(),
        probe=PROBE,
        settings=PublishSettings(
            bucket_bytes=7, probe_every=every, probe_tolerance=1e-3, timeout_s=2.0
        ),
    )


def test_the_object_store_passes_bucket_by_bucket():
    engines, learner = FakeGenerators(2), Learner()
    metrics = publisher(ObjectStoreTransport(), engines, learner).publish(3)
    assert engines.events == ["begin_update", "load a", "load b", "load c", "finish_update"]
    assert learner.bucket_bytes == [7]
    assert metrics == {"publish/version": 3.0, "publish/probe_gap_max": 0.0}


def test_another_transport_moves_the_weights_and_is_probed_too():
    engines, transport = FakeGenerators(2), DirectTransport()
    metrics = publisher(transport, engines, Learner()).publish(3)
    assert engines.events == ["begin_update", "load a+b+c", "finish_update"]
    assert engines.version == 3
    assert metrics == {"publish/version": 3.0, "publish/probe_gap_max": 0.0}
    (settings,) = transport.sends
    assert (settings.bucket_bytes, settings.phase, settings.timeout_s) == (7, "publish", 2.0)
    with pytest.raises(FidelityError, match="engine 0 differs"):
        publisher(transport, engines, Learner(shift=0.5)).publish(4)


def test_a_transport_of_the_table_is_chosen_by_its_name(monkeypatch):
    row = dataclasses.replace(
        TRANSPORTS["object_store"], transport=DirectTransport(), engine_backend="direct"
    )
    monkeypatch.setitem(TRANSPORTS, "direct", row)
    engines = FakeGenerators()
    publisher(weight_transport("direct"), engines, Learner()).publish(1)
    assert engines.events == ["begin_update", "load a+b+c", "finish_update"]
    assert engine_backend("direct") == "direct"
    assert engine_backend("object_store") == "object_store"


def test_the_probe_has_an_interval():
    rare = publisher(ObjectStoreTransport(), FakeGenerators(), Learner(shift=0.5), every=2)
    assert rare.publish(1) == {"publish/version": 1.0}
    with pytest.raises(FidelityError):
        rare.publish(2)


def test_the_table_has_every_choice_of_the_configuration():
    (field,) = [f for f in dataclasses.fields(PublishConfig) if f.name == "transport"]
    declared = setting_of(field)
    assert declared is not None
    assert set(TRANSPORTS) == set(declared.choices)
    assert len({row.engine_backend for row in TRANSPORTS.values()}) == len(TRANSPORTS)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_every_receiver_exists(name):
    """Read from its file, because importing it needs vLLM."""
    row = TRANSPORTS[name]
    spec = importlib.util.find_spec(row.receiver_module)
    assert spec is not None
    tree = ast.parse(Path(str(spec.origin)).read_text(encoding="utf-8"))
    assert row.receiver_class in [n.name for n in tree.body if isinstance(n, ast.ClassDef)]
